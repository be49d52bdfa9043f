"""Every question asked of the results: DuckDB views over the files below OUT, one `.sql` file a question."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import duckdb
import polars as pl

from shards.errors import FairfaceError

HERE = Path(__file__).parent
FILES = {  # view -> its files, below OUT
    "images": ["shards/images.parquet"],
    "unmatched": ["shards/unmatched.parquet"],
    "labels": [f"{where}/{name}.parquet" for where in ("shards", "runs/*") for name in ("labels", "probe", "pixels")],
    "labellers": ["shards/labellers.parquet"],
    "samples": ["runs/*/samples.parquet"],
    "steps": ["runs/*/steps.parquet"],
    "runs": ["runs/*/config.json"],
    "estimates": ["report/estimates.parquet"],
    "readings": ["report/readings.parquet"],
    "distances": ["report/distances.parquet"],
    "quality": ["report/quality.parquet"],
    "neighbours": ["report/neighbours.parquet"],
    "confusion": ["report/confusion.parquet"],
    "predictions": ["detectors/*/predictions.parquet"],
    "detection": ["detectors/*/detection.parquet"],
}
RUN_COLUMNS = (
    "{status: 'VARCHAR', started: 'VARCHAR', finished: 'VARCHAR', device: 'VARCHAR', steps: 'BIGINT', "
    "options: 'JSON', data: 'JSON'}"
)


@dataclass(frozen=True)
class Parameter:
    """`default` is None where a value must be given; `choices` is empty where any text will do."""

    default: str | None
    meaning: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Question:
    """One `.sql` file: what it answers, its parameters by name, its text."""

    title: str
    params: dict[str, Parameter]
    sql: str


def connect(out: Path) -> duckdb.DuckDBPyConnection:
    """Opens the views of `views.sql` over whatever files exist below `out`, in memory; there is no database
    file.

    A view whose files are missing is empty, with its columns. The connection reads the files of the views: the
    network, extensions, other files and its own configuration are locked. DuckDB allows writing wherever it
    allows reading, so SQL that a person typed goes through `query`, which lets nothing but reading through.
    FairfaceError where a file is there but can't be read.
    """
    out = out.resolve()
    connection = duckdb.connect(":memory:")
    try:
        connection.execute(views(out))
    except duckdb.Error as error:
        raise FairfaceError(f"the results below {out} can't be read: {first_line(error)}") from error
    connection.execute("set parquet_metadata_cache = true")  # the views look at the same files again and again
    # just the files that the views read: a folder below `out` may be a link, and `link/..` is elsewhere
    paths = {str(spelling) for file in files_below(out) for spelling in (file, file.resolve())}
    connection.execute(f"set allowed_paths = [{', '.join(map(quoted, sorted(paths)))}]")
    connection.execute("set temp_directory = ''")  # else it may be read and written as well
    connection.execute("set enable_external_access = false")
    connection.execute("set lock_configuration = true")
    return connection


def views(out: Path) -> str:
    """The SQL that makes the views over whatever files exist below `out`, for any DuckDB."""
    out = out.resolve()

    def files(match: re.Match) -> str:  # in one pass: a path may itself hold what looks like a place
        return source(match[1], files_below(out, match[1]))

    text = (HERE / "views.sql").read_text(encoding="utf-8")
    return re.sub(r"\{(" + "|".join(FILES) + r")\}", files, text)


def files_below(out: Path, *views: str) -> list[Path]:
    """The files of some views, or of all, wherever links lead."""
    patterns = [pattern for view in views or FILES for pattern in FILES[view]]
    return [path for pattern in patterns for path in sorted(out.glob(pattern))]


def source(view: str, files: Iterable[Path]) -> str:
    """The SQL that reads `files`, or the empty table of that view's columns."""
    # DuckDB takes a path for a pattern only where there is no file of just that name
    paths = ", ".join(quoted(str(file)) for file in files)
    if not paths:
        return f"{view}_columns"
    if view == "runs":
        return f"read_json([{paths}], columns = {RUN_COLUMNS}, filename = true)"
    # labels and samples name their run themselves; steps are told apart by their folder, and so are runs
    return f"read_parquet([{paths}], union_by_name = true{', filename = true' if view == 'steps' else ''})"


def quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:300]


@cache
def questions() -> dict[str, Question]:
    """Every question by name, from the `.sql` files beside this one.

    A file opens with comments: what it answers, then a line `-- param NAME (default VALUE): meaning` a
    parameter; without a default a value must be given, and `one of a, b, c` as meaning lists the only values.
    """
    return {
        path.stem: parse(path.read_text(encoding="utf-8"))
        for path in sorted(HERE.glob("*.sql"))
        if path.stem != "views"
    }


def parse(text: str) -> Question:
    title, params = text.split("\n")[0].removeprefix("--").strip(), {}
    for name, default, meaning in re.findall(r"^-- param (\w+)(?: \(default (.*?)\))?: (.*)$", text, re.M):
        listed = meaning.removeprefix("one of ").split(", ") if meaning.startswith("one of ") else ()
        params[name] = Parameter(default or None, meaning, tuple(listed))
    return Question(title, params, text)


def ask(connection: duckdb.DuckDBPyConnection, name: str, /, **params: object) -> pl.DataFrame:
    """Asks the question `name`; parameters left out take their defaults.

    FairfaceError for an unknown question, parameter, choice or run, and for a parameter without value.
    """
    if name not in questions():
        raise FairfaceError(f"there is no question {name!r}; the questions are {', '.join(questions())}")
    question = questions()[name]
    if unknown := set(params) - set(question.params):
        known = ", ".join(question.params) or "none"
        raise FairfaceError(f"{name} has no parameter {', '.join(sorted(unknown))!r}; its parameters are: {known}")
    values = {}
    for key, parameter in question.params.items():
        value = params.get(key, parameter.default)
        if value is None:
            raise FairfaceError(f"{name} needs a value for {key} ({parameter.meaning})")
        if parameter.choices and str(value) not in parameter.choices:
            raise FairfaceError(f"{key} is one of {', '.join(parameter.choices)}, not {str(value)!r}")
        values[key] = str(value)
    for key in {"run", "other"} & values.keys():
        check_run(connection, values[key])
    return select(connection, question.sql, values)


def check_run(connection: duckdb.DuckDBPyConnection, run: str) -> None:
    """FairfaceError where `run` is neither `newest` nor a run's name: a misspelt run must not look like an empty
    one.
    """
    known = select(connection, "select run from runs union select run from estimates order by run")["run"].to_list()
    if run != "newest" and run not in known:
        raise FairfaceError(f"there is no run {run!r}; the runs are: {', '.join(map(str, known)) or 'none'}")


def query(connection: duckdb.DuckDBPyConnection, sql: str, params: dict[str, object] | None = None) -> pl.DataFrame:
    """Runs one SELECT that only reads. FairfaceError for anything else, and for SQL that DuckDB refuses."""
    try:
        statements = connection.extract_statements(sql)
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
            raise FairfaceError("only one SELECT at a time is answered here: nothing may be written")
        text = statements[0].query.strip().rstrip(";")
        # A SELECT can still write, by `with x as (copy ...)`, but only at the top level: inside brackets the
        # binder refuses it. So it's bound there once, without being run.
        connection.sql(f"explain from (\n{text}\n)", params=params or {})
    except duckdb.Error as error:
        raise FairfaceError(first_line(error)) from error
    return select(connection, text, params)


def select(connection: duckdb.DuckDBPyConnection, sql: str, params: dict[str, object] | None = None) -> pl.DataFrame:
    """Runs a SELECT of our own, which nobody typed: it is not looked at first. FairfaceError where DuckDB refuses it."""
    try:
        return connection.sql(sql, params=params or {}).pl()
    except duckdb.Error as error:
        raise FairfaceError(first_line(error)) from error
