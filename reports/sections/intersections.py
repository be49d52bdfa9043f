"""Section: the thirty cells of gender, skin group and age."""

from dataclasses import dataclass
from typing import Any

from reports.formats import percent, ratio, short
from reports.run_report import RunReport

CELLS, AGES = 30, 5  # cells of known groups; cells in a row
UNEXPECTED_CELLS = 20  # of other groups, that are listed at most


@dataclass(frozen=True)
class IntersectionCell:
    share: str | None  # None if no generated face is in the cell
    reference: str
    ratio: str
    verdict: str


@dataclass(frozen=True)
class IntersectionRow:
    """One gender and skin group."""

    name: str
    cells: list[IntersectionCell]  # by age


@dataclass(frozen=True)
class Intersections:
    ages: list[str]
    rows: list[IntersectionRow]
    unexpected: str | None  # cells of groups outside the vocabulary, with their counts


def intersections_section(report: RunReport) -> Intersections | None:
    rows = [row for row in report.estimates if row["attribute"] == "intersection_age"]
    if not rows or not rows[0]["n"]:
        return None
    cells, others = rows[:CELLS], rows[CELLS:]
    batches = [cells[start : start + AGES] for start in range(0, len(cells), AGES)]
    return Intersections(
        ages=[row["group"].split("-")[2] for row in batches[0]],
        rows=[
            IntersectionRow(", ".join(batch[0]["group"].split("-")[:2]), [intersection_cell(row) for row in batch])
            for batch in batches
        ],
        unexpected=", ".join(f"{short(row['group'], 80)} ({row['count']})" for row in others[:UNEXPECTED_CELLS])
        or None,
    )


def intersection_cell(row: dict[str, Any]) -> IntersectionCell:
    """One cell, from its row of `estimates`."""
    return IntersectionCell(
        share=percent(row["share"]) if row["count"] else None,
        reference=percent(row["reference"]),
        ratio="?" if row["verdict"] == "inconclusive" else ratio(row["ratio"]),
        verdict=row["verdict"],
    )
