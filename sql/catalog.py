"""The named questions: one `.sql` file each, with its parameters."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb

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

    @property
    def choices(self) -> tuple[str, ...]:
        """The allowed values; empty if any text is allowed."""
        return tuple(self.meaning.removeprefix("one of ").split(", ")) if self.meaning.startswith("one of ") else ()


@dataclass(frozen=True)
class Question:
    """A question: what it answers, its parameters by name, and its SQL."""

    title: str
    params: dict[str, Parameter]
    sql: str

    @property
    def refers_to_attributes(self) -> bool:
        """Whether the choices of a parameter are names of attributes."""
        return any("@" in parameter.meaning for parameter in self.params.values())

    def parameters(self, attributes: Mapping[str, Sequence[str]]) -> dict[str, Parameter]:
        """The parameters with names of attributes instead of the placeholders `@attributes` and `@labelled`."""

        def expand(meaning: str) -> str:
            return re.sub("@attributes|@labelled", lambda match: ", ".join(attributes[match[0]]), meaning)

        return {name: Parameter(item.default, expand(item.meaning)) for name, item in self.params.items()}


@cache
def questions() -> dict[str, Question]:
    """Every question by name, from the `.sql` files next to this module.

    A file starts with comments: its title, then a line `-- param NAME (default VALUE): meaning` for each parameter.
    Without a default a value is required. A meaning `one of a, b, c` lists the allowed values; in it, `@attributes`
    stands for all attributes of the workspace, and `@labelled` for those that are labelled themselves.
    """
    return {path.stem: parse(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.sql"))}


def parse(text: str) -> Question:
    """Parse the text of a `.sql` file."""
    title, params = text.split("\n")[0].removeprefix("--").strip(), {}
    for name, default, meaning in re.findall(r"^-- param (\w+)(?: \(default (.*?)\))?: (.*)$", text, re.MULTILINE):
        params[name] = Parameter(default or None, meaning)
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
    parameters = question.parameters(attribute_names(connection) if question.refers_to_attributes else {})
    values = {key: resolve_value(name, key, params.get(key, p.default), p) for key, p in parameters.items()}
    for key in {"run", "other"} & values.keys():
        check_run(connection, values[key])
    return select(connection, question.sql, values)


def attribute_names(connection: duckdb.DuckDBPyConnection) -> dict[str, list[str]]:
    """The names of the attributes that the placeholders in a parameter's choices stand for."""
    text = """select attribute, bool_or(made_of is null) as is_labelled from attributes group by attribute
        order by attribute_rank(attribute)"""
    table = select(connection, text)
    return {
        "@attributes": table["attribute"].to_list(),
        "@labelled": table.filter("is_labelled")["attribute"].to_list(),
    }


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
    if run == "newest":
        return
    known = select(connection, "select run from runs union select run from estimates order by run")["run"].to_list()
    if run not in known:
        raise FairfaceError(f"there is no run {run!r}; the runs are: {', '.join(map(str, known)) or 'none'}")
