"""What is printed: no terminal escapes, no formulas in a CSV, every type in every format."""

import csv
import io
import json

import polars as pl
import pytest

from pipeline.cli.console import printable, render_table, write_answer
from shards.csv_output import escape_formulas, unescape_formulas
from tests.pipeline.cli.helpers import error_line, fairface

HOSTILE = [
    "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07",
    "a\rb",
    "\x9b31m",
    "\u202eevil",
    "\u2066x\u2069",
    "\u2028",
    "\x00",
    "\x7f",
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_characters_that_a_terminal_obeys_become_escapes(text):
    assert printable(text).isprintable()
    assert printable(f"ü {text}\n\tß").startswith("ü ")
    for form in ("table", "markdown"):
        assert all(line.isprintable() for line in render_table(pl.DataFrame({"x": [text]}), form).split("\n"))


def test_ordinary_text_is_printed_as_it_is():
    for text in ("plain", "ü ß 漢字 🙂", "two\nlines", "a\u00a0b"):
        assert printable(text) == text


def test_an_error_about_a_hostile_path_is_printable(tmp_path):
    line = error_line("shards", "--out", tmp_path / "out", "--data", tmp_path / HOSTILE[0])
    assert line.isprintable()
    line = error_line("report", "--out", tmp_path / HOSTILE[0], code=2)
    assert line.isprintable()


FORMULAS = ["=1+1", "+1", "-1", "@x", "\tx", "\rx", "'=x", "''=x", "'x", "x", "", None]


def test_no_cell_of_a_csv_is_a_formula_and_reading_it_undoes_that():
    frame = pl.DataFrame({"text": FORMULAS, "=name": FORMULAS, "number": [-1.5] * len(FORMULAS)})
    rows = list(csv.reader(io.StringIO(render_table(frame, "csv"))))
    assert rows[0] == ["text", "'=name", "number"]
    assert all(not row[0].startswith(("=", "+", "-", "@", "\t", "\r")) for row in rows)
    assert all(row[2] == "-1.5" for row in rows[1:])
    assert unescape_formulas(escape_formulas(frame))["text"].to_list() == FORMULAS


def test_lists_and_unusual_numbers_are_written_in_every_format():
    frame = pl.DataFrame({"list": [[1, 2], None], "text": [["a"], []], "number": [float("nan"), float("inf")]})
    assert render_table(frame, "csv") == 'list,text,number\n"[1, 2]","[""a""]",NaN\n,[],inf'
    assert json.loads(render_table(frame, "json"))[0]["list"] == [1, 2]
    for form in ("table", "markdown"):
        assert "[1, 2]" in render_table(frame, form)


def test_an_answer_is_written_through_a_link_and_to_a_device(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    frame = pl.DataFrame({"x": [1]})
    for form in ("table", "csv", "json", "parquet", "markdown"):
        write_answer(frame, form, output=tmp_path / "link")
        assert (tmp_path / "link").is_symlink()
        write_answer(frame, form, output=tmp_path / "target")
    assert "x" in fairface("sql", "-c", "select 1 as x", "--out", tmp_path)
