"""The report of a workspace whose user has given an own table of attributes."""

import json
import re

import polars as pl
import pytest

import sql
from shards.documents import write_document
from shards.workspace import Workspace
from tests.reports.fake_workspace import (
    LABELLER,
    SAMPLES,
    attribute_toml,
    build,
    make,
    predictions_document,
    replace_table,
    text_of,
)

GLASSES = attribute_toml(
    "glasses",
    {"none": '{ plural = "faces without glasses" }', "worn": '{ plural = "faces with glasses" }'},
    headline=True,
)
HAIR = attribute_toml(
    "hair",
    {"blond": '{ colour = "#d9b380" }', "brown": '{ colour = "#5b3a1f" }', "red & grey": "{}"},
    plural="<b>kinds",
)
HEADWEAR = attribute_toml(
    "headwear",
    {"no headwear whatsoever (bareheaded)": "{}", "hat": '{ colour = "#aa3322" }', "headscarf or veil (any)": "{}"},
    title="Any kind of headwear, such as hats, caps, scarves and veils",
)
TWO = f"built_in = false\n{GLASSES}{HAIR}"
TWELVE = "built_in = false\n" + "".join(
    [
        GLASSES,
        HAIR,
        HEADWEAR,
        *(attribute_toml(f"trait{i}", dict.fromkeys((f"low {i}", f"high {i}"), "{}"), headline=True) for i in range(9)),
        attribute_toml("select", {}, title="Pair", cross=["glasses", "hair"]),
        attribute_toml("triple", {}, title="Three at once", cross=["glasses", "hair", "trait0"]),
    ]
)
BUILT_IN_WORDS = ("gender", "skin", "women", "female", "Monk", "young", "senior", "race")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """An OUT folder with two attributes, none of which is built in, and its page."""
    out = make(tmp_path_factory.mktemp("two"), attributes=TWO)
    return out, build(out).page.read_text()


@pytest.fixture(scope="module")
def twelve(tmp_path_factory):
    """An OUT folder with twelve attributes and two crosses, and its page."""
    out = make(tmp_path_factory.mktemp("twelve"), attributes=TWELVE)
    return out, build(out).page.read_text()


def test_the_page_has_the_attributes_of_the_own_table_and_no_others(two):
    out, html = two
    text = text_of(html)
    report = json.loads((out / "report" / "report.json").read_text())
    assert {row["attribute"] for row in report["estimates"]} == {"glasses", "hair"}
    assert "faces without glasses" in report["verdict"]["sentences"][0]
    assert "--param attribute=glasses --param group=none" in text
    assert "red &amp; grey" in html
    assert "<b>kinds" not in html
    assert [word for word in BUILT_IN_WORDS if word in text] == []
    assert {path.name for path in (out / "report").glob("comparison-*.svg")} == {
        "comparison-glasses.svg",
        "comparison-hair.svg",
    }


def test_an_added_attribute_is_on_the_page_next_to_the_built_in_ones(tmp_path):
    text = text_of(build(make(tmp_path / "out", attributes=GLASSES)).page.read_text())
    assert "Of kinds of glasses, it " in text or "balance of glasses of its training data" in text
    assert "Glasses, labelled by clip" in text
    assert "Gender, labelled by clip" in text
    assert "Race" not in text  # of which nothing is known
    assert "Glasses: none" in text.split("The training data")[-1]


def test_figures_have_the_colours_of_the_classes(two):
    out, _ = two
    report = out / "report"
    assert "#d9b380" in (report / "comparison-hair.svg").read_text()
    assert "#d9b380" not in (report / "comparison-glasses.svg").read_text()


def test_many_attributes_are_folded(twelve, two):
    _, html = twelve
    text = text_of(html)
    assert html.count("<summary>") > 20
    assert "Three at once combined" in text
    assert "All 12 cells" in text
    for title in ("Glasses", "Hair", "Trait8", "Pair"):
        assert f"<summary>{title}, labelled by clip</summary>" in html or f"<h3>{title}, labelled by clip</h3>" in html
    assert html.count("<h3>Glasses, labelled by clip</h3>") == 1  # the first one is expanded
    assert "<summary>Hair, labelled by clip</summary>" in html
    links = re.findall(r'<a href="#(\w+)">', html)
    assert "verdicts" in links
    assert "detectors" not in links  # of which this workspace has none
    assert all(f'<h2 id="{name}">' in html for name in links)
    assert "<h3>Hair, labelled by clip</h3>" in two[1]  # of two, none is folded


def test_a_change_of_the_table_makes_the_page_anew(tmp_path):
    out = make(tmp_path / "out", attributes=TWO)
    labellers = {"attribute": ["glasses", "hair"], "method": "clip", "labeller": LABELLER, "selected": True}
    replace_table(out / "shards" / "labellers.parquet", pl.DataFrame(labellers | {"n": 600, "accuracy": 0.9}))
    build(out)
    assert not build(out).rebuilt
    Workspace(out).attributes.write_text("built_in = false\n" + GLASSES.replace('"Glasses"', '"Spectacles"'))
    result = build(out)
    assert result.rebuilt
    text = text_of(result.page.read_text())
    assert "Spectacles, labelled by" in text
    assert "Hair" not in text


def test_detectors_are_compared_on_the_groups_of_the_own_table(tmp_path):
    out = make(tmp_path / "out", attributes=TWELVE)
    folder = out / "detectors" / "mine"
    folder.mkdir(parents=True)
    keys = pl.read_parquet(out / "shards" / "images.parquet")["key"][:300]
    about = {"detector": "mine", "part": "test", "source": "images", "perturbation": "none", "grouped_by": "annotated"}
    is_fake = pl.int_range(pl.len()) % 2
    table = pl.DataFrame({"key": keys}).with_columns(
        target=pl.when(is_fake == 1).then(pl.lit("fake")).otherwise(pl.lit("real")),
        logit=(pl.int_range(pl.len()) * 7 % 11 - 5 + 2 * is_fake).cast(pl.Float64),
        **{name: pl.lit(value) for name, value in about.items()},
    )
    write_document(folder / "predictions.json", predictions_document(samples={"first": SAMPLES}))
    replace_table(folder / "predictions.parquet", table)
    html = build(out).page.read_text()
    assert "<summary>Fairness over the groups of the other attributes</summary>" in html
    metrics = sql.ask(sql.connect(Workspace(out)), "detection_metrics", detector="mine", measure="f_meo")
    assert set(metrics["attribute"]) == {"glasses", "hair", "headwear", "select", *(f"trait{i}" for i in range(9))}
    assert metrics["floor"].is_not_null().all()
    assert "mine Trait8" in text_of(html)
    Workspace(out).attributes.write_text(TWO)
    assert "Trait8" not in text_of(build(out).page.read_text())
