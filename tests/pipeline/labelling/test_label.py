"""Labelling: what is labelled again after a kill or damage, what is refused, and how ranks share the work."""

from dataclasses import replace
from operator import attrgetter
from types import SimpleNamespace

import polars as pl
import pytest
import torch
from safetensors.torch import save

from models.probe import Probe
from pipeline.data import shard_set
from pipeline.data.shard_set import ShardSet
from pipeline.labelling import side
from pipeline.labelling.label import LabelConfig, label
from pipeline.labelling.probe import evaluate_labellers, load_current_probe
from pipeline.labelling.side import LabelKinds, Side, find_part, new_document
from shards import distributed
from shards.attributes import built_in_attributes
from shards.documents import (
    LabelsDocument,
    ProbeDocument,
    SamplesDocument,
    changed_files,
    file_hashes,
    read_document,
    samples_images_hash,
    training_images_hash,
    write_document,
)
from shards.errors import FairfaceError
from shards.locks import LockHeld, exclusive_lock
from tests.pipeline.labelling.conftest import stop_after

QUIET = LabelConfig(progress=False)
LABELLING = {"device": torch.device("cpu"), "batch_size": 64, "progress": False}


@pytest.fixture
def training_side(workspace, quick_labeller) -> Side:
    """The training images, to be labelled at 64 pixels."""
    keys = pl.read_parquet(workspace.run("mine").samples_table)["key"]
    labels = LabelKinds(quick_labeller, has_skin_tones=True)
    document = new_document(source="train", run=None, labels=labels, size=64, images=len(keys), images_hash="")
    return Side(workspace.shards.label_files, ShardSet.open(workspace.shards), keys, document, labels)


def write_labels_document(files, labeller):
    document = LabelsDocument(
        source="train", run=None, labeller=labeller, size=64, images=240, fingerprint="", files={}
    )
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
    with pytest.raises(FairfaceError, match=r"is of format 1, and this version reads 4: .*fairface label --force"):
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
    other = Probe.fit(torch.randn(100, 4), {"gender": torch.arange(100) % 2}, sizes={"gender": 2})
    for content in (b"nothing", save(other.state), save({"mean": torch.zeros(3)})):
        before = path.read_bytes()
        path.write_bytes(content)
        label(workspace, QUIET)
        assert path.read_bytes() == before


def test_a_cut_off_part_is_labelled_again(training_side, tmp_path, quick_labeller):
    parts = tmp_path / "parts"
    training_side.label_parts(parts, **LABELLING)
    path = find_part(parts, 1)
    before = path.read_bytes()
    for damaged in (before[:-100], before[:1000] + bytes([before[1000] ^ 1]) + before[1001:]):
        path.write_bytes(damaged)
        training_side.label_parts(parts, **LABELLING)
        assert path.read_bytes() == before


def test_changed_bytes_in_samples_are_reported_in_one_line(workspace):
    tar = workspace.run("mine").sample_tars()[0]
    content = bytearray(tar.read_bytes())
    content[700:900] = bytes(200)
    tar.write_bytes(content)
    with pytest.raises(FairfaceError, match=r"was changed after it was written.*fairface sample --force") as error:
        label(workspace, QUIET)
    assert "\n" not in str(error.value)


def test_the_table_of_images_is_read_once_by_the_loader(workspace, monkeypatch):
    paths, read_images = [], shard_set.read_images
    monkeypatch.setattr(
        shard_set, "read_images", lambda path, *rest, **more: (paths.append(path), read_images(path, *rest, **more))[1]
    )
    label(workspace, QUIET)
    assert len(paths) == 1


@pytest.mark.parametrize("lock", ["shards.lock", "shards.label_files.lock", "run.samples_lock", "run.label_files.lock"])
def test_labelling_is_refused_while_another_command_writes(workspace, lock):
    folders = SimpleNamespace(shards=workspace.shards, run=workspace.run("mine"))
    with (
        exclusive_lock(attrgetter(lock)(folders), "a test"),
        pytest.raises(LockHeld, match=r"another process is using .*before labelling"),
    ):
        label(workspace, QUIET)
    assert not workspace.shards.label_files.document.exists()


@pytest.mark.parametrize("lock", ["shards.lock", "shards.label_files.lock", "run.samples_lock", "run.label_files.lock"])
def test_nothing_that_labels_depend_on_is_written_while_they_are_made(workspace, monkeypatch, lock):
    folders, label_images, tried = SimpleNamespace(shards=workspace.shards, run=workspace.run("mine")), [], []
    label_images = side.label_images

    def try_lock(*args, **kwargs):
        tried.append(1)
        with pytest.raises(LockHeld), exclusive_lock(attrgetter(lock)(folders), "sampling"):
            pass
        return label_images(*args, **kwargs)

    monkeypatch.setattr(side, "label_images", try_lock)
    label(workspace, QUIET)
    assert len(tried) == 6


