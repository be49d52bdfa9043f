"""Tables of detectors' TPR by generator, and of detectors on unseen generators."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from reports.detector_report import DetectorAnswers
from reports.estimation.detection.held_out import HELD_OUT_GAP
from reports.formats import number, short
from reports.sections.detector_tables.cells import (
    Row,
    detector_label,
    is_trivial,
    metric_cell,
    muted_if_trivial,
    name_cell,
)
from reports.sections.table import Cell, Table, expanded
from shards.attributes import AttributeTable

MANY_GENERATORS = 12  # families and methods: with so many, the table of generators shows only families
FEW_COMPARED = 4  # attributes at most that are not folded: there is a row for each of them and each detector


@dataclass(frozen=True)
class HoldOut:
    generators: Table | None  # None if the fakes are of a single generator
    overall: Table | None  # None (and the lists below are empty) if no detector was trained without a generator
    worst_groups: list[Table]  # of the expanded attributes, and of the others if there are any
    by_group: list[tuple[str, Table]]  # (detector, its table)


def hold_out_section(report: DetectorAnswers, attributes: AttributeTable) -> HoldOut | None:
    sets = {row["evaluation_set"] for row in report.evaluation_sets}
    generators = generator_table(report.generators, sets)
    if not (generators or report.hold_out):
        return None
    detectors: dict[str, list[Row]] = {}
    for row in report.hold_out:
        if not is_trivial(row["detector"]):
            detectors.setdefault(row["detector"], []).append(row)
    overall = [overall_cells(row, sets) for row in report.hold_out if row["attribute"] == "all"]
    return HoldOut(
        generators=generators,
        overall=Table(OVERALL, overall) if overall else None,
        worst_groups=worst_group_tables(report, attributes, sets=sets),
        by_group=[(short(name, 60), group_table(rows, attributes)) for name, rows in detectors.items()],
    )


def generator_table(rows: Sequence[Row], sets: Collection[str]) -> Table | None:
    """The share of each generator's fakes that each detector calls fake; None for a single generator."""
    methods = dict.fromkeys((row["family"], row["method"]) for row in rows)
    if sum(method != "all" for _, method in methods) < 2:
        return None
    shown = [key for key in methods if key[1] == "all" or len(methods) < MANY_GENERATORS]
    detectors: dict[str, dict[tuple[str, str], Cell]] = {}
    for row in rows:
        detectors.setdefault(detector_label(row, sets), {})[row["family"], row["method"]] = generator_cell(row)
    names = [family if method == "all" else f"{family}: {method}" for family, method in shown]
    table = [
        [name_cell(label), *muted_if_trivial(label, [cells.get(key, Cell("–")) for key in shown])]
        for label, cells in detectors.items()
    ]
    return Table(["detector", *(short(name, 40) for name in names)], table)


def generator_cell(row: Row) -> Cell:
    """The TPR on one generator's fakes, with a note if the detector was trained without them."""
    seen = {True: "not seen; ", None: "partly seen; ", False: ""}[row["is_held_out"]]
    return Cell(f"{row['tpr']:.3f}", f"{seen}{row['low']:.3f} to {row['high']:.3f}", bold=True)


OVERALL = [
    "detector",
    "unseen fakes",
    "number",
    "TPR",
    "AUC",
    "trained on all",
    "its TPR",
    "its AUC",
    "difference in TPR",
    "difference in AUC",
]


def overall_cells(row: Row, sets: Collection[str]) -> list[Cell]:
    """One detector on all fakes that it has not seen, next to the detector that was trained on them."""
    label = detector_label(row, sets)
    cells = [
        name_cell(label),
        Cell(short(row["held_out"], 60), css="name"),
        Cell(number(row["fakes"])),
        value_cell(row, "tpr"),
        value_cell(row, "auc"),
        Cell(short(row["full_detector"], 60) if row["full_detector"] else "–", css="name"),
        value_cell(row, "full_tpr"),
        value_cell(row, "full_auc"),
        value_cell(row, "tpr_difference", sign="+"),
        value_cell(row, "auc_difference", sign="+"),
    ]
    return muted_if_trivial(label, cells)


def value_cell(row: Row, name: str, *, sign: str = "") -> Cell:
    """A value with its interval, if it has one; a dash if it is undefined."""
    if row[name] is None:
        return Cell("–")
    low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
    interval = "" if low is None or high is None else f"{low:{sign}.3f} to {high:{sign}.3f}"
    return Cell(f"{row[name]:{sign}.3f}", interval, bold=True)


def worst_group_tables(report: DetectorAnswers, attributes: AttributeTable, *, sets: Collection[str]) -> list[Table]:
    """Each detector's worst group of every attribute, and the gap between the groups."""
    groups: dict[tuple[str, str, str], list[Row]] = {}  # by detector, held-out fakes and attribute
    for row in report.hold_out:
        groups.setdefault((detector_label(row, sets), row["held_out"], row["attribute"]), []).append(row)
    compared = {key: rows for key, rows in groups.items() if len(rows) > 1}
    gaps = {
        (row["detector"], row["attribute"]): row for row in report.detection_metrics if row["measure"] == HELD_OUT_GAP
    }
    measured = [item for name, item in attributes.items() if any(name == attribute for *_, attribute in compared)]
    if not measured:
        return []
    names = expanded(measured, few=FEW_COMPARED)
    tables = []
    for is_first in (True, False):
        shown = [item for item in measured if (item.name in names) == is_first]
        rows = [
            muted_if_trivial(
                detector,
                [
                    name_cell(detector),
                    Cell(short(held_out, 40), css="name"),
                    Cell(item.title),
                    *worst_group_cells(compared[detector, held_out, item.name], gaps.get((detector, item.name))),
                ],
            )
            for detector, held_out in dict.fromkeys((detector, held_out) for detector, held_out, _ in compared)
            for item in shown
            if (detector, held_out, item.name) in compared
        ]
        if rows:
            tables.append(Table(["detector", "unseen fakes", "groups", "worst group", "its TPR", "TPR gap"], rows))
    title = "Unseen generators: the worst groups of the other attributes"
    return [tables[0], *(replace(table, title=title, is_collapsed=True) for table in tables[1:])]


def worst_group_cells(groups: Sequence[Row], gap: Row | None) -> list[Cell]:
    """The group with the lowest TPR, unless several have it, and the gap between the groups.

    The gaps of detectors that ignore the image are not stored, and have neither an interval nor a floor.
    """
    worst, *others = (row for row in groups if row["is_worst_group"])
    if gap is None:
        value = max(row["tpr"] for row in groups) - worst["tpr"]
        gap = dict.fromkeys(("low", "high", "floor")) | {"measure": HELD_OUT_GAP, "value": value}
    name, tpr = ("several", {"tpr": worst["tpr"]}) if others else (short(worst["group"], 40), worst)
    return [Cell(name, css="name"), value_cell(tpr, "tpr"), metric_cell(gap)]


def group_table(rows: Sequence[Row], attributes: AttributeTable) -> Table:
    """One detector on the fakes that it has not seen, by group."""
    columns = ["attribute", "group", "fakes", "TPR", "AUC", "TPR if trained on all", "difference in TPR"]
    return Table(
        columns,
        [
            [
                Cell(attributes[row["attribute"]].title),
                Cell(short(row["group"], 40), css="name"),
                Cell(number(row["fakes"])),
                *(value_cell(row, name) for name in ("tpr", "auc", "full_tpr")),
                value_cell(row, "tpr_difference", sign="+"),
            ]
            for row in rows
            if row["attribute"] in attributes
        ],
    )
