"""Several runs side by side: the difference, its interval, and the page."""

import json
import shutil

import numpy as np
import polars as pl
import pytest
from markupsafe import escape

import sql
from reports import comparison, estimate, page
from reports.reading import Reading
from shards.errors import FairfaceError
from tests.reports.outs import HOSTILE, people, text_of


def second(out, name="second", women=0.3, n=400, seed=5):
    """Another run beside the first one, with samples of its own."""
    folder = out / "runs" / name
    shutil.copytree(out / "runs" / "first", folder)
    config = json.loads((folder / "config.json").read_text()) | {"run": name, "started": "2026-01-02"}
    (folder / "config.json").write_text(json.dumps(config))
    faces = pl.DataFrame(people(np.random.default_rng(seed), n, women))
    about = {"source": "generated", "run": name, "labeller": "drawn-faces@1a2b3c4d", "size": 64}
    faces.with_columns(pl.lit(v).alias(k) for k, v in about.items()).write_parquet(folder / "labels.parquet")
    samples = pl.read_parquet(folder / "samples.parquet")
    samples.with_columns(run=pl.lit(name)).write_parquet(folder / "samples.parquet")
    return name


def test_the_difference_of_two_runs_is_that_of_their_shares(world):
    out = world()
    second(out)
    for run in ("first", "second"):
        estimate.write(out, sql.connect(out), run)
    rows = sql.ask(sql.connect(out), "difference", run="first", other="second")
    women = rows.filter(attribute="gender", group="female").row(0, named=True)
    assert women["difference"] == pytest.approx(women["other_share"] - women["share"])
    assert women["difference"] == pytest.approx(-0.3, abs=0.08)
    assert women["difference_low"] < women["difference"] < women["difference_high"] < 0
    assert women["finding"] == "less"
    assert len(rows) == 56
    back = sql.ask(sql.connect(out), "difference", run="second", other="first")
    back = back.filter(attribute="gender", group="female").row(0, named=True)
    assert back["difference_low"] == pytest.approx(-women["difference_high"])
    with pytest.raises(FairfaceError, match="no run 'third'"):
        sql.ask(sql.connect(out), "difference", run="first", other="third")


def test_intervals_of_a_difference_hold_it():
    """Two generators judged through one confusion matrix, whose errors they share."""
    rng, held = np.random.default_rng(1), []
    for _ in range(60):
        bias = rng.dirichlet([2, 2, 2], 3)
        matrix, truth = 0.75 * np.eye(3) + 0.25 * bias, rng.dirichlet([3, 3, 3], 2)
        confusion = np.stack([rng.multinomial(500, row) for row in matrix])
        found = []
        for shares in truth:
            counts = rng.multinomial(2000, shares @ matrix)
            sides = counts, confusion.sum(0), confusion.sum(1), confusion
            reading = Reading("x", "clip", list("abc"), *(side.astype(float) for side in sides[:3]), confusion)
            found.append(pl.DataFrame(reading.estimate_rows("r"), infer_schema_length=None))
        held += list(within(found, truth[1] - truth[0]))
    assert np.mean(held) >= 0.93


def within(found, difference):
    """Whether the question's interval holds the true difference, group by group."""
    connection = sql.duckdb.connect()
    names = estimate.COLUMNS.keys() - {"shifted"}
    tables = [t.select(*names).with_columns(run=pl.lit(name)) for t, name in zip(found, "ab", strict=True)]
    connection.register("rows", pl.concat(tables, how="vertical_relaxed").to_arrow())
    connection.execute(
        "create table estimates as from rows; create table vocabulary as "
        "select 'x' as attribute, unnest(['a', 'b', 'c']) as \"group\", 1 as rank; "
        "create macro the_run(name) as name"
    )
    text = sql.questions()["difference"].sql
    rows = connection.sql(text, params={"run": "a", "other": "b", "attribute": "all"}).pl().sort("group")
    low, high = rows["difference_low"].to_numpy(), rows["difference_high"].to_numpy()
    return (low <= difference) & (difference <= high)


def test_two_runs_have_one_page_and_one_each(world):
    out = world()
    second(out)
    path, built = page.build(out, ["first", "second"])
    text, folder = text_of(path.read_text()), out / "report"
    assert built
    assert not page.build(out, ["first", "second"])[1]
    assert "Do these generators draw the same faces?" in text
    assert "second drew " in text
    assert "of 26 groups more or less often than first (of so many, about 1 may seem so by chance)" in text
    assert path.read_text().count("<svg ") == 5
    for name in ("runs-gender.svg", "runs-gender.png", "runs/first/index.html", "runs/second/report.json"):
        assert (folder / name).is_file(), name
    numbers = json.loads((folder / "report.json").read_text())
    rows = sql.ask(sql.connect(out), "difference", run="first", other="second").to_dicts()
    assert numbers["differences"]["second"] == json.loads(json.dumps(rows))
    assert page.build(out, ["second", "first"])[1]
    assert page.build(out)[0] == path  # and the newest alone is a page of one run again
    assert "Does the generator keep the balance" in path.read_text()


def test_which_run_is_more_even_is_told_only_where_it_can_be():
    row = {"value": 0.3, "low": 0.28, "high": 0.33}
    near, same = {"value": 0.1, "low": 0.08, "high": 0.12}, {"value": 0.29, "low": 0.26, "high": 0.32}

    def said(a, b):
        return comparison.said("a", "b", [], {"a": {"uniform": {"gender": a}}, "b": {"uniform": {"gender": b}}})[1]

    assert said(row, near) == "It is nearer to equal genders (total variation 0.100; a 0.300)."
    assert "farther from equal genders" in said(near, row)
    assert "can not be told" in said(row, same)


def test_a_run_without_labels_stands_beside_the_others_and_says_so(world):
    out = world()
    (out / "runs" / second(out) / "labels.parquet").unlink()
    text = text_of(page.build(out, ["first", "second"])[0].read_text())
    assert "fewer than two of the runs are labelled" in text
    assert "the samples of run second have no labels" in text


def test_hostile_runs_side_by_side_come_out_as_text(world):
    out = world()
    name = second(out, HOSTILE.replace("/", "|"))
    html = page.build(out, ["first", name])[0].read_text()
    assert "<script" not in html
    assert str(escape(name[:20])) in html


def test_runs_that_cannot_stand_side_by_side_are_one_line(world):
    out = world()
    with pytest.raises(FairfaceError, match="names a run twice"):
        page.build(out, ["first", "first"])
    names = [second(out, f"r{i}") for i in range(5)]
    with pytest.raises(FairfaceError, match="5 runs side by side are too many to read: name 4 at most"):
        page.build(out, names)
    with pytest.raises(FairfaceError, match="no run 'other'"):
        page.build(out, ["first", "other"])
