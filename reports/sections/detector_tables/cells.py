"""Cells of detectors' names and metrics."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from reports.formats import short
from reports.sections.table import Cell
from shards.workspace import TRIVIAL_DETECTORS

Row = dict[str, Any]
Metrics = dict[tuple[str, str | None, str], Row]  # (attribute, group, measure) -> row of `detection_metrics`
# of these metrics, a larger value is fairer
LARGER_IS_FAIRER = {"equalized_odds_ratio", "worst_tpr_at_fpr_1", "worst_tpr_at_fpr_5", "worst_balanced_accuracy"}


def detector_label(row: Row, sets: Collection[str]) -> str:
    """The name of a row's detector; of a trivial one, with its evaluation set if there are several `sets`."""
    name = str(row["detector"])
    return f"{name}, faces of {row['evaluation_set']}" if is_trivial(name) and len(sets) > 1 else name


def is_trivial(label: str) -> bool:
    """Whether a label is that of a detector that ignores the image."""
    return label.startswith(TRIVIAL_DETECTORS)


def name_cell(label: str) -> Cell:
    """The name of a detector."""
    return Cell(short(label, 60), css="name")


def muted_if_trivial(label: str, cells: Sequence[Cell]) -> list[Cell]:
    """The cells of a detector's row, which are grey for a detector that ignores the image."""
    if not is_trivial(label):
        return list(cells)
    return [replace(cell, css=f"{cell.css} muted".strip(), bold=False) for cell in cells]


def metric_cell(row: Row | None, *, note: str = "") -> Cell:
    """A metric with its interval and floor, and a note; grey where it is within the floor."""
    if row is None or row["value"] is None:
        return Cell("undefined")
    details = [note] if note else []
    if row["low"] is not None:
        details.append(f"{row['low']:.3f} to {row['high']:.3f}")
    if row["floor"] is not None:
        details.append(f"floor {row['floor']:.3f}")
    return Cell(f"{row['value']:.3f}", "; ".join(details), css="within" if is_within_floor(row) else "", bold=True)


def is_within_floor(row: Row) -> bool:
    """Whether a metric may be that of a detector that treats all groups equally."""
    if row["floor"] is None:
        return False
    larger_is_fairer = row["measure"] in LARGER_IS_FAIRER
    return bool(row["value"] >= row["floor"] if larger_is_fairer else row["value"] <= row["floor"])
