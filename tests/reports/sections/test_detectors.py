"""Detectors of generated faces on the page."""

import json
import re
import shutil

import numpy as np
import polars as pl
import pytest

from reports.sections.detectors import evaluation_sets
from shards.documents import write_document
from shards.errors import FairfaceError
from shards.locks import exclusive_lock
from shards.workspace import Workspace
from tests.reports.fake_workspace import SAMPLES, build, predictions_document, replace_table, text_of

NAME = "<b>mine"


def predictions(keys, is_fake, noise, **columns):
    """Rows of predictions.parquet of noisy logits."""
    table = pl.DataFrame(
        {"key": keys, "target": np.where(is_fake, "fake", "real"), "logit": 2 * is_fake - 1 + noise[: len(keys)]}
    )
    return table.with_columns(pl.lit(value, pl.String).alias(name) for name, value in columns.items())


@pytest.fixture
def evaluated(world):
    """An OUT folder with a detector's predictions of test faces, blurred ones and samples; which faces are fake."""
    out, rng = world(), np.random.default_rng(0)
    folder = out / "detectors" / NAME
    folder.mkdir(parents=True)
    images = pl.read_parquet(out / "shards" / "images.parquet")["key"][:300]
    samples = pl.read_parquet(out / "runs" / "first" / "samples.parquet")["key"]
    fake, noise = rng.random(300) < 0.5, rng.normal(size=400)
    about = {"detector": NAME, "part": "test", "source": "images", "run": None, "grouped_by": "annotated"}
    of_samples = {"detector": NAME, "part": "samples", "source": "samples", "run": "first", "grouped_by": "labelled"}
    tables = [
        predictions(images, fake, noise, **about, perturbation="none"),
        predictions(images, fake, noise, **about, perturbation="gaussian_blur"),
        predictions(samples, np.ones(len(samples), bool), noise, **of_samples, perturbation="none"),
    ]
    write_document(folder / "predictions.json", predictions_document(samples={"first": SAMPLES}))
    replace_table(folder / "predictions.parquet", pl.concat(tables))
    return out, fake


def test_detectors_are_shown(evaluated):
    out, fake = evaluated
    html = build(out).page.read_text()
    text = text_of(html)
    assert NAME not in html
    assert f"{(~fake).sum()} real and {fake.sum()} fake faces from the packed images" in text
    assert "Robustness to image perturbations" in text
    assert "gaussian blur" in text
    # detectors that ignore the image stand in every table, and in the figure
    assert "A constant detector has perfectly equal rates and no utility" in text
    assert re.search(r'<td class="name muted">\(majority\)', html)
    assert f"(majority) 0.500 {fake.mean():.3f}" in text  # AUC and average precision
    for heading in (
        "The trade-off of utility and fairness",
        "The group that is served worst",
        "Repair: a threshold for each group",
    ):
        section = text.rsplit(heading, 1)[1].split("Robustness")[0]
        assert all(name in section for name in ("(majority)", "(minority)", "(random)")), heading
    # thresholds change no metric of a constant: it stands there once
    assert "(minority) Gender as it is" in text
    assert not re.search(r"\((majority|minority)\) Gender (one for|by group)", text)
    assert "(majority): front 1" in (out / "report" / "tradeoff-1.svg").read_text()


def test_detectors_of_the_same_faces_are_described_together():
    about = {"reals": 10, "fakes": 1200, "run": None, "grouped_by": "annotated", "held_out": None}
    rows = [about | {"evaluation_set": "a", "detector": name} for name in "ab"]
    rows += [about | {"evaluation_set": "a", "detector": "c", "held_out": "DMs"}]
    rows += [about | {"evaluation_set": "d", "detector": "d"}]
    described = {entry.detectors: entry.description for entry in evaluation_sets(rows)}
    assert list(described) == ["a, b", "c", "d"]
    assert described["c"] == described["a, b"] + "; trained without the fakes of DMs"


def test_detection_metrics_are_computed_again_when_the_groups_change(evaluated):
    out, _ = evaluated
    build(out)
    path = Workspace(out).detector(NAME).detection_metrics
    before = path.stat().st_mtime_ns
    assert not build(out).rebuilt
    labels = pl.read_parquet(out / "runs" / "first" / "labels.parquet")
    replace_table(out / "runs" / "first" / "labels.parquet", labels.with_columns(gender=pl.lit("male")))
    build(out)
    assert path.stat().st_mtime_ns > before


def test_detectors_have_a_page_without_a_run(evaluated):
    out, _ = evaluated
    folder = Workspace(out).detector(NAME)
    table = pl.read_parquet(folder.predictions).filter(part="test")
    write_document(folder.predictions_document, predictions_document())
    replace_table(folder.predictions, table)
    shutil.rmtree(Workspace(out).runs_folder)
    first = build(out)
    text = text_of(first.page.read_text())
    assert "shows only the detectors" in text
    assert "from the packed images, with their annotated groups" in text
    assert "Are this run's samples detected" not in text
    report = json.loads((out / "report" / "report.json").read_text())
    assert {row["perturbation"] for row in report["robustness"]} == {"none", "gaussian_blur"}
    replace_table(folder.predictions, table.filter(perturbation="none"))
    build(out)
    # without perturbed faces, the question is not asked
    assert json.loads((out / "report" / "report.json").read_text())["robustness"] == []
    replace_table(folder.predictions, table)
    first = build(out)
    assert (first.rebuilt, first.missing, build(out).rebuilt) == (True, [], False)
    assert build(out, force=True).rebuilt
    assert not Workspace(out).run("first").folder.exists()


def test_a_page_needs_a_run_or_a_detector_that_is_not_in_use(evaluated):
    out, _ = evaluated
    folder = Workspace(out).detector(NAME)
    write_document(folder.predictions_document, predictions_document())
    replace_table(folder.predictions, pl.read_parquet(folder.predictions).filter(part="test"))
    shutil.rmtree(Workspace(out).runs_folder)
    with exclusive_lock(folder.lock, "training"), pytest.raises(FairfaceError, match=r"is left out: .*another process"):
        build(out)
    shutil.rmtree(folder.folder)
    with pytest.raises(FairfaceError, match="there is no run below"):
        build(out)
