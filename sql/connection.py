"""A DuckDB connection that can read the files of a workspace and nothing else."""

from collections.abc import Mapping

import duckdb
import polars as pl

from shards.errors import FairfaceError
from shards.workspace import Workspace
from sql.definitions import quote, views


def connect(workspace: Workspace) -> duckdb.DuckDBPyConnection:
    """Open an in-memory database with the views over the files that exist in a workspace.

    A view without files is empty and has its columns. The connection can read the files of the views; the network,
    extensions, other files and its own configuration are locked. DuckDB allows writing to whatever it may read, so
    SQL that a user typed must go through `query`, which only lets reading through.

    Raises FairfaceError if one of the files can't be read.
    """
    workspace = Workspace(workspace.root.resolve())
    connection = duckdb.connect(":memory:")
    try:
        connection.execute(views(workspace))
    except duckdb.Error as error:
        raise FairfaceError(f"the results below {workspace.root} can't be read: {first_line(error)}") from error
    connection.execute("set parquet_metadata_cache = true")  # several views read the same files
    # only the files of the views: a folder below the root may be a link, and `link/..` is elsewhere
    files = [file for paths in workspace.view_files().values() for file in paths]
    allowed = sorted({str(spelling) for file in files for spelling in (file, file.resolve())})
    connection.execute(f"set allowed_paths = [{', '.join(map(quote, allowed))}]")
    connection.execute("set temp_directory = ''")  # otherwise it may be read and written as well
    connection.execute("set enable_external_access = false")
    connection.execute("set lock_configuration = true")
    return connection


def query(connection: duckdb.DuckDBPyConnection, sql: str, params: Mapping[str, object] | None = None) -> pl.DataFrame:
    """Run a single SELECT that only reads, typed by a user.

    Raises FairfaceError for any other statement, and for SQL that DuckDB refuses.
    """
    try:
        statements = connection.extract_statements(sql)
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
            raise FairfaceError("only a single SELECT is allowed here: nothing may be written")
        text = statements[0].query.strip().rstrip(";")
        # A SELECT can still write, by `with x as (copy ...)`, but only at the top level: the binder refuses it inside
        # brackets. So the statement is bound in brackets first, without running it.
        connection.sql(f"explain from (\n{text}\n)", params=params or {})
    except duckdb.Error as error:
        raise FairfaceError(first_line(error)) from error
    return select(connection, text, params)


def select(connection: duckdb.DuckDBPyConnection, sql: str, params: Mapping[str, object] | None = None) -> pl.DataFrame:
    """Run a SELECT of the program's own, without the checks of `query`. Raises FairfaceError if DuckDB refuses it."""
    try:
        return connection.sql(sql, params=params or {}).pl()
    except duckdb.Error as error:
        raise FairfaceError(first_line(error)) from error


def first_line(error: Exception) -> str:
    """The first line of an error's message, at most 300 characters."""
    return str(error).strip().split("\n")[0][:300]
