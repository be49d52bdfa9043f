"""Section: image quality by group."""

from dataclasses import dataclass
from typing import Any

from reports.formats import number, percent, short
from reports.run_report import RunReport
from reports.sections.table import Cell, Table
from shards.attributes import AttributeTable

COLUMNS = ["attribute", "group", "n", "kernel distance, 95 %", "floor", "coverage", "floor", "diversity", "floor"]


@dataclass(frozen=True)
class Quality:
    table: Table


def quality_section(report: RunReport, attributes: AttributeTable) -> Quality | None:
    rows = [quality_cells(row, title=attributes[row["attribute"]].title) for row in report.quality]
    return Quality(Table(COLUMNS, rows)) if rows else None


def quality_cells(row: dict[str, Any], *, title: str) -> list[Cell]:
    """The row of one group of the attribute with this `title`."""
    cells = [Cell(title), Cell(short(row["group"], 40), css="name"), Cell(number(row["n"]))]
    if row["kernel_distance"] is None:
        return [*cells, Cell("too few"), *[Cell("–")] * 5]
    interval = f"{row['kernel_low']:.4f} to {row['kernel_high']:.4f}"
    return [
        *cells,
        Cell(f"{row['kernel_distance']:.4f}", interval, bold=True),
        Cell(number(row["kernel_floor"], 4)),
        Cell(percent(row["coverage"]), bold=True),
        Cell(percent(row["coverage_floor"])),
        Cell(f"{row['vendi']:.1f}", f"real {row['vendi_real']:.1f}", bold=True),
        Cell(number(row["vendi_floor"], 1)),
    ]
