"""Section: the composition of the training data."""

from dataclasses import dataclass
from typing import Any

from reports.formats import number, percent, short
from reports.run_report import RunReport
from reports.sections.table import Cell, Table
from shards.attributes import Attribute, AttributeTable

COLUMNS = ["family", "subset", "images", "share", "annotated"]
SUBSETS, REASONS = 40, 8  # that are listed at most
GROUP_COLUMNS = 8  # of the first attributes, at most


@dataclass(frozen=True)
class TrainingData:
    composition: Table | None  # None where nothing is packed
    rejected: str | None  # how many images were rejected, and why


def training_data_section(report: RunReport, attributes: AttributeTable) -> TrainingData:
    shares = {
        (row["family"], row["subset"], name, row["group"]): row["share"]
        for name, rows in report.composition_groups.items()
        for row in rows
    }
    groups: list[tuple[str, str]] = []
    for name in report.composition_groups:
        if len(groups) + len(shown_groups(attributes[name])) <= GROUP_COLUMNS:
            groups += shown_groups(attributes[name])
    rows = [
        composition_cells(row)
        + [Cell(percent(shares.get((row["family"], row["subset"], name, group)))) for name, group in groups]
        for row in report.composition[:SUBSETS]
    ]
    table = Table([*COLUMNS, *(f"{short(attributes[name].title)}: {short(group)}" for name, group in groups)], rows)
    return TrainingData(table if rows else None, describe_rejects(report.rejects) if report.rejects else None)


def shown_groups(attribute: Attribute) -> list[tuple[str, str]]:
    """The attribute and the name of each class with a column: without the second of two, which has the other faces."""
    names = attribute.names[:1] if len(attribute.classes) == 2 else attribute.names
    return [(attribute.name, name) for name in names]


def composition_cells(row: dict[str, Any]) -> list[Cell]:
    """The row of one subset, without its groups."""
    return [
        *(Cell(short(row[name] or "–", 60), css="name") for name in ("family", "subset")),
        Cell(number(row["images"])),
        Cell(percent(row["share"])),
        Cell(number(row["annotated"])),
    ]


def describe_rejects(rows: list[dict[str, Any]]) -> str:
    """The number of rejected images and the most frequent reasons, in a sentence."""
    reasons = [
        f"{number(row['images'])} {short(row['reason'] or 'without reason', 60)} ({short(row['subset'] or '–', 60)})"
        for row in rows[:REASONS]
    ]
    more = " and more" if len(rows) > REASONS else ""
    return f"{number(sum(row['images'] for row in rows))} images were rejected: {', '.join(reasons)}{more}."
