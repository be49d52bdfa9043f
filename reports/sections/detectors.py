"""Section: detectors of generated faces, how accurate and how fair they are."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from reports.detector_report import DetectorAnswers
from reports.formats import number, short
from reports.sections.table import Cell, Table, expanded
from shards.attributes import Attribute, AttributeTable

Metrics = dict[tuple[str, str | None, str], dict[str, Any]]  # (attribute, group, measure) -> row of `detection_metrics`
UTILITY = {
    "auc": "AUC",
    "average_precision": "average precision",
    "eer": "equal error rate",
    "accuracy": "accuracy",
    "fpr": "FPR",
    "tpr": "TPR",
}
FAIRNESS = {"f_meo": "F_MEO", "f_dp": "F_DP", "f_oae": "F_OAE", "f_eo": "F_EO", "f_efpr": "F_EFPR"}
GROUP_UTILITY = {"auc": "AUC", "accuracy": "accuracy", "fpr": "FPR", "tpr": "TPR", "positive_rate": "called fake"}
FEW_COMPARED = 4  # attributes, whose fairness is not folded: there is a row for each of them and each detector
OTHERS = "Fairness over the groups of the other attributes"
ROBUSTNESS = {
    "auc": "AUC",
    "accuracy": "accuracy",
    "fpr": "FPR",
    "tpr": "TPR",
    "f_meo": "F_MEO",
    "f_oae": "F_OAE",
    "f_eo": "F_EO",
}


@dataclass(frozen=True)
class EvaluationSet:
    detector: str
    description: str


@dataclass(frozen=True)
class Detectors:
    evaluation_sets: list[EvaluationSet]
    utility: Table
    fairness: list[Table]  # of the expanded attributes, and of the others if there are any
    by_group: list[tuple[str, Table]]  # (detector, its table)
    robustness: Table | None  # None if no perturbed faces were evaluated
    robustness_groups: str  # that the fairness of the robustness is measured over, such as genders


def detectors_section(report: DetectorAnswers, attributes: AttributeTable) -> Detectors | None:
    detectors: dict[str, Metrics] = {}
    for row in report.detection_metrics:
        key = (row["attribute"], row["group"], row["measure"])
        detectors.setdefault(row["detector"], {})[key] = row
    if not detectors:
        return None
    return Detectors(
        evaluation_sets=[evaluation_set(row) for row in report.evaluation_sets],
        utility=utility_table(detectors),
        fairness=fairness_tables(detectors, attributes),
        by_group=[(short(name, 60), group_table(metrics, attributes)) for name, metrics in detectors.items()],
        robustness=robustness_table(report.robustness),
        robustness_groups=attributes[report.robustness_attribute].plural,
    )


def evaluation_set(row: dict[str, Any]) -> EvaluationSet:
    """The faces that a detector was evaluated on."""
    description = f"{number(row['reals'])} real and {number(row['fakes'])} fake faces"
    if row["run"]:
        description += (
            f"; the fakes are samples of run {row['run']}. Their groups, and those of the training images that serve "
            "as real faces, are predicted by a labeller"
        )
    elif row["grouped_by"] == "annotated":
        description += " from the packed images, with their annotated groups"
    else:
        description += ", from imported predictions"
    return EvaluationSet(short(row["detector"], 60), description)


def metric_cell(row: dict[str, Any] | None) -> Cell:
    """A metric with its interval and floor, grey where it is within the floor."""
    if row is None or row["value"] is None:
        return Cell("undefined")
    details = []
    if row["low"] is not None:
        details.append(f"{row['low']:.3f} to {row['high']:.3f}")
    if row["floor"] is not None:
        details.append(f"floor {row['floor']:.3f}")
    is_within = row["floor"] is not None and row["value"] <= row["floor"]
    return Cell(f"{row['value']:.3f}", "; ".join(details), css="within" if is_within else "", bold=True)


def utility_table(detectors: dict[str, Metrics]) -> Table:
    """Each detector's utility: how well it separates fakes from real faces."""
    rows = [
        [name_cell(name), *(metric_cell(metrics.get(("all", "all", measure))) for measure in UTILITY)]
        for name, metrics in detectors.items()
    ]
    return Table(["detector", *UTILITY.values()], rows)


def fairness_tables(detectors: dict[str, Metrics], attributes: AttributeTable) -> list[Table]:
    """Each detector's fairness: how differently it treats the groups of each attribute."""
    measured = {attribute for metrics in detectors.values() for attribute, group, _ in metrics if group is None}
    shown = [item for name, item in attributes.items() if name in measured]
    if not shown:
        return []
    names = expanded(shown, few=FEW_COMPARED)
    first, others = ([item for item in shown if (item.name in names) == is_first] for is_first in (True, False))
    tables = [fairness_table(detectors, first)]
    return [*tables, replace(fairness_table(detectors, others), title=OTHERS, is_collapsed=True)] if others else tables


def fairness_table(detectors: dict[str, Metrics], attributes: Sequence[Attribute]) -> Table:
    """Each detector's fairness over the groups of these attributes."""
    rows = []
    for name, metrics in detectors.items():
        for attribute in attributes:
            cells = {measure: metrics.get((attribute.name, None, measure)) for measure in FAIRNESS}
            if any(cells.values()):
                rows.append([name_cell(name), Cell(attribute.title), *map(metric_cell, cells.values())])
    return Table(["detector", "groups", *FAIRNESS.values()], rows)


def group_table(metrics: Metrics, attributes: AttributeTable) -> Table:
    """One detector's metrics of each group."""
    rows = []
    for attribute, group, measure in metrics:
        if measure == "auc" and group is not None and attribute in attributes:
            cells = [metric_cell(metrics.get((attribute, group, name))) for name in GROUP_UTILITY]
            rows.append([Cell(attributes[attribute].title), Cell(group, css="name"), *cells])
    return Table(["attribute", "group", *GROUP_UTILITY.values()], rows)


def robustness_table(rows: list[dict[str, Any]]) -> Table | None:
    """Each detector's metrics on perturbed faces; None if there are none."""
    if all(row["perturbation"] == "none" for row in rows):
        return None
    cells = [
        [
            name_cell(row["detector"]),
            Cell("unchanged" if row["perturbation"] == "none" else row["perturbation"].replace("_", " ")),
            *(Cell("undefined" if row[name] is None else f"{row[name]:.3f}") for name in ROBUSTNESS),
        ]
        for row in rows
    ]
    return Table(["detector", "faces", *ROBUSTNESS.values()], cells)


def name_cell(detector: str) -> Cell:
    return Cell(short(detector, 60), css="name")
