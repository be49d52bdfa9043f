"""The SQL that defines the views over the files of a workspace."""

import re
from collections.abc import Iterable
from pathlib import Path

from shards.workspace import Workspace

FOLDER = Path(__file__).parent / "views"
FILES = ("columns.sql", "results.sql", "detection.sql")  # in this order: later views are over earlier ones
RUN_COLUMNS = (
    "{status: 'VARCHAR', started: 'VARCHAR', finished: 'VARCHAR', device: 'VARCHAR', steps: 'BIGINT', "
    "options: 'JSON', data: 'JSON'}"
)


def views(workspace: Workspace) -> str:
    """SQL that creates the views over the files that exist in a workspace, in any DuckDB."""
    files = Workspace(workspace.root.resolve()).view_files()
    text = "".join((FOLDER / name).read_text(encoding="utf-8") for name in FILES)
    # one pass: a path that was filled in may itself contain a placeholder
    return re.sub(r"\{(" + "|".join(files) + r")\}", lambda match: table_expression(match[1], files[match[1]]), text)


def table_expression(view: str, files: Iterable[Path]) -> str:
    """The SQL table that reads the `files` of a view, or its empty table of columns if there are none."""
    # DuckDB reads a path as a glob pattern only if there is no file of exactly that name
    paths = ", ".join(quote(str(file)) for file in files)
    if not paths:
        return f"{view}_columns"
    if view == "runs":
        return f"read_json([{paths}], columns = {RUN_COLUMNS}, filename = true)"
    # labels and samples have a column `run`; the run of steps and of a config.json is the name of its folder
    return f"read_parquet([{paths}], union_by_name = true{', filename = true' if view == 'steps' else ''})"


def quote(text: str) -> str:
    """`text` as an SQL string."""
    return "'" + text.replace("'", "''") + "'"
