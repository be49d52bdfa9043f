"""The trade-off of detectors' utility and fairness: tables of their Pareto fronts."""

from collections.abc import Collection, Sequence
from dataclasses import replace

from reports.formats import percent, short
from reports.sections.detector_tables.cells import Row, detector_label, metric_cell, muted_if_trivial, name_cell
from reports.sections.table import Cell, Table
from shards.attributes import Attribute

COLUMNS = ["detector", "groups", "AUC", "TPR at FPR 5 %", "equalised-odds difference at FPR 5 %", "front"]
COLUMNS += ["on front 1 in", "dominated by"]


def tradeoff_tables(rows: Sequence[Row], parts: Sequence[Sequence[Attribute]], *, sets: Collection[str]) -> list[Table]:
    """The Pareto fronts for each attribute: a table for those that are not folded, and one for the others."""
    tables = [tradeoff_table(rows, part, sets=sets) for part in parts]
    title = "The trade-off over the groups of the other attributes"
    return [*tables[:1], *(replace(table, title=title, is_collapsed=True) for table in tables[1:])]


def tradeoff_table(rows: Sequence[Row], attributes: Sequence[Attribute], *, sets: Collection[str]) -> Table:
    """The front of each detector for these attributes."""
    cells = []
    for attribute in attributes:
        for row in rows:
            if row["attribute"] == attribute.name:
                label = detector_label(row, sets)
                cells.append(muted_if_trivial(label, [name_cell(label), Cell(attribute.title), *point_cells(row)]))
    return Table(COLUMNS, cells)


def point_cells(row: Row) -> list[Cell]:
    """Utility, fairness and front of one detector."""
    fairness = {name: row[f"fairness_{name}"] for name in ("low", "high", "floor")}
    utility = {name: row[f"utility_{name}"] for name in ("low", "high")}
    return [
        metric_cell({"measure": "auc", "value": row["utility"], "floor": None, **utility}),
        Cell("undefined" if row["tpr"] is None else f"{row['tpr']:.3f}"),
        metric_cell({"measure": "equalized_odds_difference", "value": row["fairness"], **fairness}),
        Cell(str(row["front"]), bold=row["front"] == 1),
        Cell(percent(row["front_share"])),
        Cell(short(row["dominated_by"] or "–", 60), css="name"),
    ]
