"""Questions about the results below OUT: DuckDB views over its files, and one `.sql` file for each question."""

from pathlib import Path

from sql.catalog import Parameter, Question, ask, questions
from sql.connection import connect, find_files, select
from sql.definitions import class_expression, grouping_id, grouping_sets, identifier, quote, views
from sql.typed import Limits, query

__all__ = [
    "Limits",
    "Parameter",
    "Question",
    "ask",
    "class_expression",
    "connect",
    "find_files",
    "grouping_id",
    "grouping_sets",
    "identifier",
    "query",
    "questions",
    "quote",
    "select",
    "source_files",
    "views",
]


def source_files() -> list[Path]:
    """Every source file of this package; answers depend on these in addition to the data."""
    return sorted(path for path in Path(__file__).parent.rglob("*") if path.suffix in (".py", ".sql"))
