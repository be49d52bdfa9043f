"""Training a DCGAN: what a run writes, what decides its weights, balanced and conditional runs."""

from dataclasses import replace

import polars as pl
import pytest
import torch

from pipeline.data.sampler import SINGLE_RANK
from pipeline.data.shard_set import ShardSet
from pipeline.gan.data import build_sampler
from pipeline.gan.sample import SampleConfig, sample
from pipeline.training.run_directory import read_run
from shards.errors import FairfaceError
from shards.workspace import Workspace
from tests.pipeline.gan.helpers import TINY, is_equal, run_weights, train_run


def sample_groups(workspace: Workspace, count: int, *groups: str) -> pl.Series:
    """The groups requested for new samples of the run `conditional`."""
    sample(workspace, SampleConfig(run="conditional", count=count, device="cpu", progress=False, groups=groups))
    return pl.read_parquet(workspace.run("conditional").samples_table)["requested"]


def test_a_run_writes_its_documents_tables_and_grids(workspace):
    result = train_run(workspace, 40, sample_every=20)
    config, folder = result.config, workspace.run(result.config.name)
    assert (config.status, result.unchanged, config.data.images) == ("finished", False, 240)
    assert read_run(folder) == config
    assert config.options["precision"] == "fp32"
    steps = pl.read_parquet(folder.steps)
    assert steps["step"].to_list() == [20, 40]
    assert steps["images"].to_list() == [320, 640]
    assert steps["epoch"].to_list() == [2, 3]
    assert steps.select((pl.col("images_per_s") > 0) & pl.col("data_wait").is_between(0, 1)).to_series().all()
    grids = sorted(path.name for path in folder.grids.iterdir())
    assert grids == ["step_000000020.png", "step_000000040.png"]
    assert list(folder.tensorboard.iterdir())
    assert train_run(workspace, 40).unchanged


@pytest.mark.parametrize(
    "options",
    [
        replace(TINY, feed="resident"),
        replace(TINY, feed="streaming", loss="relativistic", regularizer="r1r2", penalty_every=4, diff_augment=True),
    ],
    ids=["published", "relativistic"],
)
def test_a_resumed_run_equals_an_uninterrupted_one(workspace, options):
    train_run(workspace, 24, options, run="uninterrupted")
    train_run(workspace, 9, options, run="resumed")
    train_run(workspace, 24, options, run="resumed")
    assert is_equal(run_weights(workspace, "uninterrupted", 24), run_weights(workspace, "resumed", 24))
    rows = [pl.read_parquet(workspace.run(name).steps) for name in ("uninterrupted", "resumed")]
    assert [frame["step"].to_list() for frame in rows] == [[20, 24], [9, 20, 24]]
    assert rows[0].filter(step=24)["loss_g"].item() == rows[1].filter(step=24)["loss_g"].item()


def test_the_seed_decides_the_weights(workspace):
    train_run(workspace, 3, run="a")
    train_run(workspace, 3, run="b")
    train_run(workspace, 3, replace(TINY, seed=1), run="c")
    assert is_equal(run_weights(workspace, "a", 3), run_weights(workspace, "b", 3))
    assert not is_equal(run_weights(workspace, "a", 3), run_weights(workspace, "c", 3))


def test_balanced_training_uses_the_target_shares_with_both_feeds(workspace):
    options = replace(TINY, balance={"female": 0.25, "male": 0.75}, balance_by="gender")
    for feed in ("resident", "streaming"):
        train_run(workspace, 12, replace(options, feed=feed), run=feed)
    assert is_equal(run_weights(workspace, "resident", 12), run_weights(workspace, "streaming", 12))
    shards, images = ShardSet.open(workspace.shards), pl.read_parquet(workspace.shards.images)
    sampler = build_sampler(options, shards, images=images, classes=None, rank_slice=SINGLE_RANK)
    counts = images[sampler.indices(0).numpy()]["gender"].value_counts()
    assert dict(counts.iter_rows()) == {"female": 60, "male": 180}
    train_run(workspace, 14, options, run="resident")  # the same shares, read back from JSON
    with pytest.raises(FairfaceError, match="another balance"):
        train_run(workspace, 14, TINY, run="resident")
    with pytest.raises(FairfaceError, match="no image belongs to nobody"):
        train_run(workspace, 3, replace(options, balance={"nobody": 1.0}))


def test_a_conditional_run_learns_the_labels_and_is_sampled_by_them(workspace):
    options = replace(TINY, conditional="gender")
    config = train_run(workspace, 30, options, run="conditional").config
    counts = dict(pl.read_parquet(workspace.shards.images)["gender"].value_counts().iter_rows())
    assert config.classes == {name: counts[name] / 240 for name in ("female", "male")}
    train_run(workspace, 9, options, run="resumed")
    train_run(workspace, 30, options, run="resumed")
    assert is_equal(run_weights(workspace, "conditional", 30), run_weights(workspace, "resumed", 30))
    assert abs((sample_groups(workspace, 200) == "female").mean() - counts["female"] / 240) < 0.12
    assert set(sample_groups(workspace, 20, "male")) == {"male"}
    with pytest.raises(FairfaceError, match="the generator knows female, male"):
        sample_groups(workspace, 2, "child")


def test_conditions_that_the_images_cannot_meet_are_refused(workspace):
    options = replace(TINY, conditional="gender")
    with pytest.raises(FairfaceError, match="the same label"):
        train_run(workspace, 3, replace(options, balance="uniform", balance_by="age"))
    with pytest.raises(FairfaceError, match="no image has the label"):
        train_run(workspace, 3, replace(options, conditional="race"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here")
def test_a_compiled_bf16_run_on_a_gpu(workspace):
    options = replace(TINY, precision="auto", compile=None)
    config = train_run(workspace, 60, options, preset="faces").config
    assert (config.options["precision"], config.options["compile"]) == ("bf16", True)
