"""A DuckDB connection that can read the files of a workspace and nothing else."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import duckdb

from shards.errors import FairfaceError
from shards.provenance import CurrentFiles, current_files
from shards.workspace import Workspace
from sql.definitions import glob_pattern, quote, views

# What DuckDB says of a file that was replaced or removed after the connection was opened, or that is damaged.
REPLACED = re.compile(r"^(IO|Permission) Error: |TProtocolException|No magic bytes|Failed to read")

if TYPE_CHECKING:  # the process that runs typed SQL does without it
    import polars as pl


def connect(
    workspace: Workspace,
    current: CurrentFiles | None = None,
    *,
    detectors: bool = True,
    memory: int | None = None,
) -> duckdb.DuckDBPyConnection:
    """Open an in-memory database with the views over the `current` files of a workspace, by default `find_files`.

    Without `detectors`, the views of detectors are missing, which take most of the time to create. `memory` limits the
    bytes that it uses.

    A view without files is empty and has its columns. The connection can read the files of the views; the network,
    extensions, other files and its own configuration are locked. DuckDB allows writing to whatever it may read, so SQL
    that a user typed must go through `sql.query`.

    Raises FairfaceError if one of the files can't be read.
    """
    current = current or find_files(workspace)
    connection = duckdb.connect(":memory:")
    try:
        connection.execute(views(current, detectors=detectors))
    except duckdb.Error as error:
        raise FairfaceError(
            f"the results below {workspace.root} can't be read: {first_line(error)}: if no other process is "
            "writing them, run `fairface verify`"
        ) from error
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


def find_files(workspace: Workspace) -> CurrentFiles:
    """The files of the views that may be used, by their absolute paths."""
    return current_files(Workspace(workspace.root.resolve()))


def select(
    connection: duckdb.DuckDBPyConnection, sql: str, params: Mapping[str, object] | None = None
) -> "pl.DataFrame":
    """Run a SELECT of the program's own. Raises FairfaceError if DuckDB refuses it."""
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
