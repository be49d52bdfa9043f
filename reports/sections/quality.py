"""Section: image quality by group."""

from dataclasses import dataclass
from typing import Any

from reports.attributes import TITLES
from reports.formats import number, percent, short
from reports.run_report import RunReport
from reports.sections.table import Cell, Table

COLUMNS = ["attribute", "group", "n", "kernel distance, 95 %", "floor", "coverage", "floor"]


@dataclass(frozen=True)
class Quality:
    table: Table


def quality_section(report: RunReport) -> Quality | None:
    return Quality(Table(COLUMNS, [quality_cells(row) for row in report.quality])) if report.quality else None


def quality_cells(row: dict[str, Any]) -> list[Cell]:
    """The row of one group."""
    cells = [Cell(TITLES[row["attribute"]]), Cell(short(row["group"], 40), css="name"), Cell(number(row["n"]))]
    if row["kernel_distance"] is None:
        return [*cells, Cell("too few"), Cell("–"), Cell("–"), Cell("–")]
    interval = f"{row['kernel_low']:.4f} to {row['kernel_high']:.4f}"
    return [
        *cells,
        Cell(f"{row['kernel_distance']:.4f}", interval, bold=True),
        Cell(number(row["kernel_floor"], 4)),
        Cell(percent(row["coverage"]), bold=True),
        Cell(percent(row["coverage_floor"])),
    ]
