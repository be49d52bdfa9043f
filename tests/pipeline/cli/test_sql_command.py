"""`fairface sql`."""

import polars as pl
import pytest

from tests.pipeline.cli.helpers import error_line, fairface


def test_questions_are_listed_with_their_parameters():
    printed = fairface("sql")
    assert "comparison: " in printed
    assert "--param attribute=all  one of all, gender" in printed


def test_a_question_is_answered_in_every_format(finished, tmp_path):
    for form in ("table", "csv", "json", "parquet", "markdown"):
        fairface("sql", "comparison", "--out", finished.root, "--format", form, "-o", tmp_path / form)
    assert (tmp_path / "csv").read_text().startswith("run,attribute,group")
    assert (tmp_path / "markdown").read_text().startswith("| run ")
    assert (tmp_path / "json").read_text().startswith('[{"run":')
    assert pl.read_parquet(tmp_path / "parquet")["ratio"].equals(pl.read_csv(tmp_path / "csv")["ratio"])


def test_an_unknown_parameter_is_refused(finished):
    assert "no parameter" in error_line("sql", "comparison", "--out", finished.root, "--param", "nonsense=1")


def test_parquet_needs_a_file(finished):
    assert "-o" in error_line("sql", "comparison", "--out", finished.root, "--format", "parquet", code=2)


@pytest.mark.parametrize(
    "options",
    [
        ("comparison", "-c", "select 1"),
        ("comparison", "--param", "attribute"),
        ("-c", "select 1", "--param", "attribute=age"),
        ("--views", "comparison"),
        ("--views", "--format", "csv"),
    ],
    ids=" ".join,
)
def test_contradictory_options_are_refused(tmp_path, options):
    error_line("sql", "--out", tmp_path, *options, code=2)


def test_the_views_open_in_any_duckdb(finished):
    import duckdb

    connection = duckdb.connect()
    connection.execute(fairface("sql", "--views", "--out", finished.root))
    assert connection.sql("select count(*) from images").fetchall() == [(200,)]


def test_an_answer_replaces_no_result(finished, tmp_path):
    labels = finished.shards.label_files.labels
    before = labels.read_bytes()
    (tmp_path / "link.parquet").symlink_to(labels)
    for path in (labels, tmp_path / "link.parquet"):
        line = error_line("sql", "comparison", "--out", finished.root, "--format", "parquet", "-o", path)
        assert "choose another name" in line
    assert labels.read_bytes() == before


def test_a_bar_in_a_cell_starts_no_column_of_markdown(finished):
    printed = fairface("sql", "-c", "select 'a|b' as text", "--out", finished.root, "--format", "markdown")
    assert "| a\\|b |" in printed
