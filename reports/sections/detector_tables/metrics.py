"""Tables of detectors' utility and fairness, overall, by attribute and by group."""

from collections.abc import Sequence
from dataclasses import replace

from reports.formats import short
from reports.sections.detector_tables.cells import Metrics, metric_cell, muted_if_trivial, name_cell
from reports.sections.table import Cell, Table, expanded
from shards.attributes import Attribute, AttributeTable

UTILITY = {
    "auc": "AUC",
    "average_precision": "average precision",
    "eer": "equal error rate",
    "accuracy": "accuracy",
    "fpr": "FPR",
    "tpr": "TPR",
    "tpr_at_fpr_5": "TPR at FPR 5 %",
    "calibration_error": "calibration error",
}
FAIRNESS = {"f_meo": "F_MEO", "f_dp": "F_DP", "f_oae": "F_OAE", "f_eo": "F_EO", "f_efpr": "F_EFPR"}
FAIRNESS |= {"equalized_odds_ratio": "equalised-odds ratio"}
WORST_GROUPS = {  # metric -> its title, and the metric of a group that it is the extreme of, if it is one
    "worst_tpr_at_fpr_1": ("lowest TPR at FPR 1 %", "tpr_at_fpr_1"),
    "worst_tpr_at_fpr_5": ("lowest TPR at FPR 5 %", "tpr_at_fpr_5"),
    "largest_calibration_error": ("largest calibration error", "calibration_error"),
    "calibration_gap": ("calibration gap", None),
}
GROUP_UTILITY = {"auc": "AUC", "accuracy": "accuracy", "fpr": "FPR", "tpr": "TPR", "positive_rate": "called fake"}
GROUP_UTILITY |= {"tpr_at_fpr_1": "TPR at FPR 1 %", "tpr_at_fpr_5": "TPR at FPR 5 %"}
GROUP_UTILITY |= {"calibration_error": "calibration error"}
FEW_COMPARED = 4  # attributes at most whose fairness is not folded: there is a row for each of them and each detector


def utility_table(detectors: dict[str, Metrics]) -> Table:
    """Each detector's utility: how well it separates fakes from real faces."""
    rows = []
    for label, metrics in detectors.items():
        cells = [metric_cell(metrics.get(("all", "all", measure))) for measure in UTILITY]
        rows.append(muted_if_trivial(label, [name_cell(label), *cells]))
    return Table(["detector", *UTILITY.values()], rows)


def compared_attributes(detectors: dict[str, Metrics], attributes: AttributeTable) -> list[list[Attribute]]:
    """The attributes whose groups were compared: those that are not folded, and the others, if there are any."""
    measured = {attribute for metrics in detectors.values() for attribute, group, _ in metrics if group is None}
    shown = [item for name, item in attributes.items() if name in measured]
    if not shown:
        return []
    names = expanded(shown, few=FEW_COMPARED)
    parts = [[item for item in shown if (item.name in names) == is_first] for is_first in (True, False)]
    return [part for part in parts if part]


def fairness_tables(detectors: dict[str, Metrics], parts: Sequence[Sequence[Attribute]]) -> list[Table]:
    """Each detector's fairness: how differently it treats the groups of each attribute."""
    tables = [fairness_table(detectors, part) for part in parts]
    title = "Fairness over the groups of the other attributes"
    return [*tables[:1], *(replace(table, title=title, is_collapsed=True) for table in tables[1:])]


def fairness_table(detectors: dict[str, Metrics], attributes: Sequence[Attribute]) -> Table:
    """Each detector's fairness over the groups of these attributes."""
    rows = []
    for label, metrics in detectors.items():
        for attribute in attributes:
            cells = [metrics.get((attribute.name, None, measure)) for measure in FAIRNESS]
            if any(cells):
                named = [name_cell(label), Cell(attribute.title), *map(metric_cell, cells)]
                rows.append(muted_if_trivial(label, named))
    return Table(["detector", "groups", *FAIRNESS.values()], rows)


def worst_group_tables(detectors: dict[str, Metrics], parts: Sequence[Sequence[Attribute]]) -> list[Table]:
    """The group of each attribute that each detector serves worst."""
    tables = [worst_group_table(detectors, part) for part in parts]
    title = "The worst groups of the other attributes"
    return [*tables[:1], *(replace(table, title=title, is_collapsed=True) for table in tables[1:])]


def worst_group_table(detectors: dict[str, Metrics], attributes: Sequence[Attribute]) -> Table:
    """The group of each of these attributes that each detector serves worst."""
    rows = []
    for label, metrics in detectors.items():
        for attribute in attributes:
            cells = []
            for measure, (_, of_group) in WORST_GROUPS.items():
                row = metrics.get((attribute.name, None, measure))
                group = worst_group(metrics, attribute, value=row["value"] if row else None, measure=of_group)
                cells.append(metric_cell(row, note=group))
            if any(cell.text != "undefined" for cell in cells):
                rows.append(muted_if_trivial(label, [name_cell(label), Cell(attribute.title), *cells]))
    return Table(["detector", "groups", *(title for title, _ in WORST_GROUPS.values())], rows)


def worst_group(metrics: Metrics, attribute: Attribute, *, value: float | None, measure: str | None) -> str:
    """The group whose metric has this value; empty if several groups have it, or no metric is named."""
    rows = [metrics.get((attribute.name, group, measure)) for group in attribute.names] if measure else []
    groups = [row["group"] for row in rows if row and value is not None and row["value"] == value]
    return short(groups[0], 30) if len(groups) == 1 else ""


def group_table(label: str, metrics: Metrics, *, attributes: AttributeTable) -> Table:
    """One detector's metrics of each group."""
    rows = []
    for attribute, group, measure in metrics:
        if measure == "auc" and group is not None and attribute in attributes:
            cells = [metric_cell(metrics.get((attribute, group, name))) for name in GROUP_UTILITY]
            rows.append(muted_if_trivial(label, [Cell(attributes[attribute].title), Cell(group, css="name"), *cells]))
    return Table(["attribute", "group", *GROUP_UTILITY.values()], rows)
