"""Which faces detectors are trained and evaluated on, and in what order."""

import shutil
from dataclasses import replace

import polars as pl
import pytest
import torch

from pipeline.data.decoder import DecoderConfig
from pipeline.data.loader import load_resident
from pipeline.data.sampler import PairedSampler, RankSlice
from pipeline.detection.dataset import build_pool
from shards.errors import FairfaceError
from shards.workspace import Workspace
from tests.pipeline.detection.helpers import SMALL, predictions, train
from tests.reports.fake_workspace import replace_table

CPU = torch.device("cpu")


def test_annotated_faces_are_selected_by_target_and_split(annotated):
    faces = build_pool(annotated)
    assert (faces.grouped_by, faces.image_size, faces.run) == ("annotated", None, None)
    assert faces.counts() == {"train_real": 40, "train_fake": 80, "test_real": 10, "test_fake": 20}
    images = pl.read_parquet(annotated.shards.images).filter(status="packed")
    assert faces.rows["key"].equals(images["key"])  # in tar order
    rows = faces.rows.with_columns(family_name=images["family"], target=images["target"], split=images["split"])
    for name, number in (("Real", 0), ("GANs", 2), ("DMs", 3)):
        assert set(rows.filter(family_name=name)["family"]) == {number}
    assert set(rows.filter(split="test")["test"]) == {True}
    groups = images.select(pl.col("gender") + "-" + pl.col("skin_group")).to_series()
    assert rows["group"].to_list() == groups.to_list()
    assert sum(faces.group_counts().values()) == 120


def test_synthetic_faces_are_paired_with_the_newest_samples(sampled):
    faces = build_pool(sampled)
    assert (faces.grouped_by, faces.image_size, faces.run) == ("labelled", 32, "mine")
    counts = faces.counts()
    assert sum(counts.values()) == 240 + 90
    assert 30 <= counts["test_real"] <= 70
    assert 8 <= counts["test_fake"] <= 30
    assert build_pool(sampled).rows.equals(faces.rows)  # the same test faces for every detector
    assert set(faces.rows.filter("fake")["family"]) == {2}
    assert set(faces.rows["group"].drop_nulls()) <= set(faces.attribute.names)
    assert build_pool(sampled, run="early").run == "early"


def test_paired_batches_have_the_real_faces_first_and_every_fake_once():
    fake = torch.tensor([True, False, True, True, False, True, False] * 10)
    sampler = PairedSampler([30, 40], 0, batch_size=8, real=~fake, fake=fake)
    epochs = [sampler.indices(epoch) for epoch in range(4)]
    assert sampler.images_per_epoch == 80
    for indices in epochs:
        for batch in indices.split(8):
            assert fake[batch].tolist() == [False] * 4 + [True] * 4
        fakes = indices[fake[indices]].tolist()
        assert len(set(fakes)) == 40
    reals = torch.cat([indices[~fake[indices]] for indices in epochs]).tolist()
    assert all(len(set(reals[i : i + 30])) == 30 for i in (0, 30, 60))  # all of them before one is repeated


def test_ranks_share_real_faces_and_fakes(sampled):
    faces = build_pool(sampled)
    shares = [faces.rank_share(RankSlice(rank, 3)) for rank in range(3)]
    owned = [share.rows.filter(pl.col("fake").is_not_null()).select("source", "key").rows() for share in shares]
    everyone = faces.rows.select("source", "key").rows()
    assert sorted(face for rank in owned for face in rank) == sorted(everyone)  # each belongs to one rank
    positions = {face: i for i, face in enumerate(everyone)}
    decoder = DecoderConfig(pre_resize=32)
    all_pixels = load_resident(faces.shards, 64, device=CPU, decoder=decoder, progress=False)
    for share in shares:
        assert len(share.rows) == share.shards.images == sum(share.shards.sizes)
        assert min(share.counts().values()) > 0
        pixels = load_resident(share.shards, 64, device=CPU, decoder=decoder, progress=False)
        for i in (0, len(share.rows) - 1):  # the rows describe the pixels
            assert torch.equal(pixels[i], all_pixels[positions[share.rows.select("source", "key").row(i)]])


def test_missing_real_faces_or_fakes_are_named(packed, annotated, tmp_path):
    (tmp_path / "shards").symlink_to(Workspace(packed).shards.folder)
    with pytest.raises(FairfaceError, match="there is no run"):
        build_pool(Workspace(tmp_path))
    with pytest.raises(FairfaceError, match="no real faces to train a detector with"):
        build_pool(Workspace(packed), "images")
    with pytest.raises(FairfaceError, match="--fakes samples"):
        build_pool(annotated, "images", run="x")


def test_faces_of_unknown_target_or_for_validation_are_not_used(annotated, tmp_path):
    shutil.copytree(annotated.root, tmp_path, dirs_exist_ok=True)
    workspace = Workspace(tmp_path)
    images = pl.read_parquet(workspace.shards.images)
    number = pl.int_range(pl.len())
    images = images.with_columns(
        target=pl.when(number % 10 == 0).then(None).otherwise("target"),
        split=pl.when(number % 10 == 1).then(pl.lit("val")).otherwise("split"),
    )
    replace_table(workspace.shards.images, images)
    faces = build_pool(workspace)
    assert len(faces.rows.filter(pl.col("fake").is_null())) == 30
    assert sum(faces.counts().values()) == 120
    assert sum(faces.group_counts().values()) == faces.counts()["train_real"] + faces.counts()["train_fake"]
    test = faces.mask(fake=False, test=True) | faces.mask(fake=True, test=True)
    assert not (faces.mask(fake=False) | faces.mask(fake=True) | test)[::10].any()
    train(workspace, steps=1)
    assert len(predictions(workspace)) == int(test.sum())
    replace_table(workspace.shards.images, images.with_columns(split=pl.lit("test")))
    with pytest.raises(FairfaceError, match="faces to train a detector with"):  # test faces are not used for training
        build_pool(workspace)
    result = train(workspace, steps=0, name="published")
    assert (result.counts["train_real"], result.counts["train_fake"]) == (0, 0)
    assert len(predictions(workspace, "published")) == 135  # the 15 of unknown target are left out
    assert train(workspace, replace(SMALL, model="daw_fdd"), steps=0, name="groups").steps == 0  # none are trained on
    with pytest.raises(FairfaceError, match="faces to train a detector with"):
        train(workspace, replace(SMALL, model="daw_fdd"), steps=1, name="groups")
