"""The images of a DCGAN's training: conditions, exclusions, and batches that can't be filled or shared."""

from dataclasses import replace

import polars as pl
import pytest

from pipeline.data.sampler import SINGLE_RANK, RankSlice
from pipeline.data.shard_set import ShardSet
from pipeline.gan.data import ConditionClasses, build_sampler
from shards.errors import FairfaceError
from tests.pipeline.gan.helpers import TINY, train_run


def test_a_batch_that_the_processes_cannot_share_is_refused(workspace):
    shards = ShardSet.open(workspace.shards)
    with pytest.raises(FairfaceError, match="can't be shared by 3 processes"):
        build_sampler(TINY, shards, images=pl.DataFrame(), classes=None, rank_slice=RankSlice(0, 3))


def test_too_few_images_for_a_batch_are_refused(workspace):
    with pytest.raises(FairfaceError, match="--batch-size"):
        train_run(workspace, 3, replace(TINY, batch_size=500))


def test_images_without_the_label_are_excluded(workspace):
    gender = pl.when(pl.col("key") < "00000100").then("gender")
    images = pl.read_parquet(workspace.shards.images).with_columns(gender)
    options, shards = replace(TINY, conditional="gender"), ShardSet.open(workspace.shards)
    classes = ConditionClasses.from_images(images, options)
    sampler = build_sampler(options, shards, images=images, classes=classes, rank_slice=SINGLE_RANK)
    assert sorted(sampler.indices(3).tolist()) == list(range(100))
    assert set(classes.numbers.tolist()) == {-1, 0, 1}
    assert sampler.excluded == 140
    options = replace(TINY, balance="uniform", balance_by="gender")
    balanced = build_sampler(options, shards, images=images, classes=None, rank_slice=SINGLE_RANK)
    assert (balanced.excluded, balanced.images_per_epoch) == (140, 100)
