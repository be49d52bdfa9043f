"""Tables for the templates, whose cells are already formatted as text, and which attributes a section folds."""

from collections.abc import Sequence
from dataclasses import dataclass

from shards.attributes import Attribute

FEW_ATTRIBUTES = 8  # that a section shows expanded


@dataclass(frozen=True)
class Cell:
    """One cell of a table."""

    text: str
    detail: str = ""  # in small print after the text, such as an interval
    css: str = ""  # class of the cell
    bold: bool = False


@dataclass(frozen=True)
class Table:
    """A table with one heading for each column."""

    columns: list[str]
    rows: list[list[Cell]]
    title: str = ""
    note: str = ""  # below it
    is_collapsed: bool = False  # under its title

    def __post_init__(self) -> None:
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"a row of {self.title or self.columns} has another number of cells than columns")


def expanded(attributes: Sequence[Attribute], *, few: int = FEW_ATTRIBUTES) -> set[str]:
    """The names of the attributes of a section that it shows expanded.

    These are all if they are at most `few`; otherwise those that are so in the table of attributes, or else the first.
    """
    if len(attributes) <= few:
        return {item.name for item in attributes}
    return {item.name for item in attributes if item.expanded} or {attributes[0].name}
