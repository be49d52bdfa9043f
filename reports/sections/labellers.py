"""Section: how accurate the labellers are, and the confusion matrices of the selected ones."""

from dataclasses import dataclass

from reports.attributes import ATTRIBUTES, TITLES
from reports.confusion import ConfusionMatrix, ConfusionRow
from reports.formats import number, percent, precise_percent, short
from reports.run_report import RunReport
from reports.sections.table import Cell, Table


@dataclass(frozen=True)
class HeatCell:
    text: str  # percent
    heat: str  # a share from 0 to 1, as CSS reads it


@dataclass(frozen=True)
class HeatRow:
    annotated: str
    cells: list[HeatCell]  # by labelled group
    n: str


@dataclass(frozen=True)
class HeatMap:
    title: str
    labels: list[str]
    rows: list[HeatRow]


@dataclass(frozen=True)
class Labellers:
    is_labelled: bool  # on both sides
    accuracy: Table | None  # None without annotations
    matrices: list[HeatMap]


def labellers_section(report: RunReport) -> Labellers:
    if not report.labelling or not report.is_annotated:
        return Labellers(bool(report.labelling), None, [])
    matrices = [
        heat_map(attribute, matrix) for attribute, matrix in report.confusion.items() if attribute != "intersection"
    ]
    return Labellers(True, accuracy_table(report), matrices)


def accuracy_table(report: RunReport) -> Table:
    """The accuracy of every labeller; the selected one of each attribute is marked."""
    columns = ["attribute", "labeller", "images", "accuracy", "balanced accuracy"]
    rows = []
    for row in report.labellers:
        attribute, method = row["attribute"], row["method"]
        if attribute in ATTRIBUTES:
            is_selected = report.selected_methods[attribute] == method
            rows.append(
                [
                    Cell(TITLES[attribute]),
                    Cell(f"{method} ▸ used" if is_selected else method),
                    Cell(number(row["n"])),
                    Cell(precise_percent(row["accuracy"]), bold=True),
                    Cell(percent(row["balanced_accuracy"])),
                ]
            )
    return Table(columns, rows)


def heat_map(attribute: str, matrix: ConfusionMatrix) -> HeatMap:
    """A confusion matrix in percent."""
    rows = [HeatRow(short(row.annotated), heat_cells(row), number(row.n)) for row in matrix.rows]
    return HeatMap(TITLES[attribute], [short(group) for group in matrix.groups], rows)


def heat_cells(row: ConfusionRow) -> list[HeatCell]:
    return [HeatCell("–" if share is None else f"{100 * share:.0f}", f"{share or 0:.3f}") for share in row.shares]
