"""Several runs side by side: the differences, their intervals, and the page."""

import json
import shutil

import numpy as np
import polars as pl
import pytest
from markupsafe import escape

import sql
from reports import comparison_report
from shards.attributes import built_in_attributes
from shards.errors import FairfaceError
from shards.workspace import Workspace
from tests.reports.fake_workspace import (
    HOSTILE,
    LABELLER,
    build,
    edit_config,
    page_text,
    people,
    replace_table,
    text_of,
    with_columns,
)

pytestmark = pytest.mark.usefixtures("short_reports")


def add_run(out, name="second", women=0.3, n=400, seed=5):
    """Add another run next to the first one, with samples of its own, and return its name."""
    folder = out / "runs" / name
    shutil.copytree(out / "runs" / "first", folder)
    edit_config(out, name, name=name, started="2026-01-02")
    about = {"source": "generated", "run": name, "labeller": LABELLER, "method": "clip", "size": 64}
    replace_table(folder / "labels.parquet", with_columns(people(np.random.default_rng(seed), n, women), **about))
    replace_table(folder / "samples.parquet", with_columns(pl.read_parquet(folder / "samples.parquet"), run=name))
    return name


def ask_difference(out, run, other):
    """Question `difference` of two runs."""
    return sql.ask(sql.connect(Workspace(out)), "difference", run=run, other=other)


def test_the_difference_of_two_runs_is_that_of_their_shares(world):
    out = world()
    add_run(out)
    build(out, "first", "second")
    rows = ask_difference(out, "first", "second")
    women = rows.filter(attribute="gender", group="female").row(0, named=True)
    assert women["difference"] == pytest.approx(women["other_share"] - women["share"])
    assert women["difference"] == pytest.approx(-0.3, abs=0.08)
    assert women["difference_low"] < women["difference"] < women["difference_high"] < 0
    assert women["difference_verdict"] == "less"
    assert len(rows) == 56
    reverse = ask_difference(out, "second", "first").filter(attribute="gender", group="female").row(0, named=True)
    assert reverse["difference_low"] == pytest.approx(-women["difference_high"])
    with pytest.raises(FairfaceError, match="no run 'third'"):
        ask_difference(out, "first", "third")


def test_two_runs_have_a_page_together_and_one_each(world):
    out = world()
    add_run(out)
    result = build(out, "first", "second")
    path, folder = result.page, out / "report"
    text = text_of(path.read_text())
    assert result.rebuilt
    assert not build(out, "first", "second").rebuilt
    assert "Do these generators produce the same balance of faces?" in text
    assert "second generates " in text
    assert "of 26 groups more or less often than first (about 1 would seem to differ by chance alone)" in text
    assert path.read_text().count("<svg ") == 5
    for name in ("runs-gender.svg", "runs-gender.png", "runs/first/index.html", "runs/second/report.json"):
        assert (folder / name).is_file(), name
    numbers = json.loads((folder / "report.json").read_text())
    rows = ask_difference(out, "first", "second").to_dicts()
    assert numbers["differences"]["second"] == json.loads(json.dumps(rows))
    assert build(out, "second", "first").rebuilt
    assert build(out).page == path  # the newest run alone has the page of one run again
    assert "Does the generator preserve the balance" in path.read_text()


def test_which_run_is_more_even_is_stated_only_where_the_intervals_decide():
    row = {"value": 0.3, "low": 0.28, "high": 0.33}
    near, same = {"value": 0.1, "low": 0.08, "high": 0.12}, {"value": 0.29, "low": 0.26, "high": 0.32}

    def sentence(a, b):
        distances = {"a": {"uniform": {"gender": a}}, "b": {"uniform": {"gender": b}}}
        return comparison_report.describe_difference(
            "a", "b", rows=[], distances=distances, attributes=built_in_attributes()
        )[1]

    assert sentence(row, near) == "It is closer to equal shares of genders (total variation 0.100; a 0.300)."
    assert "farther from equal shares of genders" in sentence(near, row)
    assert "undecided" in sentence(row, same)


def test_a_run_without_labels_is_shown_next_to_the_others(world):
    out = world()
    (out / "runs" / add_run(out) / "labels.parquet").unlink()
    result = build(out, "first", "second")
    text = text_of(result.page.read_text())
    assert len(result.missing) == 1
    assert "fewer than two of the runs are labelled" in text
    assert "the samples of run second have no labels" in text


def test_hostile_run_names_are_printed_as_text(world):
    out = world()
    name = add_run(out, HOSTILE.replace("/", "|"))
    html = build(out, "first", name).page.read_text()
    assert "<script" not in html
    assert str(escape(name[:19])) in html


def test_runs_that_cannot_be_compared_are_refused_in_one_line(world):
    out = world()
    with pytest.raises(FairfaceError, match="names a run twice"):
        build(out, "first", "first")
    names = [add_run(out, f"r{i}") for i in range(5)]
    with pytest.raises(FairfaceError, match="5 runs side by side are too many to read: name at most 4"):
        build(out, *names)
    with pytest.raises(FairfaceError, match="no run 'other'"):
        build(out, "first", "other")


def test_runs_of_synthetic_and_of_real_faces_are_not_compared_silently(world):
    out = world()
    add_run(out)
    path = out / "runs" / "second" / "config.json"
    config = json.loads(path.read_text())
    config["data"]["synthetic"] = False
    path.write_text(json.dumps(config))
    # with shards.json the training images count as well
    (out / "shards" / "shards.json").unlink()
    assert "comparing them is not meaningful" in page_text(out, "first", "second")
