"""The connection: it reads the files of the views, by exactly their names, and nothing else."""

import duckdb
import polars as pl
import pytest

import sql
from shards.errors import FairfaceError
from shards.workspace import Workspace


def test_a_session_variable_never_replaces_a_parameter(workspace):
    connection = sql.connect(workspace)
    connection.execute("set variable seen = 5")
    with pytest.raises(FairfaceError, match="seen"):
        sql.select(connection, "select $seen")


def test_linked_folders_are_read_and_nothing_next_to_them(out, tmp_path_factory):
    disk = tmp_path_factory.mktemp("disk")
    (out / "shards").rename(disk / "shards")
    (out / "shards").symlink_to(disk / "shards")
    (out / "runs" / "new").rename(disk / "another-name")
    (out / "runs" / "new").symlink_to(disk / "another-name")
    (disk / "shards" / "secret.txt").write_text("secret")
    connection = sql.connect(Workspace(out))
    assert sql.ask(connection, "distribution", source="train")["count"].sum() == 4
    assert sql.ask(connection, "loss_curves", run="new", points=2).height == 2  # named as below OUT
    assert sql.ask(connection, "runs")["run"].to_list() == ["new", "old"]
    (disk / "x.txt").write_text("secret")
    for path in (disk / "shards" / "secret.txt", out / "shards" / "secret.txt", out / "shards" / ".." / "x.txt"):
        with pytest.raises(FairfaceError, match=r".+"):
            sql.select(connection, f"from read_text('{path}')")


@pytest.mark.parametrize("name", ["x*", "x?", "[x]", "x['y]", "{images}"])
def test_no_character_of_a_path_is_a_wildcard(out, tmp_path_factory, name):
    parent = tmp_path_factory.mktemp("parent")
    out.rename(parent / name)
    for other in ("xy", "x"):
        (parent / other / "shards").mkdir(parents=True)
        (parent / other / "runs" / "new").mkdir(parents=True)
        for path in ("shards/labels.parquet", "shards/images.parquet", "runs/new/config.json"):
            (parent / other / path).write_bytes((parent / name / path).read_bytes())
    workspace = Workspace(parent / name)
    connection = sql.connect(workspace)
    assert sql.select(connection, "select count(*) as n from labels")["n"][0] == 10
    assert sql.ask(connection, "runs")["run"].to_list() == ["new", "old"]
    anywhere = duckdb.connect()
    anywhere.execute(sql.views(sql.find_files(workspace)))
    assert anywhere.sql("select count(*) from images").fetchall() == [(5,)]


@pytest.mark.parametrize(
    "content", ["{}", "[]", "[" * 5000, '{"steps": 1' + "0" * 30 + "}", "\0", '{"status": {"a": 1}}'], ids=range(6)
)
def test_a_damaged_run_hides_no_other(out, workspace, content):
    (out / "runs" / "old" / "config.json").write_text(content)
    current = sql.find_files(workspace)
    connection = sql.connect(workspace, current)
    assert sql.ask(connection, "runs")["run"].to_list() == ["new"]
    assert any("old" in warning for warning in current.warnings)


def test_options_that_are_not_numbers_are_null(out, workspace):
    path = out / "runs" / "old" / "config.json"
    path.write_text(path.read_text().replace('"seed": 1', '"seed": 1' + "0" * 30))
    assert sql.select(sql.connect(workspace), "select run, seed from runs order by run").rows() == [
        ("new", 2),
        ("old", None),
    ]


def test_damaged_parquet_is_one_clear_error(out, workspace):
    (out / "runs" / "new" / "steps.parquet").write_bytes(b"PAR1" + bytes(100) + b"PAR1")
    with pytest.raises(FairfaceError, match=r".+") as caught:
        sql.ask(sql.connect(workspace), "loss_curves", run="new")
    assert "\n" not in str(caught.value)


def test_a_table_without_a_column_is_null_there(out, workspace):
    pl.DataFrame({"step": [1]}).write_parquet(out / "runs" / "new" / "steps.parquet")
    rows = sql.select(sql.connect(workspace), "select step, loss_d from steps where run = 'new'")
    assert rows.rows() == [(1, None)]
