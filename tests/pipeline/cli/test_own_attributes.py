"""Attributes that only a user's file describes, from the annotations to the page."""

import json
from collections import Counter
from pathlib import Path

import polars as pl
import pytest

from models.detectors import registry
from pipeline.labelling import embedded
from shards.workspace import Workspace
from tests.pipeline.cli.helpers import SMALL_TRAINING, error_line, fairface
from tests.pipeline.detection.helpers import small_xception

EXAMPLE = Path(__file__).parents[3] / "docs" / "attributes.toml"  # glasses, hair, gender_glasses
DETECTOR = ("--model", "daw_fdd", "--steps", 2, "--train-batchsize", 8)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory, quick_labeller):
    """The whole job and a detector, on synthetic faces with glasses and hair as attributes of a user's own."""
    out = tmp_path_factory.mktemp("own")
    fairface("synth", "--out", out, "--count", 500, "--size", 64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedded, "load_embedded", lambda *_, **__: quick_labeller)
        patch.setattr(registry, "xception", small_xception)
        fairface("shards", "--out", out, "--data", out / "synthetic", "--attributes", EXAMPLE)
        fairface("train", "--out", out, *SMALL_TRAINING, "--conditional", "glasses")
        fairface("sample", "--out", out, "--num-samples", 80)
        fairface("label", "--out", out)
        fairface("detect", "--out", out, *DETECTOR, "--group-by", "gender_glasses")
        fairface("report", "--out", out)
    return Workspace(out)


def answer(workspace, *words):
    return json.loads(fairface("sql", "--out", workspace.root, "--format", "json", *words))


def test_own_attributes_are_packed(workspace):
    images = pl.read_parquet(workspace.shards.images)
    assert set(images["glasses"]) == {"glasses", "no glasses"}
    assert set(images["hair"]) == {"black", "brown", "blond", "red", "grey"}
    rows = pl.read_csv(workspace.synthetic / "train.csv")
    assert images["hair"].value_counts().sort("hair").rows() == rows["Hair"].value_counts().sort("Hair").rows()
    assert workspace.attributes.read_text() == EXAMPLE.read_text()


def test_questions_and_the_vocabulary_know_them(workspace):
    assert {row["group"] for row in answer(workspace, "attributes") if row["attribute"] == "glasses"} == {
        "glasses",
        "no glasses",
    }
    shares = answer(workspace, "comparison", "--param", "attribute=glasses")
    assert [row["group"] for row in shares] == ["glasses", "no glasses"]
    assert sum(row["reference"] for row in shares) == pytest.approx(1)
    sides = answer(workspace, "side_by_side", "--param", "attribute=gender_glasses")
    assert {row["group"] for row in sides} >= {"female-glasses", "male-no glasses"}
    selected = 'select "group" from images, lateral (select gender_glasses as "group") group by all'
    assert len(answer(workspace, "-c", selected)) == 4


def test_the_probe_labels_them_and_its_errors_are_measured(workspace):
    measured = {row["attribute"]: row for row in answer(workspace, "-c", "from labellers where method = 'probe'")}
    assert measured["hair"]["balanced_accuracy"] > 0.3  # of five classes
    assert measured["gender_glasses"]["n"] > 200


def test_a_run_is_conditioned_on_and_balanced_by_them(workspace, tmp_path):
    (run,) = workspace.runs()
    requested = pl.read_parquet(run.samples_table)["requested"]
    assert set(requested) == {"glasses", "no glasses"}
    balance = ("--balance", "uniform", "--balance-by", "hair", "--run", "balanced")
    fairface("train", "--out", workspace.root, *SMALL_TRAINING, *balance)
    assert json.loads(workspace.run("balanced").config.read_text())["options"]["balance_by"] == "hair"
    error = error_line("train", "--out", workspace.root, *SMALL_TRAINING, "--conditional", "eyes", "--run", "other")
    assert "'eyes' is not a label: choose --conditional from" in error
    assert "glasses" in error


def test_the_page_has_a_figure_on_them(workspace):
    page = workspace.report.page.read_text()
    for title in ("Hair colour", "Glasses", "Gender and glasses"):
        assert f"{title}: shares of training and generated faces" in page


def test_a_detector_s_losses_and_fairness_have_their_groups(workspace):
    config = json.loads(workspace.detector("daw_fdd").config.read_text())
    assert config["data"]["attribute"] == "gender_glasses"
    assert set(config["group_counts"]) == {
        "female-glasses",
        "female-no glasses",
        "male-glasses",
        "male-no glasses",
    }
    answered = {
        question: [row for row in answer(workspace, question) if row["detector"] == "daw_fdd"]
        for question in ("utility", "fairness")
    }
    utility = [row for row in answered["utility"] if row["attribute"] != "all"]
    assert {row["attribute"] for row in utility} >= {"hair", "glasses", "gender_glasses", "gender"}
    # the samples of so short a training may all be of one class
    compared = Counter(row["attribute"] for row in utility if row["reals"] and row["fakes"])
    assert {row["attribute"] for row in answered["fairness"]} == {
        name for name, groups in compared.items() if groups > 1
    }


def test_verify_finds_an_edited_or_broken_file(workspace):
    path, before = workspace.attributes, workspace.attributes.read_bytes()
    try:
        path.write_bytes(before + b"# edited\n")
        assert "attributes.toml was changed after it was written" in fairface("verify", "--out", workspace.root, code=1)
        path.write_bytes(b"[")
        assert "attributes.toml can't be used" in fairface("verify", "--out", workspace.root, code=1)
    finally:
        path.write_bytes(before)
    assert "are intact" in fairface("verify", "--out", workspace.root)


def test_a_file_that_renames_a_used_class_is_refused_and_nothing_changes(workspace, tmp_path):
    own = tmp_path / "renamed.toml"
    own.write_text(EXAMPLE.read_text().replace('"no glasses"', '"none"'))
    before = workspace.shards.document.read_bytes()
    data = ("--out", workspace.root, "--data", workspace.synthetic, "--attributes", own)
    assert "--force" in error_line("shards", *data)
    assert "no glasses" in error_line("label", "--out", workspace.root, "--attributes", own)
    assert workspace.shards.document.read_bytes() == before
    assert workspace.attributes.read_text() == EXAMPLE.read_text()
