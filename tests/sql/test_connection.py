"""The lock around the connection: SQL that a user typed reads the files of the views and nothing else."""

import pytest

import sql
from shards.errors import FairfaceError
from shards.workspace import Workspace


def test_a_session_variable_never_replaces_a_parameter(workspace):
    connection = sql.connect(workspace)
    connection.execute("set variable seen = 5")
    with pytest.raises(FairfaceError, match="seen"):
        sql.query(connection, "select $seen")


@pytest.mark.parametrize(
    "text",
    [
        "from read_text('/etc/passwd')",
        "from read_text('{out}/../secret.txt')",
        "from read_text('{out}/link.txt/../../secret.txt')",
        "from read_csv('https://example.invalid/x.csv')",
        "from glob('/etc/*')",
        "copy (select 1) to '{out}/w.csv'",
        "with x as (copy (select 1) to '{out}/w.csv') from x",
        "with y as (with x as (copy (select 1) to '{out}/w.csv') from x) from y",
        "explain analyze copy (select 1) to '{out}/w.csv'",
        "select 1; copy (select 1) to '{out}/w.csv'",
        "select 1) to '{out}/w.csv'; --",
        "export database '{out}/w'",
        "attach '{out}/w.db'",
        "install httpfs",
        "load httpfs",
        "set enable_external_access = true",
        "reset lock_configuration",
        "create table t (i int)",
        "drop view labels",
        "call enable_logging(storage = 'file', storage_path = '{out}/w')",
        "prepare p as copy (select 1) to '{out}/w.csv'",
        "",
        "selec 1",
    ],
)
def test_other_files_writing_and_configuration_are_refused(out, workspace, text):
    (out.parent / "secret.txt").write_text("secret")
    connection, before = sql.connect(workspace), sorted(out.rglob("*"))
    with pytest.raises(FairfaceError, match=r".+") as caught:
        sql.query(connection, text.format(out=out))
    assert "\n" not in str(caught.value)
    assert sorted(out.rglob("*")) == before
    assert sql.query(connection, "select count(*) as n from labels")["n"][0] == 10


@pytest.mark.parametrize(
    "text", ["from runs", "select 1 -- why", "describe labels", "select 'a;b';", "summarize steps"]
)
def test_reading_is_allowed(workspace, text):
    assert sql.query(sql.connect(workspace), text).height


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
            sql.query(connection, f"from read_text('{path}')")
