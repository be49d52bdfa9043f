"""Tables for the templates: every cell is already formatted as text."""

from dataclasses import dataclass


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

    def __post_init__(self) -> None:
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"a row of {self.title or self.columns} has another number of cells than columns")
