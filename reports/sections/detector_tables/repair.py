"""Tables of thresholds by group: how much fairer they make a detector, and what they cost in utility."""

from collections.abc import Collection, Sequence
from dataclasses import replace

from reports.sections.detector_tables.cells import (
    Row,
    detector_label,
    is_trivial,
    metric_cell,
    muted_if_trivial,
    name_cell,
)
from reports.sections.table import Cell, Table
from shards.attributes import Attribute

VARIANTS = {
    "none": "as it is",
    "single": "one for all groups",
    "equalized": "by group, equalised rates",
    "worst_group": "by group, best for each",
}
MEASURES = {
    "equalized_odds_difference": "equalised-odds difference",
    "worst_balanced_accuracy": "worst group's balanced accuracy",
    "balanced_accuracy": "balanced accuracy",
}


def repair_tables(rows: Sequence[Row], parts: Sequence[Sequence[Attribute]], *, sets: Collection[str]) -> list[Table]:
    """The effect of thresholds by group: a table for the first attribute, and one for the others, both folded."""
    shown = [attribute for part in parts for attribute in part]
    tables = []
    for part, title in (
        (shown[:1], "Thresholds by {}"),
        (shown[1:], "Thresholds by the groups of the other attributes"),
    ):
        if part:
            table = repair_table(rows, part, sets=sets)
            tables.append(replace(table, title=title.format(part[0].plural), is_collapsed=True))
    return tables


def repair_table(rows: Sequence[Row], attributes: Sequence[Attribute], *, sets: Collection[str]) -> Table:
    """The effect of thresholds by the groups of these attributes."""
    found: dict[tuple[str, str, str], dict[str, Row]] = {}
    for row in rows:
        found.setdefault((row["attribute"], detector_label(row, sets), row["variant"]), {})[row["measure"]] = row
    cells = []
    for attribute in attributes:
        for (name, label, variant), measures in found.items():
            # thresholds change none of these metrics of a constant
            is_repeated = (
                variant != "none" and is_trivial(label) and not any(measures[measure]["change"] for measure in MEASURES)
            )
            if name == attribute.name and not is_repeated:
                start = [name_cell(label), Cell(attribute.title), Cell(VARIANTS[variant], css="name")]
                values = [cell for measure in MEASURES for cell in change_cells(measures[measure])]
                cells.append(muted_if_trivial(label, [*start, *values]))
    columns = ["detector", "groups", "thresholds"]
    return Table([*columns, *(name for title in MEASURES.values() for name in (title, "change"))], cells)


def change_cells(row: Row) -> list[Cell]:
    """A metric, and its difference from that of the detector as it is."""
    if row["change"] is None:
        return [metric_cell(row), Cell("")]
    is_known = row["change_low"] is not None
    interval = f"{row['change_low']:+.3f} to {row['change_high']:+.3f}" if is_known else ""
    return [metric_cell(row), Cell(f"{row['change']:+.3f}", interval)]
