"""A trained detector's predictions: of which faces, computed once, and what SQL says about them."""

import shutil

import numpy as np
import polars as pl
import pytest
import torch

import sql
from pipeline.data.decoder import DecoderConfig
from pipeline.data.loader import load_resident
from pipeline.detection import evaluate
from pipeline.detection.dataset import build_pool
from pipeline.detection.evaluate import EvaluationConfig
from pipeline.detection.network import build_detector, load_trainable
from pipeline.detection.options import DetectorOptions
from reports.estimation.detection_metrics import update_metrics
from shards.documents import DetectorConfig, read_document
from shards.workspace import Workspace
from tests.pipeline.detection.helpers import predictions, train, weights


def test_annotated_faces_from_shards_to_metrics(annotated, tmp_path, full_xception):
    shutil.copytree(annotated.root, tmp_path, dirs_exist_ok=True)
    workspace = Workspace(tmp_path)
    result = train(workspace, evaluation=EvaluationConfig(7, ("gaussian_blur", "random_crop")))
    assert (result.config.status, result.steps, result.unchanged) == ("finished", 4, False)
    steps = pl.read_parquet(workspace.detector("x").steps)
    assert steps["step"].to_list() == [1, 2, 3, 4]
    assert steps["images"].to_list() == [8, 16, 24, 32]
    assert steps["accuracy"].is_between(0, 1).all()
    predicted = predictions(workspace)
    images = pl.read_parquet(workspace.shards.images).filter(status="packed", split="test").sort("key")
    for perturbation in ("none", "gaussian_blur", "random_crop"):
        rows = predicted.filter(perturbation=perturbation).sort("key")
        assert rows["key"].to_list() == images["key"].to_list()
        assert rows["target"].to_list() == images["target"].to_list()
        assert rows["logit"].dtype == pl.Float64
    assert predicted["logit"].n_unique() > 80
    check_metrics(workspace, images)


def check_metrics(workspace: Workspace, images: pl.DataFrame) -> None:
    """What SQL says about the predictions for 20 fakes and 10 real faces."""
    update_metrics(workspace, detector="x")
    connection = sql.connect(workspace)
    overall = sql.ask(connection, "utility", detector="x", attribute="all").row(0, named=True)
    assert (overall["fakes"], overall["reals"]) == (20, 10)
    by_gender = sql.ask(connection, "utility", detector="x", attribute="gender")
    assert dict(by_gender.select("group", "n").iter_rows()) == dict(images["gender"].value_counts().iter_rows())
    robustness = sql.ask(connection, "robustness", detector="x")
    assert robustness["perturbation"].to_list() == ["none", "gaussian_blur", "random_crop"]
    assert robustness["n"].to_list() == [30, 30, 30]
    assert (
        len(sql.ask(sql.connect(workspace), "detection_metrics", detector="x", measure="f_eo")) == 5
    )  # of gender, skin group, age, skin tone and their cross


def test_predictions_do_not_depend_on_the_batch_and_belong_to_their_faces(workspace):
    """Another batch size, and one face at a time: the same logits for the same keys."""
    train(workspace, steps=2)
    folder = workspace.detector("x")
    first = predictions(workspace)
    faces, config = build_pool(workspace), read_document(folder.config, DetectorConfig)
    options = DetectorOptions(**config.options)
    net = build_detector(options, list(config.group_counts.values()))
    load_trainable(net, weights(workspace, "x", 2))
    net.eval()
    shutil.rmtree(folder.cached_predictions)
    folder.predictions.unlink()
    train(workspace, steps=2, evaluation=EvaluationConfig(5))
    again = predictions(workspace)
    assert first.drop("logit").equals(again.drop("logit"))
    tolerance = 0.01 * first.filter(source="images")["logit"].std()  # after two steps all logits are nearly the same
    assert np.allclose(first["logit"], again["logit"], rtol=0, atol=tolerance)
    decoder = DecoderConfig(pre_resize=32)
    pixels = load_resident(faces.shards, 64, device=torch.device("cpu"), decoder=decoder, progress=False)
    indices = faces.rows["test"].arg_true().to_list()
    indices = indices[:5] + indices[-5:]
    with torch.inference_mode():
        expected = [net(options.spec.normalise(pixels[i][None]))[0].item() for i in indices]
    test = first.filter(part="test").select("source", "key", "logit")
    logits = {(source, key): logit for source, key, logit in test.iter_rows()}
    names = faces.rows.select("source", "key").rows()
    assert np.allclose(expected, [logits[names[i]] for i in indices], rtol=0, atol=tolerance)


def test_samples_are_evaluated_by_group(workspace):
    train(workspace, steps=2)
    connection = sql.connect(workspace)
    counts = build_pool(workspace).counts()
    for name, count in (("early", 40), ("mine", counts["test_fake"])):
        rows = sql.ask(connection, "detection_rates", run=name)
        overall = rows.filter(attribute="all").row(0, named=True)
        assert overall["n"] == count  # of the run that the detector was trained on, only the test faces
        assert overall["rate"] == overall["called_fake"] / overall["n"]
        assert overall["low"] <= overall["rate"] <= overall["high"]
        assert rows.filter(attribute="gender")["n"].sum() == count
    labels = pl.read_parquet(workspace.run("early").label_files.labels)
    joined = predictions(workspace).filter(run="early").join(labels, on="key")
    expected = {gender: rows["logit"].ge(0).mean() for (gender,), rows in joined.group_by("gender")}
    by_gender = sql.ask(connection, "detection_rates", run="early").filter(attribute="gender")
    assert dict(by_gender.select("group", "rate").iter_rows()) == pytest.approx(expected)
    groups = sql.ask(connection, "utility", detector="x", attribute="skin_group")
    assert groups["n"].sum() == counts["test_real"] + counts["test_fake"]


def test_nothing_is_evaluated_twice(workspace, monkeypatch):
    train(workspace, steps=2)
    files = [path for path in workspace.detector("x").folder.rglob("*") if path.is_file()]
    before = {path: path.stat().st_mtime_ns for path in files}
    evaluated = []
    predict_logits = evaluate.predict_logits

    def spy(net, eval_set, **options):
        evaluated.append(eval_set.perturbation)
        return predict_logits(net, eval_set, **options)

    monkeypatch.setattr(evaluate, "predict_logits", spy)
    assert train(workspace, steps=2).unchanged
    assert evaluated == []
    assert {path: path.stat().st_mtime_ns for path in before} == before
    train(workspace, steps=2, evaluation=EvaluationConfig(perturbations=("rotation",)))
    assert evaluated == ["rotation"]  # and nothing that was evaluated before
    shutil.rmtree(workspace.run("early").folder)
    train(workspace, steps=2)
    assert evaluated == ["rotation"]
    robustness = sql.ask(sql.connect(workspace), "robustness")
    assert set(robustness["perturbation"]) == {"none", "rotation"}  # it stays
    assert set(predictions(workspace)["run"].drop_nulls()) == {"mine"}
