"""Section: counts of labels, on the page of a run without estimates."""

from dataclasses import dataclass
from typing import Any

from reports.formats import number, percent, short
from reports.run_report import RunReport
from reports.sections.table import Cell, Table, expanded
from shards.attributes import AttributeTable

COLUMNS = ["group", "training, labelled", "generated, labelled", "training, annotated"]


@dataclass(frozen=True)
class Counts:
    tables: list[Table]  # of each attribute


def counts_section(report: RunReport, attributes: AttributeTable) -> Counts | None:
    if report.estimates or not report.counts:
        return None
    shown = [attributes[name] for name in report.counts]
    return Counts(
        [
            Table(
                COLUMNS,
                [count_cells(row) for row in report.counts[item.name]],
                title=item.title,
                is_collapsed=item.name not in expanded(shown),
            )
            for item in shown
        ]
    )


def count_cells(row: dict[str, Any]) -> list[Cell]:
    """The row of one group, from question `side_by_side`."""
    sides = ("train", "generated", "annotated")
    counts = [Cell(number(row[side]), percent(row[f"{side}_share"])) for side in sides]
    return [Cell(short(row["group"], 80), css="name"), *counts]
