"""The evaluation of the labellers: on which images, what is selected, and what its errors do to corrected shares."""

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from models.probe import Probe
from pipeline.labelling import probe
from pipeline.labelling.embedded_fit import render_faces
from pipeline.labelling.label import LabelConfig, label
from reports.estimation import correction, distances
from shards.attributes import workspace_attributes
from shards.documents import LabelsDocument, file_hashes, load_shards_json, read_document, write_document

QUIET = LabelConfig(progress=False)


def test_labellers_are_evaluated_on_images_that_the_probe_was_not_fitted_to(workspace):
    accuracies = label(workspace, QUIET).accuracies
    train, generated = workspace.shards.label_files, workspace.run("mine").label_files
    assert len(pl.read_parquet(train.probe_labels)) == 120  # the probe was fitted to the other half
    assert len(pl.read_parquet(generated.probe_labels)) == 240
    assert set(accuracies["n"]) == {120}
    assert accuracies.group_by("attribute").agg(pl.col("selected").sum())["selected"].to_list() == [1] * 6
    assert not accuracies.filter(method="pixels")["selected"].any()  # only a check, however good
    best = accuracies.filter("selected").join(accuracies.filter(pl.col("method") != "pixels"), on="attribute")
    assert (best["balanced_accuracy"] >= best["balanced_accuracy_right"]).all()


def test_both_sides_are_labelled_by_the_same_probe(workspace):
    label(workspace, QUIET)
    train, generated = workspace.shards.label_files, workspace.run("mine").label_files
    names = pl.concat([pl.read_parquet(files.probe_labels) for files in (train, generated)])["labeller"].unique()
    assert len(names) == 1
    probabilities = pl.read_parquet(generated.probe_labels)["p_gender"].list.sum()
    assert np.allclose(probabilities, 1, atol=1e-5)
    pixels = pl.read_parquet(generated.pixels)
    truth = pl.read_parquet(workspace.shards.images).filter(status="packed")
    assert (pixels["skin_tone"] == truth["skin_tone"]).mean() > 0.9


def test_the_order_in_which_a_probe_is_loaded_changes_no_table(workspace):
    label(workspace, QUIET)
    files, attributes = workspace.run("mine").label_files, workspace_attributes(workspace)
    document, table = read_document(files.document, LabelsDocument), pl.read_parquet(files.probe_labels)
    state = load_file(workspace.shards.label_files.probe_weights)
    vectors = probe.embedding_tensor(pl.read_parquet(files.embeddings))
    for names in (sorted(state), sorted(state, reverse=True)):
        loaded = Probe({name: state[name] for name in names})
        labels = probe.probe_labels(table["key"], vectors=vectors, probe=loaded, attributes=attributes, labels=document)
        assert labels.equals(table)


def test_a_second_labelling_writes_nothing(workspace):
    label(workspace, QUIET)
    folders = (workspace.shards.folder, workspace.run("mine").folder)
    before = {path: path.stat().st_mtime_ns for folder in folders for path in folder.iterdir()}
    assert all(side.unchanged for side in label(workspace, QUIET).sides)
    assert {path: path.stat().st_mtime_ns for folder in folders for path in folder.iterdir()} == before


def test_without_annotations_nothing_is_evaluated_and_older_results_are_removed(workspace):
    label(workspace, QUIET)
    path = workspace.shards.images
    images = pl.read_parquet(path).with_columns(pl.lit(None, pl.String).alias(n) for n in ("gender", "age"))
    images.with_columns(skin_tone=pl.lit(None, pl.Int8)).write_parquet(path)
    document = load_shards_json(workspace.shards)
    document.files |= file_hashes(path)
    write_document(workspace.shards.document, document)
    assert label(workspace, LabelConfig(progress=False, force=True)).accuracies is None
    for files in (workspace.shards.label_files, workspace.run("mine").label_files):
        assert not files.probe_labels.exists()
        assert not files.labellers.exists()


@pytest.fixture(scope="module")
def faces():
    """1,200 synthetic faces and their classes."""
    return render_faces(1200, 77, progress=False)


@pytest.fixture(scope="module", params=[False, True], ids=["float32", "bfloat16"])
def labelled_faces(request, faces, quick_labeller):
    """Classes and labels of the faces, int64 [1200] each, by attribute: gender and skin group."""
    images, classes = faces
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quick_labeller, "bf16", request.param)
        by_attribute = [quick_labeller.label(batch)[0] for batch in images.split(400)]
    labels = {name: torch.cat([batch[name] for batch in by_attribute]).argmax(1) for name in ("gender", "skin_tone")}
    group_ends = torch.tensor([2, 5])
    groups = [torch.bucketize(tones.contiguous(), group_ends).numpy() for tones in (classes[:, 2], labels["skin_tone"])]
    return {"gender": (classes[:, 0].numpy(), labels["gender"].numpy()), "skin_group": tuple(groups)}


@pytest.mark.parametrize(("attribute", "shares"), [("gender", (0.2, 0.8)), ("skin_group", (0.8, 0.15, 0.05))])
def test_correction_halves_the_error_of_skewed_shares(labelled_faces, attribute, shares):
    """Samples of another distribution than the calibration faces, and a labeller that is often wrong."""
    rng, classes = np.random.default_rng(0), len(shares)
    truth, labels = labelled_faces[attribute]
    calibration = np.arange(1200) < 500
    pools = [np.flatnonzero(~calibration & (truth == one)) for one in range(classes)]
    size = min(len(pool) / share for pool, share in zip(pools, shares, strict=True))
    samples = [rng.choice(pool, int(size * share), replace=False) for pool, share in zip(pools, shares, strict=True)]
    target = np.array([len(part) for part in samples]) / sum(map(len, samples))
    counts = np.bincount(labels[np.concatenate(samples)], minlength=classes)
    confusion = np.zeros((classes, classes), int)
    np.add.at(confusion, (truth[calibration], labels[calibration]), 1)
    corrected = correction.correct_shares(counts, confusion, seed=0)
    raw, after = (distances.total_variation(p, target) for p in (counts / counts.sum(), corrected.shares))
    assert raw > 0.1
    assert after <= raw / 2  # a quarter in large samples; here 500 faces calibrate a labeller fitted in seconds
    assert not correction.raw_is_better(counts, corrected)
