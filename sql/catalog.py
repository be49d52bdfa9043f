"""The named questions: one `.sql` file each, with its parameters."""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb

from shards.attributes import built_in_attributes
from shards.errors import FairfaceError
from sql.connection import select

if TYPE_CHECKING:
    import polars as pl

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Parameter:
    """A parameter of a question."""

    default: str | None  # None if a value is required
    meaning: str
    choices: tuple[str, ...] = ()  # empty if any text is allowed


@dataclass(frozen=True)
class Question:
    """A question: what it answers, its parameters by name, and its SQL."""

    title: str
    params: dict[str, Parameter]
    sql: str


@cache
def questions() -> dict[str, Question]:
    """Every question by name, from the `.sql` files next to this module.

    A file starts with comments: its title, then a line `-- param NAME (default VALUE): meaning` for each parameter.
    Without a default a value is required. A meaning `one of a, b, c` lists the allowed values; in it, `@attributes`
    stands for all attributes, and `@labelled` for those that are labelled themselves.
    """
    return {path.stem: parse(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.sql"))}


def parse(text: str) -> Question:
    """Parse the text of a `.sql` file."""
    title, params = text.split("\n")[0].removeprefix("--").strip(), {}
    attributes = built_in_attributes()
    lists = {"@attributes": ", ".join(attributes), "@labelled": ", ".join(attributes.labelled)}
    for name, default, meaning in re.findall(r"^-- param (\w+)(?: \(default (.*?)\))?: (.*)$", text, re.MULTILINE):
        meaning = re.sub("@attributes|@labelled", lambda match: lists[match[0]], meaning)
        choices = meaning.removeprefix("one of ").split(", ") if meaning.startswith("one of ") else ()
        params[name] = Parameter(default or None, meaning, tuple(choices))
    return Question(title, params, text)


def ask(connection: duckdb.DuckDBPyConnection, name: str, /, **params: object) -> "pl.DataFrame":
    """Answer the question `name`; omitted parameters have their defaults.

    Raises FairfaceError for an unknown question, parameter, choice or run, and for a missing required value.
    """
    if name not in questions():
        raise FairfaceError(f"there is no question {name!r}; the questions are {', '.join(questions())}")
    question = questions()[name]
    if unknown := set(params) - set(question.params):
        known = ", ".join(question.params) or "none"
        raise FairfaceError(f"{name} has no parameter {', '.join(sorted(unknown))!r}; its parameters are: {known}")
    values = {key: resolve_value(name, key, params.get(key, p.default), p) for key, p in question.params.items()}
    for key in {"run", "other"} & values.keys():
        check_run(connection, values[key])
    return select(connection, question.sql, values)


def resolve_value(question: str, name: str, value: object | None, parameter: Parameter) -> str:
    """Return a parameter's value as text. Raises FairfaceError if it is missing or not one of the choices."""
    if value is None:
        raise FairfaceError(f"{question} needs a value for {name} ({parameter.meaning})")
    if parameter.choices and str(value) not in parameter.choices:
        raise FairfaceError(f"{name} is one of {', '.join(parameter.choices)}, not {str(value)!r}")
    return str(value)


def check_run(connection: duckdb.DuckDBPyConnection, run: str) -> None:
    """Raise FairfaceError if `run` is neither `newest` nor the name of a run.

    Without this check a misspelt name would look like a run without results.
    """
    known = select(connection, "select run from runs union select run from estimates order by run")["run"].to_list()
    if run != "newest" and run not in known:
        raise FairfaceError(f"there is no run {run!r}; the runs are: {', '.join(map(str, known)) or 'none'}")
