"""Section: the composition of the training data."""

from dataclasses import dataclass
from typing import Any

from reports.formats import number, percent, short
from reports.run_report import RunReport
from reports.sections.table import Cell, Table

COLUMNS = ["family", "subset", "images", "share", "annotated", "women", "light", "medium", "dark"]
SUBSETS, REASONS = 40, 8  # that are listed at most


@dataclass(frozen=True)
class TrainingData:
    composition: Table
    rejected: str | None  # how many images were rejected, and why


def training_data_section(report: RunReport) -> TrainingData:
    table = Table(COLUMNS, [composition_cells(row) for row in report.composition[:SUBSETS]])
    return TrainingData(table, describe_rejects(report.rejects) if report.rejects else None)


def composition_cells(row: dict[str, Any]) -> list[Cell]:
    """The row of one subset."""
    return [
        *(Cell(short(row[name] or "–", 60), css="name") for name in ("family", "subset")),
        Cell(number(row["images"])),
        Cell(percent(row["share"])),
        Cell(number(row["annotated"])),
        *(Cell(percent(row[name])) for name in ("female", "light", "medium", "dark")),
    ]


def describe_rejects(rows: list[dict[str, Any]]) -> str:
    """The number of rejected images and the most frequent reasons, in a sentence."""
    reasons = [
        f"{number(row['images'])} {short(row['reason'] or 'without reason', 60)} ({short(row['subset'] or '–', 60)})"
        for row in rows[:REASONS]
    ]
    more = " and more" if len(rows) > REASONS else ""
    return f"{number(sum(row['images'] for row in rows))} images were rejected: {', '.join(reasons)}{more}."
