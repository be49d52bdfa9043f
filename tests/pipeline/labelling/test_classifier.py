"""The classifier: what it is fitted to, when it is fitted again, what it labels, and where it takes CLIP's place."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

import models.classifier
from models import clip
from pipeline.data.shard_set import ShardSet
from pipeline.labelling import classifier, classifier_fit
from pipeline.labelling.accuracy import agreement
from pipeline.labelling.classifier import ClassifierData, load_classifier
from pipeline.labelling.label import LabelConfig, label
from pipeline.labelling.side import LabelKinds, label_images
from pipeline.labelling.tables import most_probable
from pipeline.verify import verify
from shards import pack
from shards.attributes import built_in_attributes
from shards.documents import ClassifierDocument, file_hashes, load_shards_json, read_document, write_document
from shards.errors import FairfaceError, WeightsUnavailable
from shards.plan import PackConfig
from shards.workspace import Workspace
from tests.ranks import finish_ranks, run_rank

PHOTOGRAPHS = Path(__file__).parents[4] / "shared/reference/annotated-faces"
CPU = torch.device("cpu")
QUIET = LabelConfig(progress=False)
IN_ADDITION = replace(QUIET, classifier=True)


SMALL_WIDTHS = (8, 16, 32, 64)


@pytest.fixture(autouse=True)
def quick_fit(request, monkeypatch):
    """A small network and at most two epochs, except for photographs."""
    if "full_network" in request.fixturenames:
        return
    monkeypatch.setattr(models.classifier, "WIDTHS", SMALL_WIDTHS)
    monkeypatch.setattr(classifier_fit, "MAX_EPOCHS", 2)
    monkeypatch.setattr(classifier_fit, "MIN_EPOCHS", 2)


@pytest.fixture
def full_network():
    """Fit the network that photographs are labelled with."""


@pytest.fixture
def fits(monkeypatch):
    """The images of every fit."""
    found, fit_classifier = [], classifier_fit.fit_classifier

    def counted(data, config):
        found.append(data.images)
        return fit_classifier(data, config)

    monkeypatch.setattr(classifier_fit, "fit_classifier", counted)
    return found


def unavailable(*_, **__):
    raise WeightsUnavailable("the weights are not here")


@pytest.fixture
def real(workspace, monkeypatch):
    """The workspace, as if its faces were photographs, on a machine without CLIP's weights."""
    monkeypatch.setattr(clip, "load_labeller", unavailable)
    document = load_shards_json(workspace.shards)
    document.synthetic = False
    write_document(workspace.shards.document, document)
    return workspace


def edit_annotations(workspace, *columns):
    """Change annotations of the packed images, by Polars expressions."""
    path = workspace.shards.images
    pl.read_parquet(path).with_columns(columns).write_parquet(path)
    document = load_shards_json(workspace.shards)
    document.files |= file_hashes(path)
    document.manifest += "."
    write_document(workspace.shards.document, document)


def test_a_classifier_takes_the_place_of_missing_weights(real, fits, capsys):
    accuracies = label(real, QUIET).accuracies
    train, generated = real.shards.label_files, real.run("mine").label_files
    assert "the classifier labels in place of CLIP" in capsys.readouterr().err
    assert [len(images) for images in fits] == [120]
    labels = pl.read_parquet(train.labels)
    assert labels["method"].unique().to_list() == ["classifier"]
    keys = pl.read_parquet(train.embeddings)["key"]
    assert set(labels["key"]) == set(keys[1::2])  # it was fitted to the others
    assert len(pl.read_parquet(generated.labels)) == 240
    assert set(accuracies["method"]) == {"classifier", "pixels"}
    assert (accuracies.filter(method="classifier")["selected"]).all()
    assert not train.probe_labels.exists()


def test_a_second_labelling_fits_nothing(real, fits):
    label(real, QUIET)
    assert all(side.unchanged for side in label(real, QUIET).sides)
    label(real, replace(QUIET, force=True))
    assert len(fits) == 1


@pytest.mark.parametrize("config", [QUIET, IN_ADDITION])
def test_a_limit_that_leaves_no_held_out_image_is_refused(config, real):
    with pytest.raises(FairfaceError, match="fitted to all of the 1 training images that"):
        label(real, replace(config, limit=1))
    assert not real.shards.label_files.document.exists()


def test_changed_annotations_are_fitted_again(real, fits):
    label(real, QUIET)
    edit_annotations(real, pl.col("gender").reverse())
    assert not any(side.unchanged for side in label(real, QUIET).sides)
    assert len(fits) == 2


