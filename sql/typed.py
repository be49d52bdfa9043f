"""SQL that a user typed: checked after parsing, and run in a process that can't write, with limits.

Three layers, each of which stops every known attack: the parsed statement may name only views and harmless table
functions; the connection may read only the files of the views; the kernel refuses every change that the process makes.
"""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb

from shards.errors import FairfaceError
from shards.workspace import Workspace
from sql.connection import connect, create_views, first_line
from sql.restrictions import end_with_parent, forbid_writing, limit_memory

if TYPE_CHECKING:
    import polars as pl

ROOT = Path(__file__).parents[1]  # of our packages; the process has no working folder on its path
COMMAND = "import sys; sys.path.insert(0, sys.argv[1]); from sql.typed import serve; serve()"
BATCH_ROWS = 16_384
MIN_MEMORY = 200_000_000  # bytes
TOO_LARGE = "the query needs too much memory: let it read or return less, or raise --max-memory"

NODES = {"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"}
TABLES = {"BASE_TABLE", "JOIN", "SUBQUERY", "TABLE_FUNCTION", "EMPTY", "EXPRESSION_LIST", "SHOW_REF", "PIVOT"}
TABLE_FUNCTIONS = {
    "range",
    "generate_series",
    "unnest",
    "json_each",
    "json_tree",
    "duckdb_columns",
    "duckdb_functions",
    "duckdb_types",
    "duckdb_views",
}
REFUSED_FUNCTIONS = {"getenv", "write_log", "nextval", "json_serialize_plan"}  # that return a single value
# Types that Polars reads exactly; a list of one of them, too. All others become text.
EXACT_TYPES = re.compile(r"(BOOLEAN|U?(TINY|SMALL|BIG)?INT(EGER)?|FLOAT|DOUBLE|DECIMAL\(\d+,\d+\)|VARCHAR)(\[\])*")


@dataclass(frozen=True)
class Limits:
    """The limits of a typed SELECT."""

    rows: int = 1_000_000  # of the answer
    memory: int = 4_000_000_000  # bytes
    seconds: float = 600


def query(workspace: Workspace, text: str, limits: Limits | None = None) -> "pl.DataFrame":
    """Run a single SELECT that a user typed over the views of a workspace.

    Types that Polars can't hold are returned as text. Raises FairfaceError for any other statement, for SQL that DuckDB
    refuses, and for one that exceeds a limit.
    """
    limits = limits or Limits()
    if limits.memory < MIN_MEMORY:
        raise FairfaceError(f"--max-memory: a query needs at least {MIN_MEMORY / 1e6:.0f} MB")
    request = {"root": str(workspace.root.resolve()), "text": text, "limits": asdict(limits)}
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", COMMAND, str(ROOT)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        try:
            import polars as pl  # while the process starts

            answer, errors = process.communicate(json.dumps(request).encode(), timeout=limits.seconds)
        except subprocess.TimeoutExpired as error:
            raise FairfaceError(
                f"the query was stopped after {limits.seconds:g} s: let it read or return less, or raise --timeout"
            ) from error
        finally:
            process.kill()
    header, _, table = answer.partition(b"\n")
    if not header:
        raise _lost_process_error(errors.decode(errors="replace"))
    if message := json.loads(header)["error"]:
        raise FairfaceError(message)
    return pl.read_ipc_stream(BytesIO(table))


def _lost_process_error(errors: str) -> Exception:
    """The error of a process that ended without an answer: too little memory, unless Python says something else."""
    if "Traceback" in errors and not re.search("memory|bad_alloc", errors, re.IGNORECASE):
        return RuntimeError(errors)
    return FairfaceError(TOO_LARGE)


def serve() -> None:
    """Answer the query on standard input; the process for `query`."""
    end_with_parent()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a library that runs out of memory may print there
    request = json.load(sys.stdin)
    header, table = {"error": ""}, b""
    try:
        table = _answer(Workspace(Path(request["root"])), request["text"], Limits(**request["limits"]))
    except FairfaceError as error:
        header["error"] = str(error)
    except duckdb.OutOfMemoryException as error:
        header["error"] = f"{first_line(error)}: let the query read or return less, or raise --max-memory"
    except duckdb.Error as error:
        header["error"] = first_line(error)
    except MemoryError:  # also pyarrow's
        header["error"] = TOO_LARGE
    except RecursionError:
        header["error"] = "the query is nested too deeply: make it simpler"
    with output:
        output.write(json.dumps(header).encode() + b"\n" + table)


def _answer(workspace: Workspace, text: str, limits: Limits) -> bytes:
    """The answer to a SELECT as an Arrow stream."""
    import pyarrow  # noqa: F401 - before opening files is refused

    limit_memory(limits.memory)
    forbid_writing()
    connection = connect(workspace, memory=limits.memory)
    create_views(connection)
    check(connection, text)
    try:
        return _run(connection.sql(text), limits, huge="decimal(38, 0)")
    except duckdb.ConversionException:  # perhaps of a larger number
        return _run(connection.sql(text), limits, huge="varchar")


