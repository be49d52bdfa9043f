"""Section: distances of the generated distribution from the training data's and from equal shares."""

from dataclasses import dataclass
from typing import Any

from reports.run_report import RunReport
from reports.sections.table import Cell, Table
from shards.attributes import AttributeTable

MEASURES = {  # measure -> (heading, digits)
    "total_variation": ("total variation", 3),
    "fairness_discrepancy": ("fairness discrepancy", 3),
    "jensen_shannon": ("Jensen-Shannon, bits", 4),
    "entropy_ratio": ("entropy ratio", 3),
}
BASELINES = {"reference": "Distance from the training data", "uniform": "Distance from equal shares"}


@dataclass(frozen=True)
class Distances:
    tables: list[Table]  # of each baseline


def distances_section(report: RunReport, attributes: AttributeTable) -> Distances | None:
    if not report.estimates:
        return None
    rows = {(row["attribute"], row["baseline"], row["measure"]): row for row in report.distances if row["used"]}
    tables = []
    for baseline, title in BASELINES.items():
        cells = [
            [
                Cell(attribute.title),
                *(distance_cell(rows.get((name, baseline, measure))) for measure in MEASURES),
            ]
            for name, attribute in attributes.tabulated.items()
            if any((name, baseline, measure) in rows for measure in MEASURES)
        ]
        if not cells:  # against training data that are not packed
            continue
        tables.append(Table(["attribute", *(heading for heading, _ in MEASURES.values())], cells, title=title))
    return Distances(tables)


def distance_cell(row: dict[str, Any] | None) -> Cell:
    """A distance with its interval and floor, grey where it is within the floor."""
    if row is None or row["value"] is None:
        return Cell("–")
    digits = MEASURES[row["measure"]][1]
    value, low, high, floor = (f"{row[name]:.{digits}f}" for name in ("value", "low", "high", "null_floor"))
    is_below = row["value"] <= row["null_floor"]
    is_within = is_below != (row["measure"] == "entropy_ratio")  # chance lowers the ratio of entropies
    return Cell(value, f"{low} to {high}; floor {floor}", css="within" if is_within else "", bold=True)
