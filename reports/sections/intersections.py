"""Section: the cells of every cross of more than two attributes."""

import itertools
from dataclasses import dataclass
from typing import Any

from reports.formats import percent, ratio, short
from reports.run_report import RunReport
from reports.sections.table import expanded
from reports.verdict import is_absent
from shards.attributes import Attribute, AttributeTable

UNEXPECTED_CELLS = 20  # of groups that the cross does not have, that are listed at most


@dataclass(frozen=True)
class IntersectionCell:
    share: str | None  # None if no generated face is in the cell
    reference: str
    ratio: str
    verdict: str


@dataclass(frozen=True)
class IntersectionRow:
    """The combination of one class of each attribute but the last."""

    name: str
    cells: list[IntersectionCell]  # by class of the last attribute


@dataclass(frozen=True)
class Intersection:
    attribute: str
    title: str
    estimate: str  # raw, corrected
    columns: list[str]  # classes of the last attribute
    rows: list[IntersectionRow]
    unexpected: str | None  # other cells, with their counts
    is_collapsed: bool


@dataclass(frozen=True)
class Intersections:
    crosses: list[Intersection]


def intersections_section(report: RunReport, attributes: AttributeTable) -> Intersections | None:
    cells: dict[str, list[dict[str, Any]]] = {}
    for row in report.estimates:
        if not attributes[row["attribute"]].is_tabulated and row["n"]:
            cells.setdefault(row["attribute"], []).append(row)
    shown = [attributes[name] for name in cells]
    few = expanded(shown, few=1)
    crosses = [
        intersection(item, cells[item.name], attributes=attributes, is_collapsed=item.name not in few) for item in shown
    ]
    return Intersections(crosses) if crosses else None


def intersection(
    attribute: Attribute, rows: list[dict[str, Any]], *, attributes: AttributeTable, is_collapsed: bool
) -> Intersection:
    """The cells of one cross, from its rows of `estimates`."""
    *outer, last = (attributes[name].names for name in attribute.cross)
    cells = {row["group"]: intersection_cell(row) for row in rows}
    unexpected = [row for row in rows if row["group"] not in attribute.names]
    return Intersection(
        attribute=attribute.name,
        title=attribute.title,
        estimate=rows[0]["best_estimate"],
        columns=list(last),
        rows=[
            IntersectionRow(", ".join(names), [cells["-".join((*names, name))] for name in last])
            for names in itertools.product(*outer)
        ],
        unexpected=", ".join(f"{short(row['group'], 80)} ({row['count']})" for row in unexpected[:UNEXPECTED_CELLS])
        or None,
        is_collapsed=is_collapsed,
    )


def intersection_cell(row: dict[str, Any]) -> IntersectionCell:
    """One cell, from its row of `estimates`."""
    return IntersectionCell(
        share=None if is_absent(row) else percent(row["best_share"]),
        reference=percent(row["best_reference"]),
        ratio="?" if row["verdict"] == "inconclusive" else ratio(row["ratio"]),
        verdict=row["verdict"],
    )
