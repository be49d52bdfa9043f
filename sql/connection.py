"""A DuckDB connection that can read the files of a workspace and nothing else."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import duckdb

from shards.errors import FairfaceError
from shards.provenance import CurrentFiles, current_files
from shards.workspace import Workspace
from sql.definitions import definitions, glob_pattern, quote

# What DuckDB says of a file that was replaced or removed after the connection was opened, or that is damaged.
REPLACED = re.compile(r"^(IO|Permission) Error: |TProtocolException|No magic bytes|Failed to read")

# Statements that haven't been executed yet: all of them take longer than most queries. A connection has no attributes.
_missing: WeakKeyDictionary[duckdb.DuckDBPyConnection, dict[str, str]] = WeakKeyDictionary()

if TYPE_CHECKING:  # the process that runs typed SQL does without it
    import polars as pl


def connect(
    workspace: Workspace, current: CurrentFiles | None = None, *, memory: int | None = None
) -> duckdb.DuckDBPyConnection:
    """Open an in-memory database for the views over the `current` files of a workspace, by default `find_files`.

    A view is created when `select` first needs it, or by `create_views`. A view without files is empty and has its
    columns. `memory` limits the bytes that the database uses.

    The connection can read the files of the views; the network, extensions, other files and its own configuration are
    locked. DuckDB allows writing to whatever it may read, so SQL that a user typed must go through `sql.query`.
    """
    current = current or find_files(workspace)
    connection = duckdb.connect(":memory:")
    _missing[connection] = definitions(current)
    connection.execute("set parquet_metadata_cache = true")  # several views read the same files
    # only the files of the views: a folder below the root may be a link, and `link/..` is elsewhere
    files = [file for paths in current.files.values() for file in paths]
    allowed = sorted({text for file in files for text in (str(file), glob_pattern(file), str(file.resolve()))})
    connection.execute(f"set allowed_paths = [{', '.join(map(quote, allowed))}]")
    if memory:
        connection.execute(f"set memory_limit = '{memory}B'")
    connection.execute("set temp_directory = ''")  # otherwise it may be read and written as well
    connection.execute("set enable_external_access = false")
    connection.execute("set lock_configuration = true")
    return connection


def create_views(connection: duckdb.DuckDBPyConnection, text: str | None = None) -> None:
    """Create the views, tables and macros that the SQL `text` names, and those that they need; without it, all.

    Raises FairfaceError if a file of one of them can't be read.
    """
    missing = _missing.get(connection, {})
    names = _named(text, missing) if text is not None else set(missing)
    ahead = names
    while ahead:
        ahead = {name for each in ahead for name in _named(missing[each], missing)} - names
        names |= ahead
    for name in [name for name in missing if name in names]:
        try:
            connection.execute(missing[name])
        except duckdb.Error as error:
            raise FairfaceError(
                f"the results can't be read: {first_line(error)}: if no other process is writing them, run "
                "`fairface verify`"
            ) from error
        del missing[name]


def _named(text: str, names: Mapping[str, str]) -> set[str]:
    return names.keys() & set(re.findall(r"\w+", text))


def find_files(workspace: Workspace) -> CurrentFiles:
    """The files of the views that may be used, by their absolute paths."""
    return current_files(Workspace(workspace.root.resolve()))


def select(
    connection: duckdb.DuckDBPyConnection, sql: str, params: Mapping[str, object] | None = None
) -> "pl.DataFrame":
    """Run a SELECT of the program's own, over the views that it needs. Raises FairfaceError if DuckDB refuses it."""
    create_views(connection, sql)
    try:
        return connection.sql(sql, params=params or {}).pl()
    except duckdb.Error as error:
        line = first_line(error)
        if REPLACED.search(line):
            line += ": another process may be replacing it: run the same command again, or `fairface verify`"
        raise FairfaceError(line) from error


def first_line(error: Exception) -> str:
    """The first line of an error's message, at most 300 characters."""
    return str(error).strip().split("\n")[0][:300]
