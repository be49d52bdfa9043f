"""Hostile names: refused before anything is written, or used as they are; none breaks a later command.

Names are of runs, detectors, output folders, files below DATA, tables, and files that are imported.
"""

import html
import json
import os
import shutil
from pathlib import Path

import duckdb
import pytest
from PIL import Image

import sql
from shards.workspace import Workspace
from tests.attacks.helpers import read_tree
from tests.pipeline.cli.helpers import error_line, fairface

REFUSED_NAMES = (
    "*", "x*", "?", "x?", "[x]", "x]", "newest", "all", "", ".", "..", "../x", "/x", "x/y", "x/../y", ".x", "-x",
    "--force", "x\n", "\x1b[31mx",
    "x\t", "\u202eevil", "x\u2028", "\u200bx", "\ufeffx", "x" * 201, "é" * 101, "a\udcff",
)  # fmt: skip
ACCEPTED_NAMES = (
    "x y", "=cmd()", "+1", "@x", "{images}", "%s", "%(x)s", "$(touch pwned)", "`touch pwned`", "'", '"',
    "''; drop view images; --", "x;y", "x&y",
    "<script>alert(1)<", "&amp;", "null", "NaN", "1", "é", "人", "x.tar", "x.csv", "~", "#", "\\", "x" * 200,
)  # fmt: skip
NAMING_OPTIONS = (
    ("train", "--run"),
    ("sample", "--run"),
    ("label", "--run"),
    ("label", "--import", "labels.csv", "--run"),
    ("report", "--run"),
    ("detect", "--run"),
    ("detect", "--name"),
    ("detect", "--import", "predictions.csv", "--name"),
)
# Of files, folders and tables below DATA; also bytes that are not UTF-8.
FILE_NAMES = (
    *(name for name in ACCEPTED_NAMES if len(name) < 100),
    "*", "?", "[a-z]", "x*", "-rf", "--force", "..x", "x\ny", "\x1b[2J\x1b[31m", "\u202egnp", " x ", "x\t", "\x7f",
    "a\udcff", "\ud7ff", "é\u0301",
    "x" * 240,
)  # fmt: skip
FORMULA = ("=", "+", "@", "-")
READ_NAMES = [name for name in FILE_NAMES if "\udcff" not in name and len(name) < 200]
TRIED = {
    "names of runs and detectors that are refused, in every option that takes one": len(REFUSED_NAMES)
    * len(NAMING_OPTIONS),
    "odd names of runs that are accepted": len(ACCEPTED_NAMES),
    "odd names of folders and images below DATA": len(FILE_NAMES),
    "odd names of DATA, OUT, annotation tables and imported files": len(READ_NAMES),
}
TABLE = "Image Path,gender,age,skin_tone\nsample_0.png,female,young,1\nsample_1.png,male,adult,9\n"
PREDICTIONS = "gender,skin_group,age,target,logit\nfemale,light,young,0,-1\nmale,dark,adult,1,2\n"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The working folder, with the files to import, next to others that must not change."""
    (tmp_path / "canary").mkdir()
    (tmp_path / "canary" / "file").write_text("mine")
    work = tmp_path / "work"
    work.mkdir()
    (work / "labels.csv").write_text(TABLE)
    (work / "predictions.csv").write_text(PREDICTIONS)
    monkeypatch.chdir(work)
    yield work
    assert read_tree(tmp_path / "canary").keys() == {"file"}
    assert not list(tmp_path.rglob("pwned"))


@pytest.mark.parametrize("words", NAMING_OPTIONS, ids=" ".join)
def test_a_refused_name_leaves_nothing_behind(folder, words):
    *before, option = words
    paths = sorted(folder.parent.rglob("*"))
    for name in REFUSED_NAMES:
        line = error_line(*before, f"{option}={name}", code=2 if "\udcff" in name else 1)
        assert "\x1b" not in line
        assert "\u202e" not in line
        assert sorted(folder.parent.rglob("*")) == paths, name


@pytest.mark.attack
def test_names_that_are_accepted_break_no_command(folder):
    for name in ACCEPTED_NAMES:
        fairface("label", "--import", "labels.csv", f"--run={name}")
        assert (folder / "outputs" / "runs" / name / "labels.parquet").is_file()
    for name in ("%s", "'", "{images}", "=cmd()"):
        fairface("detect", "--import", "predictions.csv", f"--name={name}")
    assert error_line("label", "--import", "predictions.csv", "--run=%s")
    counts = json_rows(fairface("sql", "-c", "select run, count(*) as n from labels group by run", "--format", "json"))
    assert sorted((row["run"], row["n"]) for row in counts) == sorted((name, 2) for name in ACCEPTED_NAMES)
    for name in ACCEPTED_NAMES:
        shares = json_rows(fairface("sql", "distribution", "--param", f"run={name}", "--format", "json"))
        assert {row["n"] for row in shares if "n" in row} <= {0, 1, 2}
        assert shares
    exported = fairface("sql", "-c", "select distinct run from labels", "--format", "csv")
    assert not [cell for cell in exported.splitlines() if cell.strip('"').startswith(FORMULA)]
    fairface("verify")
    assert run_in_duckdb(fairface("sql", "--views"), "select count(*) from labels") == 2 * len(ACCEPTED_NAMES)
    (folder / "outputs" / "runs" / "%s" / "labels.parquet").unlink()
    assert "/%s/labels.parquet" in fairface("verify", code=1)


def json_rows(printed: str) -> list[dict[str, object]]:
    return json.loads(printed)


def run_in_duckdb(views: str, query: str) -> object:
    connection = duckdb.connect()
    connection.execute(views)
    return connection.execute(query).fetchone()[0]


@pytest.mark.parametrize("name", ["<script>alert(1)<", "{{7-7}}", "{% raw %}"], ids=ascii)
def test_a_name_is_text_on_the_page(folder, name):
    fairface("label", "--import", "labels.csv", f"--run={name}")
    fairface("report", f"--run={name}")
    page = (folder / "outputs" / "report" / "index.html").read_text()
    assert "<script" not in page
    assert html.escape(name) in page


def test_names_below_data_are_packed_as_they_are_or_counted(folder):
    data = folder / "data"
    for name in FILE_NAMES:
        (data / name).mkdir(parents=True)
        Image.new("RGB", (32, 32), "brown").save(data / name / "face.png")
        if len(name) < 200:
            Image.new("RGB", (32, 32), "brown").save(data / f"{name}.png")
            (data / f"{name}.csv").write_text("not a table\n")
    (data / "train.csv").write_text("Image Path,Gender\n0.jpg,1\n")
    before = sorted(data.rglob("*"))
    printed = fairface("shards", "--data", "data")
    assert "\x1b" not in printed
    assert "\u202e" not in printed
    unreadable = sum("\udcff" in str(path.name) for path in before if path.suffix != ".csv")
    assert unreadable == 2
    packed = {str(path.relative_to(data)) for path in before if path.suffix == ".png" and "\udcff" not in str(path)}
    packed -= {path for path in packed if path.startswith(".")}  # hidden
    assert f" {len(packed):,} images packed" in printed
    rows = json_rows(fairface("sql", "-c", "select path from images", "--format", "json"))
    assert {row["path"] for row in rows} == packed
    fairface("verify")
    for form in ("table", "markdown", "csv"):
        shown = fairface("sql", "-c", "select path from images", "--format", form)
        cells = [line.strip(' |"') for line in shown.splitlines()]
        if form == "csv":
            assert not [cell for cell in cells if cell.startswith(FORMULA)]
        else:
            assert "\x1b" not in shown
            assert "\u202e" not in shown
    assert sorted(data.rglob("*")) == before


@pytest.mark.parametrize("name", READ_NAMES, ids=ascii)
def test_every_path_of_a_table_is_read_as_it_is(folder, name):
    """The name is that of the folder of images, of OUT where that may be, and of an annotation table."""
    data = folder / f"data {name}"
    (data / "GANs").mkdir(parents=True)
    Image.new("RGB", (32, 32), "brown").save(data / "GANs" / "0.jpg")
    (data / f"{name}.csv").write_text("Image Path,Gender,Age,Skin Tone\nGANs/0.jpg,1,2,3\n")
    out = folder / f"out {name}"
    if any(character in "\x1b\n\t\x7f\u202e" for character in name):
        assert "control characters" in error_line("shards", "--data", data, "--out", out, code=2)
        assert not out.exists()
        out = folder / "out"
    arguments = ("shards", "--data", data, "--annotations", data / f"{name}.csv", "--out", out)
    printed = fairface(*arguments)
    assert "1 of 1 images (100.0%)" in printed
    assert "unchanged" in fairface(*arguments)
    fairface("verify", "--out", out)
    assert sql.select(sql.connect(Workspace(out)), "select gender from images")["gender"].to_list() == ["male"]
    shutil.copy(folder / "labels.csv", folder / f"{name}.csv")
    fairface("label", "--import", folder / f"{name}.csv", "--run", "r", "--out", out)
    fairface("sql", "runs", "--out", out)


def test_a_folder_that_somebody_named_oddly_breaks_no_command(folder):
    fairface("label", "--import", "labels.csv", "--run", "good")
    runs = folder / "outputs" / "runs"
    for name in [name for name in (*REFUSED_NAMES, *FILE_NAMES) if name not in ("", ".", "..") and "/" not in name]:
        if len(os.fsencode(name)) < 256:
            shutil.copytree(runs / "good", runs / name, dirs_exist_ok=True)
            shutil.copytree(runs / "good", folder / "outputs" / "detectors" / name, dirs_exist_ok=True)
    for words in (("sql", "runs"), ("sql", "-c", "select count(*) from labels"), ("verify",), ("report",)):
        printed = fairface(*words, code=1 if words[0] == "verify" else 0)
        assert "\x1b" not in printed
        assert "\u202e" not in printed
