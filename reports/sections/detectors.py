"""Section: detectors of generated faces, how accurate and how fair they are."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from reports.detector_report import DetectorAnswers
from reports.formats import number, short
from reports.sections.detector_tables.cells import Metrics, detector_label, muted_if_trivial, name_cell
from reports.sections.detector_tables.hold_out import HoldOut, hold_out_section
from reports.sections.detector_tables.metrics import (
    compared_attributes,
    fairness_tables,
    group_table,
    utility_table,
    worst_group_tables,
)
from reports.sections.detector_tables.repair import repair_tables
from reports.sections.detector_tables.tradeoff import tradeoff_tables
from reports.sections.table import Cell, Table
from shards.attributes import AttributeTable

RESOLVABLE = 100  # real faces: one of them is an FPR of 1 %
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
    detectors: str  # those that were evaluated on it
    description: str


@dataclass(frozen=True)
class Detectors:
    evaluation_sets: list[EvaluationSet]
    utility: Table
    fairness: list[Table]  # of the expanded attributes, and of the others if there are any
    worst_groups: list[Table]
    by_group: list[tuple[str, Table]]  # (detector, its table)
    few_real_faces: list[str]  # detectors that were evaluated on fewer than RESOLVABLE real faces
    tradeoff: list[Table]
    tradeoff_figures: list[Markup]  # of the first attribute, one for each evaluation set
    has_several_sets: bool
    repair: list[Table]
    robustness: Table | None  # None if no perturbed faces were evaluated
    hold_out: HoldOut | None  # None if the fakes are of a single generator
    robustness_groups: str  # whose fairness the robustness table shows, such as genders


def detectors_section(
    report: DetectorAnswers, attributes: AttributeTable, *, tradeoff_figures: list[Markup]
) -> Detectors | None:
    sets = {row["evaluation_set"] for row in report.evaluation_sets}
    detectors: dict[str, Metrics] = {}
    for row in report.detection_metrics:
        key = (row["attribute"], row["group"], row["measure"])
        detectors.setdefault(detector_label(row, sets), {})[key] = row
    if not detectors:
        return None
    compared = compared_attributes(detectors, attributes)
    return Detectors(
        evaluation_sets=evaluation_sets(report.evaluation_sets),
        utility=utility_table(detectors),
        fairness=fairness_tables(detectors, compared),
        worst_groups=worst_group_tables(detectors, compared),
        by_group=[
            (short(label, 60), group_table(label, metrics, attributes=attributes))
            for label, metrics in detectors.items()
        ],
        few_real_faces=[short(row["detector"], 60) for row in report.evaluation_sets if row["reals"] < RESOLVABLE],
        tradeoff=tradeoff_tables(report.tradeoff, compared, sets=sets),
        tradeoff_figures=tradeoff_figures,
        has_several_sets=len(sets) > 1,
        repair=repair_tables(report.repair, compared, sets=sets),
        robustness=robustness_table(report.robustness, sets=sets),
        hold_out=hold_out_section(report, attributes),
        robustness_groups=attributes[report.robustness_attribute].plural,
    )


def evaluation_sets(rows: Sequence[dict[str, Any]]) -> list[EvaluationSet]:
    """The evaluation sets, each with its detectors."""
    detectors: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        detectors.setdefault((row["evaluation_set"], describe_faces(row)), []).append(short(row["detector"], 60))
    return [EvaluationSet(", ".join(names), description) for (_, description), names in detectors.items()]


def describe_faces(row: dict[str, Any]) -> str:
    """The faces that a detector was evaluated on, and the fakes that it was trained without."""
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
    if row["held_out"]:
        description += f"; trained without the fakes of {short(row['held_out'], 60)}"
    return description


def robustness_table(rows: list[dict[str, Any]], *, sets: Collection[str]) -> Table | None:
    """Each detector's metrics on perturbed faces; None if there are none."""
    if all(row["perturbation"] == "none" for row in rows):
        return None
    cells = []
    for row in rows:
        label = detector_label(row, sets)
        faces = "unchanged" if row["perturbation"] == "none" else row["perturbation"].replace("_", " ")
        values = [Cell("undefined" if row[name] is None else f"{row[name]:.3f}") for name in ROBUSTNESS]
        cells.append(muted_if_trivial(label, [name_cell(label), Cell(faces), *values]))
    return Table(["detector", "faces", *ROBUSTNESS.values()], cells)
