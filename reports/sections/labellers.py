"""Section: how accurate the labellers are, and the confusion matrices of the selected ones."""

from dataclasses import dataclass

from reports.confusion import ConfusionMatrix, ConfusionRow
from reports.formats import number, percent, precise_percent, short
from reports.run_report import RunReport
from reports.sections.table import Cell, Table, expanded
from shards.attributes import Attribute, AttributeTable


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
    attribute: str
    title: str
    labels: list[str]
    rows: list[HeatRow]
    is_collapsed: bool


@dataclass(frozen=True)
class Labellers:
    is_labelled: bool  # on both sides
    accuracy: Table | None  # None without annotations
    matrices: list[HeatMap]
    confidence: Table | None = None  # None if neither the classifier nor the probe is used


def labellers_section(report: RunReport, attributes: AttributeTable) -> Labellers:
    if not report.labelling or not report.is_annotated:
        return Labellers(bool(report.labelling), None, [])
    shown = [attributes[name] for name in report.confusion if not attributes[name].cross]
    matrices = [
        heat_map(item, report.confusion[item.name], is_collapsed=item.name not in expanded(shown)) for item in shown
    ]
    return Labellers(True, accuracy_table(report, attributes), matrices, confidence_table(report, attributes))


def accuracy_table(report: RunReport, attributes: AttributeTable) -> Table:
    """The accuracy of every labeller; the selected one of each attribute is marked."""
    columns = ["attribute", "labeller", "images", "accuracy", "balanced accuracy"]
    rows = []
    for name, attribute in attributes.tabulated.items():
        for row in (row for row in report.labellers if row["attribute"] == name):
            method = row["method"]
            is_selected = report.selected_methods[name] == method
            rows.append(
                [
                    Cell(attribute.title),
                    Cell(f"{method} ▸ used" if is_selected else method),
                    Cell(number(row["n"])),
                    Cell(precise_percent(row["accuracy"]), bold=True),
                    Cell(percent(row["balanced_accuracy"])),
                ]
            )
    return Table(columns, rows)


def confidence_table(report: RunReport, attributes: AttributeTable) -> Table | None:
    """The labellers' confidence on samples and on training images that they were not fitted to."""
    columns = ["attribute", "labeller", "mean probability: samples", "training", "distance", "floor"]
    columns += ["unsure: samples", "training"]
    rows = [
        [
            Cell(attributes[row["attribute"]].title),
            Cell(row["method"]),
            Cell(precise_percent(row["confidence_generated"])),
            Cell(precise_percent(row["confidence_held_out"])),
            Cell(number(row["statistic"], 3), bold=row["statistic"] > row["floor"]),
            Cell(number(row["floor"], 3)),
            Cell(percent(row["unsure_generated"])),
            Cell(percent(row["unsure_held_out"])),
        ]
        for row in report.confidence_shift
    ]
    return Table(columns, rows, title="How confident is the labeller about the samples?") if rows else None


def heat_map(attribute: Attribute, matrix: ConfusionMatrix, *, is_collapsed: bool) -> HeatMap:
    """A confusion matrix in percent."""
    rows = [HeatRow(short(row.annotated), heat_cells(row), number(row.n)) for row in matrix.rows]
    labels = [short(group) for group in matrix.groups]
    return HeatMap(attribute.name, attribute.title, labels, rows, is_collapsed)


def heat_cells(row: ConfusionRow) -> list[HeatCell]:
    return [HeatCell("–" if share is None else f"{100 * share:.0f}", f"{share or 0:.3f}") for share in row.shares]
