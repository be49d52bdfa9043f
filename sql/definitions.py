"""The SQL that defines the views over the files of a workspace."""

import re
from collections.abc import Collection, Iterable
from pathlib import Path

from shards.provenance import CurrentFiles
from shards.workspace import REPORT_TABLES

FOLDER = Path(__file__).parent / "views"
FILES = ("columns.sql", "results.sql", "detection.sql")  # in this order: later views are over earlier ones
RUN_COLUMNS = (
    "{status: 'VARCHAR', started: 'VARCHAR', finished: 'VARCHAR', device: 'VARCHAR', steps: 'BIGINT', "
    "options: 'JSON', data: 'JSON'}"
)


def views(current: CurrentFiles) -> str:
    """SQL that creates the views over the current files of a workspace, in any DuckDB."""
    files = current.files
    text = "".join((FOLDER / name).read_text(encoding="utf-8") for name in FILES)
    # one pass: a path that was filled in may itself contain a placeholder
    return re.sub(
        r"\{(" + "|".join(files) + r")\}",
        lambda match: table_expression(match[1], files[match[1]], stale_runs=current.stale_runs),
        text,
    )


def table_expression(view: str, files: Iterable[Path], *, stale_runs: Collection[str] = ()) -> str:
    """The SQL table that reads the `files` of a view, or its empty table of columns if there are none.

    The rows of `stale_runs` are left out of the report's tables.
    """
    paths = ", ".join(quote(glob_pattern(file)) for file in files)
    if not paths:
        return f"{view}_columns"
    if view == "runs":
        return f"read_json([{paths}], columns = {RUN_COLUMNS}, filename = true)"
    if stale_runs and view in REPORT_TABLES and view != "confusion":
        stale = ", ".join(map(quote, sorted(stale_runs)))
        return f"(from read_parquet([{paths}], union_by_name = true) where run not in ({stale}))"
    # labels and samples have a column `run`; the run of steps and of a config.json is the name of its folder
    return f"read_parquet([{paths}], union_by_name = true{', filename = true' if view == 'steps' else ''})"


def glob_pattern(path: Path) -> str:
    """The glob pattern, as DuckDB reads every path, that matches exactly one path."""
    return re.sub(r"[*?\[]", r"[\g<0>]", str(path))


def quote(text: str) -> str:
    """`text` as an SQL string."""
    return "'" + text.replace("'", "''") + "'"
