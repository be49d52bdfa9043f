"""Labelling: what is labelled again after a kill or damage, what is refused, and how ranks share the work."""

import polars as pl
import pytest
import torch
from safetensors.torch import save

from models.probe import Probe
from pipeline.data import shard_set
from pipeline.data.shard_set import ShardSet
from pipeline.labelling import side
from pipeline.labelling.label import LabelConfig, label
from pipeline.labelling.side import Side, new_document
from shards import distributed
from shards.atomic_io import exclusive_lock
from shards.documents import LabelsDocument, write_document
from shards.errors import FairfaceError

QUIET = LabelConfig(progress=False)
LABELLING = {"device": torch.device("cpu"), "batch_size": 64, "progress": False}


@pytest.fixture
def training_side(workspace) -> Side:
    """The training images, to be labelled at 64 pixels."""
    keys = pl.read_parquet(workspace.run("mine").samples_table)["key"]
    document = new_document(source="train", run=None, labeller="x@1", size=64, images=len(keys), images_hash="")
    return Side(workspace.shards.label_files, ShardSet.open(workspace.shards), keys, document)


def write_labels_document(files, labeller):
    document = LabelsDocument(source="train", run=None, labeller=labeller, size=64, images=240, fingerprint="")
    write_document(files.document, document)


def test_a_killed_labelling_resumes_with_the_missing_shards(workspace, monkeypatch):
    label_images, calls = side.label_images, []

    def fail_in_the_third_shard(shards, *args, **kwargs):
        calls.append(shards.names)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return label_images(shards, *args, **kwargs)

    monkeypatch.setattr(side, "label_images", fail_in_the_third_shard)
    with pytest.raises(KeyboardInterrupt):
        label(workspace, QUIET)
    files = workspace.shards.label_files
    assert not files.labels.exists()
    label(workspace, QUIET)
    repeated = [names for names in calls if calls.count(names) > 1]
    assert len(calls) == 1 + 6  # three tars on either side, the interrupted one twice
    assert len(repeated) >= 2
    samples = pl.read_parquet(workspace.run("mine").samples_table)
    assert pl.read_parquet(files.labels)["key"].to_list() == sorted(samples["key"])
    assert not files.parts.exists()


def test_labels_of_another_model_are_replaced_only_on_request(workspace):
    train, generated = workspace.shards.label_files, workspace.run("mine").label_files
    for files in (train, generated):
        write_labels_document(files, "ViT-B-32@1")
        with pytest.raises(FairfaceError, match="has labels of ViT-B-32@1"):
            label(workspace, QUIET)
        files.document.unlink()
    write_labels_document(train, "synthetic-faces@old")
    assert not label(workspace, QUIET).sides[0].unchanged
    write_labels_document(train, "ViT-B-32@1")
    label(workspace, LabelConfig(progress=False, force=True))
    write_labels_document(generated, "imported x.csv@1")
    with pytest.raises(FairfaceError, match=r"labels imported x\.csv@1: choose another --run, or replace"):
        label(workspace, LabelConfig(progress=False, model="embedded"))


def test_labels_of_another_version_are_refused_without_force(workspace):
    document = workspace.shards.label_files.document
    document.write_text('{"format": 1, "labeller": "synthetic-faces@old"}')
    with pytest.raises(FairfaceError, match=r"is of format 1, and this version reads 2: .*fairface label --force"):
        label(workspace, QUIET)
    assert not label(workspace, LabelConfig(progress=False, force=True)).sides[0].unchanged


def test_cut_off_tables_are_written_again(workspace):
    label(workspace, QUIET)
    train, generated = workspace.shards.label_files, workspace.run("mine").label_files
    for name in ("labels", "embeddings", "pixels", "probe_labels"):
        paths = getattr(train, name), getattr(generated, name)
        before = [path.read_bytes() for path in paths]
        for path, content in zip(paths, before, strict=True):
            path.write_bytes(content[:-20])
        label(workspace, QUIET)
        for path, content in zip(paths, before, strict=True):
            assert pl.read_parquet(path).equals(pl.read_parquet(content))


def test_a_damaged_probe_is_fitted_again(workspace):
    label(workspace, QUIET)
    path = workspace.shards.label_files.probe_weights
    other = Probe.fit(torch.randn(100, 4), {"gender": torch.arange(100) % 2})
    for content in (b"nothing", save(other.state), save({"mean": torch.zeros(3)})):
        before = path.read_bytes()
        path.write_bytes(content)
        label(workspace, QUIET)
        assert path.read_bytes() == before


def test_a_cut_off_part_is_labelled_again(training_side, tmp_path, quick_labeller):
    parts = tmp_path / "parts"
    training_side.label_parts(parts, quick_labeller, **LABELLING)
    before = (parts / "000001.parquet").read_bytes()
    (parts / "000001.parquet").write_bytes(before[:-100])
    training_side.label_parts(parts, quick_labeller, **LABELLING)
    assert (parts / "000001.parquet").read_bytes() == before


def test_changed_bytes_in_samples_are_reported_in_one_line(workspace):
    tar = workspace.run("mine").sample_tars()[0]
    content = bytearray(tar.read_bytes())
    content[700:900] = bytes(200)
    tar.write_bytes(content)
    with pytest.raises(FairfaceError, match=r"was changed after it was written.*fairface sample --force") as error:
        label(workspace, QUIET)
    assert "\n" not in str(error.value)


def test_the_table_of_images_is_read_once_by_the_loader(workspace, monkeypatch):
    paths, read_parquet = [], shard_set.read_parquet
    monkeypatch.setattr(
        shard_set, "read_parquet", lambda path, *rest: (paths.append(path), read_parquet(path, *rest))[1]
    )
    label(workspace, QUIET)
    assert len(paths) == 1


def test_two_labellings_at_once_are_refused(workspace):
    with (
        exclusive_lock(workspace.shards.folder, "labelling"),
        pytest.raises(FairfaceError, match="another process"),
    ):
        label(workspace, QUIET)


def test_incomplete_parts_are_not_merged(training_side, tmp_path, quick_labeller):
    parts = tmp_path / "parts"
    training_side.label_parts(parts, quick_labeller, **LABELLING)
    (parts / "000001.parquet").unlink()
    with pytest.raises(FairfaceError, match="are missing"):
        training_side.merge_parts(parts)
    assert not training_side.files.labels.exists()


def test_a_damaged_or_missing_table_of_samples_is_reported(workspace):
    label(workspace, QUIET)
    path = workspace.run("mine").samples_table
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(FairfaceError, match=r"samples\.parquet can't be read"):
        label(workspace, QUIET)
    path.unlink()
    with pytest.raises(FairfaceError, match=r"samples\.parquet is missing"):
        label(workspace, QUIET)


def test_ranks_share_the_shards(training_side, tmp_path, quick_labeller, monkeypatch):
    parts, training_side.keys = tmp_path / "parts", training_side.keys[:150]
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    for rank, expected in ((1, ["000001"]), (0, ["000000", "000001"])):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        training_side.label_parts(parts, quick_labeller, **LABELLING)
        assert sorted(path.stem for path in parts.glob("*.parquet")) == expected
    assert len(pl.read_parquet(parts / "000001.parquet")) == 50