def _run(answer: duckdb.DuckDBPyRelation, limits: Limits, *, huge: str) -> bytes:
    """Run a query within its limits, with HUGEINT as the type `huge`."""
    import pyarrow as pa

    buffer, rows = BytesIO(), 0
    reader = as_text_where_needed(answer, huge=huge).to_arrow_reader(BATCH_ROWS)
    with pa.ipc.new_stream(buffer, reader.schema) as writer:
        for batch in reader:
            rows += len(batch)
            if rows > limits.rows:
                raise FairfaceError(
                    f"the answer has more than {limits.rows:,} rows: add a limit, aggregate, or raise --max-rows"
                )
            if buffer.tell() > limits.memory:
                raise MemoryError
            writer.write_batch(batch)
    return buffer.getvalue()


def check(connection: duckdb.DuckDBPyConnection, text: str) -> None:
    """Raise FairfaceError unless `text` is one SELECT over views and harmless functions, judged by DuckDB's parser."""
    try:
        (serialised,) = connection.execute("select json_serialize_sql($text)", {"text": text}).fetchone() or ("",)
        views = {name for (name,) in connection.execute("select view_name from duckdb_views()").fetchall()}
    except duckdb.Error as error:
        raise FairfaceError(first_line(error)) from error
    tree = json.loads(serialised)
    if tree["error"]:
        reason = tree["error_message"].splitlines()[0][:300]
        if tree["error_type"] == "not implemented":
            reason = "only a single SELECT is allowed here, and a PIVOT needs its values (in ...)"
        raise FairfaceError(reason)
    if len(tree["statements"]) != 1:
        raise FairfaceError("only a single SELECT is allowed here: nothing may be written")
    parts = list(_iterate_objects(tree["statements"][0]))
    names = views | {entry["key"] for part in parts for entry in part.get("cte_map", {}).get("map", ())}
    names |= {part["cte_name"] for part in parts if "cte_name" in part}
    names |= {part["ctename"] for part in parts if "ctename" in part}
    # a name such as 'file.csv' is a file where no CTE of that name is in scope
    known = {name.lower() for name in names if not set(name) & set("./\\")}
    for part in parts:
        if fault := _find_fault(part, known):
            raise FairfaceError(f"{fault} is not allowed here: a query may only read the views")


def _iterate_objects(value: Any) -> Iterator[dict[str, Any]]:
    """Every object of a JSON value."""
    pending = [value]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            yield value
            pending += value.values()
        elif isinstance(value, list):
            pending += value


def _find_fault(part: dict[str, Any], names: set[str]) -> str | None:
    """What an object of the parsed tree names that is not allowed."""
    kind = str(part.get("type", ""))
    if "info_type" in part:
        return str(part["info_type"])
    if part.get("class") == "FUNCTION":
        name = str(part["function_name"]).lower()
        return f"{name}()" if name in REFUSED_FUNCTIONS else None
    if "class" in part:
        return None  # another expression
    if kind.endswith("_NODE") and kind not in NODES:
        return kind.removesuffix("_NODE").removesuffix("_QUERY")
    if "sample" in part and "alias" in part:
        return _find_table_fault(part, kind, names)
    return None


def _find_table_fault(part: dict[str, Any], kind: str, names: set[str]) -> str | None:
    """What a table in the parsed tree names that is not allowed."""
    if kind == "BASE_TABLE":
        name = str(part["table_name"])
        is_own = not part["catalog_name"] and part["schema_name"] in ("", "main") and name.lower() in names
        return None if is_own else f"the table {name!r}"
    if kind == "TABLE_FUNCTION":
        name = str(part["function"].get("function_name", "")).lower()
        return None if name in TABLE_FUNCTIONS else f"the table function {name}()"
    return None if kind in TABLES else kind


def as_text_where_needed(answer: duckdb.DuckDBPyRelation, *, huge: str) -> duckdb.DuckDBPyRelation:
    """`answer` with columns of distinct names, and with text in place of the types that Polars can't hold.

    HUGEINT, the type of sums, becomes the type `huge`.
    """
    columns, seen = [], set()
    for number, (name, kind) in enumerate(zip(answer.columns, answer.types, strict=True), 1):
        unique = next(text for text in _spellings(name) if text not in seen)
        seen.add(unique)
        column = f"#{number}" if EXACT_TYPES.fullmatch(str(kind)) else f"#{number}::varchar"
        if str(kind) == "HUGEINT":
            column = f"#{number}::{huge}"
        columns.append(f'{column} as "{unique.replace(chr(34), chr(34) * 2)}"')
    return answer.project(", ".join(columns))


def _spellings(name: str) -> Iterator[str]:
    """`name`, then `name_1` and so on."""
    yield name
    number = 0
    while True:
        number += 1
        yield f"{name}_{number}"
