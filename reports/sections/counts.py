"""Section: counts of labels, on the page of a run without estimates."""

from dataclasses import dataclass
from typing import Any

from reports.attributes import TITLES
from reports.formats import number, percent, short
from reports.run_report import RunReport
from reports.sections.table import Cell, Table

COLUMNS = ["group", "training, labelled", "generated, labelled", "training, annotated"]


@dataclass(frozen=True)
class Counts:
    tables: list[Table]  # of each attribute


def counts_section(report: RunReport) -> Counts | None:
    if report.estimates or not report.counts:
        return None
    return Counts(
        [
            Table(COLUMNS, [count_cells(row) for row in rows], title=TITLES[attribute])
            for attribute, rows in report.counts.items()
        ]
    )


def count_cells(row: dict[str, Any]) -> list[Cell]:
    """The row of one group, from question `side_by_side`."""
    sides = ("train", "generated", "annotated")
    counts = [Cell(number(row[side]), percent(row[f"{side}_share"])) for side in sides]
    return [Cell(short(row["group"], 80), css="name"), *counts]