def test_labels_state_their_images_and_files(workspace):
    label(workspace, QUIET)
    run = workspace.run("mine")
    hashes = training_images_hash(workspace.shards), samples_images_hash(run)
    for files, images_hash in zip((workspace.shards.label_files, run.label_files), hashes, strict=True):
        labels = read_document(files.document, LabelsDocument)
        assert labels.images_hash == images_hash
        assert labels.files == file_hashes(files.labels, files.pixels, files.embeddings)
        assert labels.evaluated
        weights = [files.probe_weights, files.labellers] if files.folder == workspace.shards.folder else []
        assert read_document(files.probe_document, ProbeDocument).files == file_hashes(files.probe_labels, *weights)


def test_labels_of_other_images_are_not_evaluated(workspace):
    label(workspace, QUIET)
    run = workspace.run("mine")
    samples = read_document(run.samples_document, SamplesDocument)
    write_document(run.samples_document, replace(samples, fingerprint="other"))
    with pytest.raises(FairfaceError, match="are labels of other samples than the present ones"):
        evaluate_labellers(workspace.shards, run, attributes=built_in_attributes())
    assert not label(workspace, QUIET).sides[1].unchanged


def test_a_flipped_bit_is_noticed(workspace, training_side):
    label(workspace, QUIET)
    files = workspace.shards.label_files
    document, probe = (
        read_document(path, kind)
        for path, kind in ((files.document, LabelsDocument), (files.probe_document, ProbeDocument))
    )
    training_side.document.fingerprint = document.fingerprint
    for path in (*map(files.folder.joinpath, document.files), *map(files.folder.joinpath, probe.files)):
        assert training_side.find_labels()
        assert load_current_probe(files, probe.fingerprint)
        before = path.read_bytes()
        for position in (10, len(before) // 2, len(before) - 10):
            path.write_bytes(before[:position] + bytes([before[position] ^ 4]) + before[position + 1 :])
            assert not (training_side.find_labels() and load_current_probe(files, probe.fingerprint))
        path.write_bytes(before)


@pytest.mark.attack
def test_a_labelling_that_is_stopped_at_any_step_is_repaired(workspace, monkeypatch):
    """Labels of another size replaced with --force, stopped at every rename or removal of a file."""
    run = workspace.run("mine")
    sides = workspace.shards.label_files, run.label_files
    label(workspace, QUIET)
    paths = [path for files in sides for path in files.all() if path.exists()]
    expected = {path: path.read_bytes() for path in paths if path.suffix != ".json"}
    samples, documents = read_document(run.samples_document, SamplesDocument), [files.document for files in sides]
    write_document(run.samples_document, replace(samples, image_size=48))
    label(workspace, LabelConfig(progress=False, force=True))
    before = {path: path.read_bytes() for files in sides for path in files.all() if path.exists()}
    write_document(run.samples_document, samples)
    for steps in range(1, 100, 12):
        for path, content in before.items():
            path.write_bytes(content)
        with monkeypatch.context() as patch:
            stop_after(patch, steps)
            try:
                label(workspace, QUIET)
                break
            except KeyboardInterrupt:
                pass
        for files, path in zip(sides, documents, strict=True):
            if document := read_document(path, LabelsDocument):
                assert not changed_files(files.folder, document.files)
            if document := read_document(files.probe_document, ProbeDocument):
                assert not changed_files(files.folder, document.files)
        label(workspace, QUIET)
        assert {path: path.read_bytes() for path in expected} == expected
    assert steps > 15


def test_links_in_the_place_of_parts_are_refused(workspace, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    parts = workspace.shards.label_files.parts
    parts.symlink_to(elsewhere)
    with pytest.raises(FairfaceError, match="is a link"):
        label(workspace, QUIET)
    parts.unlink()
    parts.mkdir()
    (parts / "x").symlink_to(elsewhere)
    with pytest.raises(FairfaceError, match="is a link"):
        label(workspace, QUIET)
    assert not list(elsewhere.iterdir())


def test_a_folder_in_the_place_of_a_file_is_refused_before_anything_is_labelled(workspace, monkeypatch):
    monkeypatch.setattr(side, "label_images", lambda *_, **__: pytest.fail("labelled"))
    workspace.shards.label_files.pixels.mkdir()
    with pytest.raises(FairfaceError, match=r"pixels\.parquet is a folder where a file should be"):
        label(workspace, QUIET)


@pytest.mark.parametrize(
    "table",
    [
        pl.DataFrame({"index": [1]}),
        pl.DataFrame({"key": [1] * 240}),
        pl.DataFrame({"key": ["a"] * 239}),
        pl.DataFrame({"key": [None] * 240}, schema={"key": pl.String}),
        pl.DataFrame({"key": [["a"]] * 240}),
    ],
    ids=["no key", "numbers", "too few", "null", "lists"],
)
def test_a_table_of_samples_of_another_shape_is_refused_in_one_line(workspace, table):
    run = workspace.run("mine")
    table.write_parquet(run.samples_table)
    samples = read_document(run.samples_document, SamplesDocument)
    write_document(run.samples_document, replace(samples, files=file_hashes(run.samples_table)))
    with pytest.raises(FairfaceError, match=r"samples\.parquet") as error:
        label(workspace, QUIET)
    assert "\n" not in str(error.value)


def test_embeddings_of_another_shape_are_refused_in_one_line(workspace):
    label(workspace, QUIET)
    run = workspace.run("mine")
    changes = {
        "dimension": pl.col("embedding").arr.to_list().list.slice(0, 8).list.to_array(8),
        "type": pl.col("embedding").cast(pl.Array(pl.Float32, 64)),
        "null": pl.when(pl.col("key") > "0").then(None).otherwise("embedding").alias("embedding"),
        "rows": pl.col("embedding"),
        "name": pl.col("embedding").alias("vector"),
    }
    for files in (run.label_files, workspace.shards.label_files):
        before, document = files.embeddings.read_bytes(), read_document(files.document, LabelsDocument)
        for name, change in changes.items():
            table = pl.read_parquet(before).select("key", change).head(239 if name == "rows" else 240)
            table.write_parquet(files.embeddings)
            write_document(files.document, replace(document, files=document.files | file_hashes(files.embeddings)))
            files.probe_document.unlink()
            with pytest.raises(FairfaceError, match=r"embeddings\.parquet") as error:
                evaluate_labellers(workspace.shards, run, attributes=built_in_attributes())
            assert "\n" not in str(error.value)
            files.embeddings.write_bytes(before)
            write_document(files.document, document)
            workspace.shards.label_files.probe_document.unlink(missing_ok=True)
            evaluate_labellers(workspace.shards, run, attributes=built_in_attributes())


def test_a_document_of_samples_of_an_impossible_size_is_refused(workspace):
    run = workspace.run("mine")
    samples = read_document(run.samples_document, SamplesDocument)
    for size in (0, -1, 10**9):
        write_document(run.samples_document, replace(samples, image_size=size))
        with pytest.raises(FairfaceError, match=r"samples\.json is damaged \(image_size"):
            label(workspace, QUIET)


def test_tars_with_other_numbers_of_images_than_listed_are_refused_in_one_line(workspace):
    run = workspace.run("mine")
    samples = read_document(run.samples_document, SamplesDocument)
    first, second, third = samples.shards
    shards = [replace(first, images=first.images + 1), replace(second, images=second.images - 1), third]
    write_document(run.samples_document, replace(samples, shards=shards))
    with pytest.raises(FairfaceError, match=r"does not list the samples in shard-000000\.tar"):
        label(workspace, QUIET)


def test_incomplete_parts_are_not_merged(training_side, tmp_path, quick_labeller):
    parts = tmp_path / "parts"
    training_side.label_parts(parts, **LABELLING)
    find_part(parts, 1).unlink()
    with pytest.raises(FairfaceError, match="are missing"):
        training_side.merge_parts(parts)
    assert not training_side.files.labels.exists()


def test_a_damaged_or_missing_table_of_samples_is_reported(workspace):
    label(workspace, QUIET)
    path = workspace.run("mine").samples_table
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(FairfaceError, match=r"samples\.parquet was changed"):
        label(workspace, QUIET)
    path.unlink()
    with pytest.raises(FairfaceError, match=r"samples\.parquet is missing"):
        label(workspace, QUIET)


def test_ranks_share_the_shards(training_side, tmp_path, quick_labeller, monkeypatch):
    parts, training_side.keys = tmp_path / "parts", training_side.keys[:150]
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    for rank, expected in ((1, ["000001"]), (0, ["000000", "000001"])):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        training_side.label_parts(parts, **LABELLING)
        assert sorted(path.stem[:6] for path in parts.glob("*.parquet")) == expected
    assert len(pl.read_parquet(find_part(parts, 1))) == 50


def test_other_classes_are_labelled_again_and_what_the_labeller_does_not_know_is_not_labelled(workspace):
    assert not any(side.unchanged for side in label(workspace, QUIET).sides)
    workspace.attributes.write_text("""
        [gender]
        title = "Gender"
        subject = "gender balance"
        plural = "genders"
        classes = { male = {}, female = {}, other = {} }
        """)
    assert not any(side.unchanged for side in label(workspace, QUIET).sides)
    for files in (workspace.shards.label_files, workspace.run("mine").label_files):
        labels = pl.read_parquet(files.labels)
        assert "gender" not in labels.columns
        assert {"age", "p_age", "skin_tone"} <= set(labels.columns)
    assert all(side.unchanged for side in label(workspace, QUIET).sides)
