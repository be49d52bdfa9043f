"""The page of one run: what it says, and what it never lets through."""

import json
import re

import polars as pl
import pytest

from reports.page import last_report
from reports.run_report import RunReport
from shards.documents import ShardsDocument
from shards.workspace import Workspace
from tests.reports.fake_workspace import HOSTILE, build, edit_config, edit_document, page_text, replace_table, text_of


@pytest.fixture
def html(built):
    return (built / "report" / "index.html").read_text()


def test_a_demonstration_says_so_first_and_is_complete(built, html):
    assert text_of(html.split("<body>")[1]).strip().startswith("Synthetic faces: this is a demonstration")
    assert html.count("<svg ") == 8
    assert html.count("data:image/webp;base64,") > 3
    assert "not to be trusted" not in html
    for name in ("Wilson", "floor", "CC BY-NC-ND 4.0", "step-10.pt", "seed 7", "abababab", "64 images per second"):
        assert name in text_of(html), name
    for name in ("comparison-gender", "ratios", "losses"):
        assert (built / "report" / f"{name}.svg").exists()
        assert (built / "report" / f"{name}.png").exists()
        assert ">synthetic faces<" in (built / "report" / f"{name}.svg").read_text()


def test_the_page_loads_nothing_from_elsewhere(html):
    assert not re.search(r"<script|<link|@import|url\((?!#)", html)
    assert {u for u in re.findall(r'(?:src|href)="([^"]{,30})', html) if not u.startswith(("data:", "#"))} == set()


def test_the_page_has_its_content_security_policy(html):
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in html


def test_report_json_is_read_back_as_it_was_written(built):
    folder = Workspace(built).report
    report = last_report(folder, RunReport)
    assert report.run == "first"
    assert report.config.data.synthetic
    assert {row.annotated for row in report.confusion["gender"].rows} == {"female", "male"}


def test_real_faces_with_the_embedded_labeller_are_warned_about(world):
    out = world(synthetic=False, annotated=False)
    html = build(out).page.read_text()
    text = text_of(html)
    assert "Real faces:" in text
    assert "not to be trusted" in text
    assert "No answer" in text
    assert "No: " not in text
    assert "times as many" not in text
    assert "no annotations" in text
    assert "may be shown with attribution" in text
    assert "synthetic faces<" not in html


def test_hostile_names_are_printed_as_text(world):
    out = world(run=HOSTILE.replace("/", "|"))
    path = next((out / "runs").glob("*/config.json"))
    config = json.loads(path.read_text())
    config["data"]["root"], config["command"] = "<i>" + "y" * 1_000_000, "<b>" + "z" * 1_000_000
    path.write_text(json.dumps(config | {"previous_data": [config["data"]]}))
    labels = pl.read_parquet(out / "shards" / "labels.parquet")
    strange = pl.Series(["NULL", HOSTILE, "a\x00b\nc", "x" * 1_000_000] + ["NULL"] * (len(labels) - 4))
    replace_table(out / "shards" / "labels.parquet", labels.with_columns(gender=strange))
    html = build(out).page.read_text()
    assert "<script" not in html
    assert "<b>S</b>" not in html
    assert "&lt;b&gt;S&lt;/b&gt;" in html
    assert "NULL" in text_of(html)
    assert "x" * 100 not in html
    assert "y" * 400 not in html
    assert "z" * 1100 not in html
    assert "<i>" not in html
    assert len(html) < 3_000_000


def test_a_run_without_faces_or_steps_has_a_page(world):
    out = world()
    (out / "runs" / "first" / "samples" / "s.tar").unlink()
    (out / "runs" / "first" / "steps.parquet").unlink()
    (out / "shards" / "a.tar").unlink()
    text = page_text(out)
    assert "not where the tables say" in text
    assert "No steps were recorded" in text


def test_a_single_group_has_a_page(world):
    out = world()
    for path in (out / "shards" / "labels.parquet", out / "runs" / "first" / "labels.parquet"):
        replace_table(path, pl.read_parquet(path).with_columns(gender=pl.lit("male"), age=pl.lit(None, pl.String)))
    text = page_text(out)
    assert "women" in text
    assert "no labels" in text  # of ages


def test_faces_of_unknown_origin_are_called_neither_real_nor_synthetic(world):
    out = world()
    edit_config(out, data=None)
    shards = out / "shards" / "shards.json"
    shards.rename(out / "shards.json")
    text = page_text(out)
    assert "Faces of unknown origin" in text
    assert "Real faces" not in text
    (out / "shards.json").rename(shards)
    assert "Synthetic faces:" in page_text(out)  # a run without data of its own: the training images count
    edit_document(shards, ShardsDocument, synthetic=False)
    assert "Real faces:" in page_text(out)


def test_an_attribute_without_labels_is_not_called_too_few(world):
    out = world()
    for path in (out / "shards" / "labels.parquet", out / "runs" / "first" / "labels.parquet"):
        replace_table(path, pl.read_parquet(path).with_columns(age=pl.lit(None, pl.String)))
    text = page_text(out)
    assert "The balance of ages is unknown: no face has a label for it." in text
    assert "decide whether it preserves the balance of ages" not in text
