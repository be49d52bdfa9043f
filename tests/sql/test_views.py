"""The views over the files of a workspace."""

import re

import duckdb
import pytest

import sql
from shards.attributes import PROBABILITY_PREFIX, RESERVED_NAMES, built_in_attributes
from shards.errors import FairfaceError
from shards.workspace import Workspace
from sql import definitions
from sql.connection import create_views


def test_views_without_files_are_empty_and_have_their_columns(tmp_path):
    connection = sql.connect(Workspace(tmp_path))
    views = ("images", "rejects", "samples", "labels", "estimates", "distances", "runs", "steps", "confusion")
    views += ("method_estimates", "quality", "labellers", "labels_long", "confidence", "neighbours", "unmatched")
    for view in views:
        assert sql.select(connection, f"from {view}").height == 0, view


def test_skin_groups_and_intersections_are_derived(workspace):
    connection = sql.connect(workspace)
    labels = sql.select(connection, "select skin_group, intersection from labels where source = 'train' order by key")
    assert labels.rows() == [
        ("light", "female-light"),
        ("medium", "female-medium"),
        ("medium", "male-medium"),
        ("dark", "male-dark"),
    ]
    images = sql.select(connection, "select intersection from images where status = 'packed' order by key")
    assert images["intersection"].to_list()[2:] == ["male-medium", "male-dark"]


def test_the_views_work_in_any_duckdb(workspace):
    with duckdb.connect() as plain:  # as the shell does with -init
        plain.execute(sql.views(sql.find_files(workspace)))
        assert plain.execute("select count(*) from labels").fetchone() == (10,)
        assert plain.execute("select resolve_run('newest')").fetchone() == ("new",)


def test_runs_and_steps_are_named_by_their_folder(workspace):
    connection = sql.connect(workspace)
    runs = sql.ask(connection, "runs")
    assert runs["run"].to_list() == ["new", "old"]
    assert runs.select("seed", "ema", "synthetic", "images").row(0) == (2, 0.99, True, 4)
    curve = sql.ask(connection, "loss_curves", run="old", points=5)
    assert curve["step"].to_list() == [2, 4, 6, 8, 10]
    assert set(curve["loss_d"]) == {1.0}


def test_folders_may_have_unusual_names(out):
    unusual = out.rename(out.with_name("it's [1] * odd? {labels}"))
    assert sql.ask(sql.connect(Workspace(unusual)), "distribution", source="train")["count"].sum() == 4


def test_a_damaged_file_is_named(out, workspace):
    (out / "shards" / "labels.parquet").write_bytes(b"not Parquet")
    connection = sql.connect(workspace)
    with pytest.raises(FairfaceError, match=r"labels\.parquet.*`fairface verify`"):
        sql.select(connection, "from labels")
    assert sql.select(connection, "select count(*) as n from images")["n"][0] == 5  # which doesn't need the labels


def test_every_line_of_the_views_belongs_to_one_statement():
    text = "".join((definitions.FOLDER / name).read_text() for name in definitions.FILES)
    statements = definitions.templates()
    assert "".join(statements.values()) == text
    assert len(statements) == len(re.findall(r"^create ", text, re.MULTILINE))


def test_a_path_can_not_begin_a_statement(out):
    name = "odd;\ncreate view labels as select 1 as one;\n"
    assert (
        sql.ask(sql.connect(Workspace(out.rename(out.with_name(name)))), "distribution", source="train")["count"].sum()
        == 4
    )


def test_source_files_are_those_of_the_package():
    names = {path.name for path in sql.source_files()}
    assert {"connection.py", "distribution.sql", "results.sql"} <= names


def test_classes_are_counted_as_they_are_listed(workspace):
    """Counts come from combinations of classes, for all attributes at once."""
    connection = sql.connect(workspace)
    columns = 'source, run, labeller, attribute, "group"'
    listed = f"select {columns}, count(*) as n from selected_labels group by all order by all"
    counted = f"select {columns}, count::bigint as n from label_counts order by all"
    rows = sql.select(connection, listed).rows()
    assert len(rows) > 40
    assert sql.select(connection, counted).rows() == rows


def test_no_attribute_can_have_the_name_of_another_column_of_its_views(workspace):
    tables = "select table_name from duckdb_columns() where column_name = 'gender' and not internal"
    text = f"select distinct column_name as name from duckdb_columns() where table_name in ({tables})"
    connection = sql.connect(workspace)
    create_views(connection)
    names = set(sql.select(connection, text)["name"]) - set(built_in_attributes())
    names = {name for name in names if not name.startswith(PROBABILITY_PREFIX)}
    assert {"key", "filename", "run"} <= names <= RESERVED_NAMES
