"""Section: how often detectors call this run's samples fake, by group."""

from dataclasses import dataclass
from typing import Any

from reports.formats import conjunction, number, precise_percent
from reports.run_report import RunReport
from reports.sections.detector_tables.cells import metric_cell, name_cell
from reports.sections.table import Cell, Table
from shards.attributes import AttributeTable

CORRECTIONS = {"labels": "by labels", "audit": "by people", "none": "uncorrected"}


@dataclass(frozen=True)
class DetectionRates:
    rates: Table
    gaps: Table | None  # None if nothing could be compared
    uncorrected: list[str]  # sentences: the attributes whose rates are not corrected, and why


def detection_rates_section(report: RunReport, attributes: AttributeTable) -> DetectionRates | None:
    """The rates of this run's samples; None if no detector has classified any."""
    if not report.detection_rates:
        return None
    return DetectionRates(
        rates=rate_table(report.detection_rates, attributes),
        gaps=gap_table(report.detection_gaps, attributes),
        uncorrected=uncorrected(report.detection_gaps, attributes),
    )


def rate_table(rows: list[dict[str, Any]], attributes: AttributeTable) -> Table:
    """The share of each group's faces that each detector calls fake, corrected and by label."""
    cells = [
        [
            name_cell(row["detector"]),
            Cell("all samples" if row["attribute"] == "all" else row["group"], css="name"),
            corrected_cell(row),
            Cell(precise_percent(row["rate"]), interval(row["low"], row["high"]), bold=row["attribute"] == "all"),
            Cell(number(row["n"])),
        ]
        for row in rows
        if row["attribute"] == "all" or not attributes[row["attribute"]].cross
    ]
    return Table(
        ["detector", "group", "called fake, corrected", "called fake, by label", "samples with this label"], cells
    )


def corrected_cell(row: dict[str, Any]) -> Cell:
    """The corrected rate with its interval, and what it was corrected by."""
    if row["corrected"] is None:
        return Cell("–")
    ends = interval(row["corrected_low"], row["corrected_high"])
    return Cell(precise_percent(row["corrected"]), f"{ends}, {CORRECTIONS[row['correction']]}", bold=True)


def interval(low: float | None, high: float | None) -> str:
    """The ends of an interval: 91.2 to 98.4 %."""
    return "" if low is None or high is None else f"{100 * low:.1f} to {precise_percent(high)}"


def gap_table(rows: list[dict[str, Any]], attributes: AttributeTable) -> Table | None:
    """The largest difference between the groups of each attribute."""
    cells = [
        [
            name_cell(row["detector"]),
            Cell(attributes[row["attribute"]].title),
            metric_cell(row | {"value": row["gap"], "measure": "gap"}),
            Cell(CORRECTIONS[row["correction"]]),
        ]
        for row in rows
        if row["gap"] is not None
    ]
    columns = ["detector", "groups", "largest difference", "estimate"]
    return Table(columns, cells, title="Largest differences between groups", is_collapsed=True) if cells else None


def uncorrected(rows: list[dict[str, Any]], attributes: AttributeTable) -> list[str]:
    """A sentence for each reason why the rates of some attributes are not corrected."""
    reasons: dict[str, dict[str, None]] = {}
    for row in rows:
        if row["correction"] == "none":
            reasons.setdefault(row["note"], {})[attributes[row["attribute"]].title] = None
    return [f"Not corrected: {conjunction(list(names))} ({note})." for note, names in reasons.items()]
