"""Building the page: when it is rebuilt, what it refuses, how it describes a run that lacks a stage."""

import json
import os
import shutil

import polars as pl
import pytest

import sql
from reports import page
from reports.run_report import RunReport
from shards.documents import write_document
from shards.errors import FairfaceError
from shards.workspace import Workspace
from tests.reports.fake_workspace import (
    build,
    edit_config,
    labels_document,
    page_text,
    replace_table,
    samples_document,
    shards_document,
    text_of,
)

pytestmark = pytest.mark.usefixtures("short_reports")


def rows_of(out, text):
    """Rows of a query on the results below `out`."""
    return sql.select(sql.connect(Workspace(out)), text)


def test_report_json_holds_the_numbers_of_the_estimates(built):
    report = json.loads((built / "report" / "report.json").read_text())
    table = pl.read_parquet(built / "report" / "estimates.parquet")
    keys = ["attribute", "group"]
    assert pl.DataFrame(report["estimates"]).sort(keys)["ratio"].equals(table.sort(keys)["ratio"])
    assert report["synthetic"] is True
    assert report["verdict"]["answer"]


def test_a_page_is_not_rebuilt_without_a_change(built):
    assert not build(built).rebuilt
    fingerprint = page.input_fingerprint(Workspace(built), "first", detectors=[])
    path = built / "runs" / "first" / "labels.parquet"
    before = path.stat()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert page.input_fingerprint(Workspace(built), "first", detectors=[]) != fingerprint
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert build(built, force=True).rebuilt


def test_a_page_is_rebuilt_when_its_pictures_or_its_rows_are_missing(world):
    out = world()
    build(out)
    (out / "runs" / "first" / "samples" / "s.tar").rename(out / "s.tar")
    result = build(out)
    assert result.rebuilt
    assert "images not found" in result.page.read_text()
    (out / "s.tar").rename(out / "runs" / "first" / "samples" / "s.tar")
    assert build(out).rebuilt
    table = pl.read_parquet(out / "report" / "estimates.parquet")
    table.clear().write_parquet(out / "report" / "estimates.parquet")
    assert build(out).rebuilt
    assert len(pl.read_parquet(out / "report" / "estimates.parquet")) == len(table)


def test_a_page_is_rebuilt_when_its_report_json_cannot_be_read(world):
    out = world()
    build(out)
    folder = Workspace(out).report
    for content in ("", "[]", '{"format": 0}', '{"format": 1}', "{"):
        folder.document.write_text(content)
        assert page.last_report(folder, RunReport) is None
    assert build(out).rebuilt
    assert not build(out).rebuilt


def test_figures_of_the_previous_page_are_removed(world):
    out = world()
    build(out)
    remove_labels(out)
    build(out)
    names = {path.name for path in (out / "report").iterdir()}
    assert "losses.svg" in names
    assert not {"ratios.svg", "comparison-gender.png"} & names


def other_shards(out):
    write_document(out / "shards" / "shards.json", replace_manifest(shards_document()))


def other_samples(out):
    write_document(out / "runs" / "first" / "samples.json", samples_document(manifest="cd"))


def replace_manifest(document):
    document.manifest = "cd"
    return document


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda out: (out / "runs" / "first" / "config.json").unlink(), "fairface train"),
        (other_shards, "trained on other shards"),
        (lambda out: (out / "runs" / "first" / "config.json").write_text("{"), "config.json"),
        (other_samples, "other images: run"),
    ],
)
def test_a_page_that_cannot_be_built_is_refused_in_one_line(world, damage, message):
    out = world()
    damage(out)
    with pytest.raises(FairfaceError, match=message) as caught:
        build(out)
    assert "\n" not in str(caught.value)
    assert not (out / "report" / "index.html").exists()


def remove_labels(out):
    (out / "runs" / "first" / "labels.parquet").unlink()


def remove_samples(out):
    remove_labels(out)
    (out / "runs" / "first" / "samples.parquet").unlink()


def unfinished_sample_labels(out):
    write_document(out / "runs" / "first" / "labels.json", labels_document("generated", "first"))


def unfinished_training_labels(out):
    write_document(out / "shards" / "labels.json", labels_document("train"))


@pytest.mark.parametrize(
    ("damage", "message", "shown"),
    [
        (remove_labels, "run first have no labels: run `fairface label --run first`", "1,200 100 %"),
        (remove_samples, "run `fairface sample --run first`, then `fairface label --run first`", "Losses"),
        (lambda out: (out / "shards" / "labels.parquet").unlink(), "training images have no labels", "400"),
        (unfinished_sample_labels, "of run first was not finished", "400"),
        (unfinished_training_labels, "images was not finished", "400"),
    ],
)
def test_the_page_of_a_run_that_lacks_a_stage_names_it(world, damage, message, shown):
    out = world()
    build(out)
    damage(out)
    result = build(out)
    text = text_of(result.page.read_text())
    assert result.rebuilt
    assert message in result.missing[0]
    assert "Not answered yet. " in text
    assert message in text
    assert shown in text
    assert "Is each group preserved, amplified or reduced?" not in text
    assert rows_of(out, "from estimates").is_empty()  # the old estimates must not be believed
    again = build(out)
    assert not again.rebuilt
    assert again.missing == result.missing


def test_finished_labels_of_both_sides_are_estimated(world):
    out = world()
    write_document(out / "runs" / "first" / "labels.json", labels_document("generated", "first", evaluated=True))
    write_document(out / "shards" / "labels.json", labels_document("train", evaluated=True))
    assert build(out).missing == []


def test_imported_labels_have_a_page_without_a_verdict(world):
    out = world()
    path = out / "runs" / "first" / "labels.parquet"
    replace_table(path, pl.read_parquet(path).with_columns(method=pl.lit("imported"), labeller=pl.lit("theirs")))
    text = page_text(out)
    assert "labels of run first were imported" in text
    assert "Not answered yet" in text


def test_labels_of_two_labellers_are_not_compared(world):
    out = world()
    path = out / "shards" / "labels.parquet"
    replace_table(path, pl.read_parquet(path).with_columns(labeller=pl.lit("ViT-B-32@99")))
    with pytest.raises(FairfaceError, match="one labeller"):
        build(out)


def test_estimates_by_another_labeller_are_removed(world):
    out = world(run="older")
    build(out)
    shutil.copytree(out / "runs" / "older", out / "runs" / "newer")
    edit_config(out, "newer", name="newer", started="2026-01-02")
    labels = out / "runs" / "newer" / "labels.parquet"
    replace_table(labels, pl.read_parquet(labels).with_columns(run=pl.lit("newer")))
    build(out)
    assert set(pl.read_parquet(out / "report" / "estimates.parquet")["run"]) == {"older", "newer"}
    for path in (out / "shards" / "labels.parquet", labels):
        replace_table(path, pl.read_parquet(path).with_columns(labeller=pl.lit("other@2")))
    build(out)
    for name in ("estimates", "method_estimates", "distances"):
        assert set(pl.read_parquet(out / "report" / f"{name}.parquet")["run"]) == {"newer"}


def test_an_unknown_run_is_refused(world):
    with pytest.raises(FairfaceError, match="no run 'other'"):
        build(world(), "other")