def test_a_damaged_classifier_is_fitted_again_to_the_same_weights(real, fits):
    label(real, QUIET)
    path = real.shards.label_files.classifier_weights
    before = path.read_bytes()
    path.write_bytes(before[:-20])
    assert all(side.unchanged for side in label(real, QUIET).sides)
    assert path.read_bytes() == before
    assert len(fits) == 2


def test_an_interrupted_fit_continues_to_the_same_weights(real, monkeypatch):
    label(real, QUIET)
    path = real.shards.label_files.classifier_weights
    before = path.read_bytes()
    path.unlink()
    fit_epoch, epochs = classifier_fit.fit_epoch, []

    def interrupted(*args, epoch, **kwargs):
        epochs.append(epoch)
        if epochs == [0, 1]:
            raise KeyboardInterrupt
        return fit_epoch(*args, epoch=epoch, **kwargs)

    monkeypatch.setattr(classifier_fit, "fit_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        label(real, QUIET)
    label(real, QUIET)
    assert epochs == [0, 1, 1]
    assert path.read_bytes() == before
    assert not real.shards.label_files.classifier_checkpoints.exists()


def test_a_classifier_labels_in_addition_to_another_labeller(workspace, quick_labeller):
    accuracies = label(workspace, IN_ADDITION).accuracies
    train, generated = workspace.shards.label_files, workspace.run("mine").label_files
    assert pl.read_parquet(train.labels)["method"].unique().to_list() == ["clip"]
    assert len(pl.read_parquet(train.labels)) == 240
    assert len(pl.read_parquet(train.classifier_labels)) == 120  # none of those that it was fitted to
    assert len(pl.read_parquet(generated.classifier_labels)) == 240
    assert set(accuracies.filter(attribute="gender")["method"]) == {"clip", "probe", "classifier"}
    assert set(accuracies["n"]) == {120}
    assert pl.read_parquet(train.embeddings).schema["embedding"] == pl.Array(pl.Float16, quick_labeller.dim)
    assert all(side.unchanged for side in label(workspace, IN_ADDITION).sides)
    label(workspace, QUIET)
    assert not train.classifier_labels.exists()


def test_synthetic_faces_have_no_classifier_unless_it_is_requested(workspace, fits):
    label(workspace, QUIET)
    assert not fits
    assert not workspace.shards.label_files.classifier_weights.exists()


def test_an_attribute_with_one_common_class_is_left_out_in_one_line(real, capsys):
    edit_annotations(real, pl.lit("female").alias("gender"))
    accuracies = label(real, QUIET).accuracies
    message = capsys.readouterr().err
    assert "The classifier is not fitted to gender" in message
    assert "gender" not in set(accuracies.filter(method="classifier")["attribute"])


def test_too_few_annotations_for_a_classifier_are_reported_in_one_line(real, capsys, quick_labeller):
    few = pl.int_range(pl.len()) < 30
    edit_annotations(real, *(pl.when(few).then(pl.col(name)).alias(name) for name in ("gender", "age", "skin_tone")))
    label(real, QUIET)
    lines = capsys.readouterr().err.splitlines()
    assert sum("No classifier is fitted" in line for line in lines) == 1
    assert any("do not rely on its labels" in line for line in lines)
    assert pl.read_parquet(real.shards.label_files.labels)["labeller"][0] == quick_labeller.name


def test_labels_below_the_threshold_are_unsure_and_keep_their_probabilities(real, monkeypatch):
    monkeypatch.setattr(classifier, "choose_threshold", lambda confidence, _: float(np.median(confidence)))
    accuracies = label(real, QUIET).accuracies
    document = read_document(real.shards.label_files.classifier_document, ClassifierDocument)
    for files in (real.shards.label_files, real.run("mine").label_files):
        labels = pl.read_parquet(files.labels)
        confidence = labels["p_gender"].list.max()
        assert (labels["gender"].is_null() == (confidence < document.thresholds["gender"])).all()
        assert 0 < labels["gender"].null_count() < len(labels)
    gender = accuracies.row(
        by_predicate=(pl.col("attribute") == "gender") & (pl.col("method") == "classifier"), named=True
    )
    labels = pl.read_parquet(real.shards.label_files.labels)
    assert gender["unsure"] == pytest.approx(labels["gender"].null_count() / 120)


def test_half_of_the_images_are_blurred_and_half_are_noisy():
    stripes = (40 * (torch.arange(64) % 7)).float().expand(8, 3, 64, 64)
    degraded = stripes.clone()
    classifier_fit.degrade(degraded, torch.Generator().manual_seed(0))
    change = (degraded - stripes).abs().amax((1, 2, 3))
    assert (change[6:] == 0).all()
    assert (change[:6] > 0).all()
    blurred, noisy = degraded[:2], degraded[4:6]
    assert blurred.diff(dim=3).std() < 0.9 * stripes.diff(dim=3).std()
    assert 1 < (noisy - stripes[4:6]).std() < classifier_fit.NOISE


def test_a_threshold_leaves_at_most_a_tenth_unsure_and_only_labels_that_are_often_wrong():
    confidence, rng = np.linspace(0.5, 1, 1000), np.random.default_rng(0)
    is_correct = rng.random(1000) < confidence
    threshold = classifier.choose_threshold(confidence, is_correct)
    assert (confidence < threshold).mean() == pytest.approx(0.1, abs=0.002)
    assert classifier.choose_threshold(confidence, np.ones(1000, bool)) == 0
    seldom_wrong = np.arange(1000) >= 20  # the first fifty, at most, are right in less than three quarters
    assert (confidence < classifier.choose_threshold(confidence, seldom_wrong)).sum() == 79


def test_rare_classes_are_never_assigned(real):
    rare = pl.when(pl.int_range(pl.len()) < 20).then(pl.lit("senior")).otherwise(pl.lit("young"))
    edit_annotations(real, pl.when(pl.int_range(pl.len()) < 120).then(rare).otherwise(pl.lit("child")).alias("age"))
    label(real, QUIET)
    probabilities = np.array(pl.read_parquet(real.shards.label_files.labels)["p_age"].to_list())
    assert (probabilities[:, [2, 3, 4]] == 0).all()  # adult, middle, senior
    assert np.allclose(probabilities.sum(1), 1, atol=1e-5)
    document = read_document(real.shards.label_files.classifier_document, ClassifierDocument)
    assert document.classes["age"] == ["child", "young"]


def run_rank_without_weights(arguments: list[str]) -> None:
    """Run a command with a small network on a machine without CLIP's weights."""
    clip.load_labeller = unavailable
    models.classifier.WIDTHS = SMALL_WIDTHS
    run_rank(arguments)


def test_two_processes_label_like_one(real, torch_server, tmp_path):
    label(real, QUIET)
    sides = [real.shards.label_files, real.run("mine").label_files]
    before = [pl.read_parquet(files.labels) for files in sides]
    for files in sides:
        files.document.unlink()
    fitted_at = sides[0].classifier_weights.stat().st_mtime_ns
    words = ["label", "--out", str(real.root), "--device", "cpu"]
    finish_ranks(words, tmp_path / "log", run=run_rank_without_weights)
    assert sides[0].classifier_weights.stat().st_mtime_ns == fitted_at
    for files, expected in zip(sides, before, strict=True):
        labels = pl.read_parquet(files.labels)
        assert labels.select("key", "labeller").equals(expected.select("key", "labeller"))
        assert np.allclose(labels["p_gender"].list.max(), expected["p_gender"].list.max(), atol=1e-3)


def test_verify_finds_damaged_weights(real):
    label(real, QUIET)
    path = real.shards.label_files.classifier_weights
    path.write_bytes(path.read_bytes()[:-1])
    faults = [line for lines in verify(real, progress=False).faults.values() for line in lines]
    assert any("classifier.safetensors" in line and "fairface label" in line for line in faults)


@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="no annotated photographs next to the checkout")
def test_photographs_are_labelled_better_than_by_chance(tmp_path, monkeypatch, full_network):
    monkeypatch.setattr(classifier_fit, "MIN_EPOCHS", 2)
    monkeypatch.setattr(classifier_fit, "MAX_EPOCHS", 4)
    shards = Workspace(tmp_path).shards
    packed = pack.pack(PHOTOGRAPHS, shards, PackConfig(limit=800), progress=False).document
    data = ClassifierData(shards, packed, ShardSet.open(shards), built_in_attributes(), 64)
    fitted = load_classifier(data, CPU, progress=False)
    assert {"gender", "age", "race"} <= set(fitted.labeller.attributes)
    images = pl.read_parquet(shards.images).filter(status="packed")
    kinds = LabelKinds(fitted.labeller, has_skin_tones=False)
    labels = label_images(data.tars, images["key"], labels=kinds, size=64, device=CPU, batch_size=256)
    decided = most_probable(labels, fitted.labeller.attributes)
    held_out = ~images["key"].is_in(fitted.fit_keys.implode())
    for name, chance in (("gender", 0.5), ("race", 0.25)):
        _, _, balanced = agreement(images[name].filter(held_out), decided[name].filter(held_out))
        assert balanced > chance + 0.06, name
