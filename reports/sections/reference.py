"""Section: the shares of every group compared with an external reference, such as a census."""

from dataclasses import dataclass
from typing import Any

from reports.formats import number, percent, ratio, short
from reports.run_report import RunReport
from reports.sections.table import Cell, Table, expanded
from shards.attributes import AttributeTable

COLUMNS = ["group", "generated, 95 %", "reference", "ratio, 95 %", "verdict"]


@dataclass(frozen=True)
class Reference:
    tables: list[Table]  # of each attribute
    has_training: bool  # whether there are training images
    is_only: bool  # whether the samples are not compared with training images


def reference_section(report: RunReport, attributes: AttributeTable) -> Reference | None:
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in report.reference_estimates:
        rows.setdefault(row["attribute"], []).append(row)
    shown = [item for name, item in attributes.tabulated.items() if name in rows]
    if not shown:
        return None
    notes = {row["attribute"]: row["correction_note"] for row in report.estimates if row["correction_note"]}
    tables = [
        Table(
            COLUMNS,
            [group_cells(row) for row in rows[item.name]],
            title=f"{item.title}, against {describe_baseline(rows[item.name][0])}",
            note=f"Not corrected: {notes[item.name]}." if item.name in notes else "",
            is_collapsed=item.name not in expanded(shown),
        )
        for item in shown
    ]
    return Reference(tables, report.has_training, not report.compares_training)


def describe_baseline(row: dict[str, Any]) -> str:
    """The reference of an attribute, with the number of people behind it."""
    size = f" (n = {number(row['reference_n'])})" if row["reference_n"] else ""
    return f"{short(row['baseline'], 80)}{size}"


def group_cells(row: dict[str, Any]) -> list[Cell]:
    """The row of one group."""
    interval = f"{percent(row['share_low'])} to {percent(row['share_high'])}" if row["n"] else ""
    reference = f"{percent(row['reference_low'])} to {percent(row['reference_high'])}" if row["reference_n"] else ""
    high = "∞" if row["ratio_high"] is None else f"{row['ratio_high']:.2f}"
    ends = f"{row['ratio_low']:.2f} to {high}" if row["n"] else ""
    return [
        Cell(short(row["group"], 80), css="name"),
        Cell(percent(row["share"]), interval, bold=True),
        Cell(percent(row["reference"]), reference),
        Cell(ratio(row["ratio"]), ends, bold=True),
        Cell("too few faces" if row["verdict"] == "inconclusive" else row["verdict"], css=row["verdict"]),
    ]
