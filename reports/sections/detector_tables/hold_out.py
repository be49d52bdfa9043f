"""Tables of detectors' TPR by generator, and of detectors on unseen generators."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from reports.detector_report import DetectorAnswers
from reports.estimation.detection.held_out import HELD_OUT_GAP
from reports.formats import number, short
from reports.sections.detector_tables.cells import Row, detector_label, metric_cell, muted_if_trivial, name_cell
from reports.sections.table import Cell, Table, expanded
from shards.attributes import Attribute, AttributeTable

MANY_GENERATORS = 12  # families and methods: with so many, the table of generators shows only families
FEW_COMPARED = 4  # attributes at most that are not folded: there is a row for each of them and each detector


@dataclass(frozen=True)
class HoldOut:
    generators: Table | None  # None if the fakes are of a single generator
    overall: Table | None  # None (and the lists below are empty) if no detector was trained without a generator
    worst_groups: list[Table]  # of the expanded attributes, and of the others if there are any
    by_group: list[tuple[str, Table]]  # (detector, its table)


def hold_out_section(report: DetectorAnswers, attributes: AttributeTable) -> HoldOut | None:
    generators = generator_table(report.generators, {row["evaluation_set"] for row in report.evaluation_sets})
    if not (generators or report.hold_out):
        return None
    detectors: dict[str, list[Row]] = {}
    for row in report.hold_out:
        detectors.setdefault(row["detector"], []).append(row)
    overall = [overall_cells(row) for row in report.hold_out if row["attribute"] == "all"]
    return HoldOut(
        generators=generators,
        overall=Table(OVERALL, overall) if overall else None,
        worst_groups=worst_group_tables(report, attributes),
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
    "trained without",
    "fakes",
    "TPR",
    "AUC",
    "trained on all",
    "its TPR",
    "its AUC",
    "difference in TPR",
    "difference in AUC",
]


def overall_cells(row: Row) -> list[Cell]:
    """One detector on all fakes that it has not seen, next to the detector that was trained on them."""
    return [
        name_cell(row["detector"]),
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


def value_cell(row: Row, name: str, *, sign: str = "") -> Cell:
    """A value with its interval, if it has one; a dash if it is undefined."""
    if row[name] is None:
        return Cell("–")
    low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
    interval = "" if low is None or high is None else f"{low:{sign}.3f} to {high:{sign}.3f}"
    return Cell(f"{row[name]:{sign}.3f}", interval, bold=True)


def worst_group_tables(report: DetectorAnswers, attributes: AttributeTable) -> list[Table]:
    """Each detector's worst group of every attribute, and the gap between the groups."""
    worst: dict[tuple[str, str], Row] = {}
    for row in report.hold_out:
        if row["is_worst_group"]:
            worst.setdefault((row["detector"], row["attribute"]), row)
    gaps = {
        (row["detector"], row["attribute"]): row for row in report.detection_metrics if row["measure"] == HELD_OUT_GAP
    }
    measured = [item for name, item in attributes.items() if any(name == attribute for _, attribute in gaps)]
    if not measured:
        return []
    names = expanded(measured, few=FEW_COMPARED)
    tables = []
    for is_first in (True, False):
        shown = [item for item in measured if (item.name in names) == is_first]
        rows = [
            [
                name_cell(detector),
                *worst_group_cells(worst, gaps, key=(detector, item.name), item=item),
            ]
            for detector in dict.fromkeys(detector for detector, _ in gaps)
            for item in shown
            if (detector, item.name) in gaps
        ]
        if rows:
            tables.append(Table(["detector", "groups", "worst group", "its TPR", "TPR gap"], rows))
    title = "Unseen generators: the worst groups of the other attributes"
    return [tables[0], *(replace(table, title=title, is_collapsed=True) for table in tables[1:])]


def worst_group_cells(
    worst: dict[tuple[str, str], Row], gaps: dict[tuple[str, str], Row], *, key: tuple[str, str], item: Attribute
) -> list[Cell]:
    """The worst group, its TPR, and the gap with its floor, grey where it is within the floor."""
    row = worst[key]
    return [
        Cell(item.title),
        Cell(short(row["group"], 40), css="name"),
        value_cell(row, "tpr"),
        metric_cell(gaps[key]),
    ]


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
