"""Section: every estimate, raw, corrected and from the pixels."""

from dataclasses import dataclass
from typing import Any

from reports.formats import conjunction, number, percent, ratio, short
from reports.run_report import RunReport
from reports.sections.table import Cell, Table, expanded
from shards.attributes import Attribute, AttributeTable

REASONS = {
    "few": "too few faces",
    "calibration": "too few annotated images",
    "disagree": "raw and corrected disagree",
    "no labels": "no labels",
    "labels": "too few human labels",
    "raters": "raters disagree",
}
USED = "▸ "  # in front of the estimate that determines ratio and verdict


@dataclass(frozen=True)
class Methods:
    tables: list[Table]  # of each attribute
    from_pixels: str  # the attributes that were estimated from pixels, too; "" if none was


def methods_section(report: RunReport, attributes: AttributeTable) -> Methods | None:
    if not report.estimates:
        return None
    pixels: dict[str, dict[str, dict[str, Any]]] = {}
    for row in report.method_estimates:
        if row["method"] == "pixels" and row["estimate"] == "raw":
            pixels.setdefault(row["attribute"], {})[row["group"]] = row
    estimates: dict[str, list[dict[str, Any]]] = {}
    for row in report.estimates:
        estimates.setdefault(row["attribute"], []).append(row)
    shown = [item for name, item in attributes.tabulated.items() if name in estimates]
    tables = [
        attribute_table(
            item,
            estimates[item.name],
            pixels=pixels.get(item.name, {}),
            is_collapsed=item.name not in expanded(shown),
            note=correction_note(estimates[item.name][0], attributes),
        )
        for item in shown
    ]
    return Methods(tables, from_pixels=conjunction([item.plural for item in shown if item.name in pixels]))


def attribute_table(
    attribute: Attribute,
    rows: list[dict[str, Any]],
    *,
    pixels: dict[str, dict[str, Any]],
    is_collapsed: bool,
    note: str,
) -> Table:
    """The estimates of one attribute's groups; `pixels` are those from the pixels, by group, if there are any."""
    best = rows[0]["best_estimate"]
    columns = ["group", "generated", f"{USED if best == 'raw' else ''}raw, 95 %", "training"]
    columns += [f"{USED if best == 'corrected' else ''}corrected, 95 %", "annotated"]
    columns += [f"{USED}audited, 95 %"] if best == "audited" else []
    columns += ["pixels", "training"] if pixels else []
    columns += ["ratio, 95 %", "verdict", "samples needed"]
    table_rows = [group_cells(row, pixels.get(row["group"]) if pixels else None, bool(pixels)) for row in rows]
    title = f"{attribute.title}, labelled by {rows[0]['method']}"
    return Table(columns, table_rows, title=title, note=note, is_collapsed=is_collapsed)


def correction_note(row: dict[str, Any], attributes: AttributeTable) -> str:
    """How an attribute was corrected, from one of its rows, and how many labels are unsure."""
    notes = []
    if row["correction_note"]:
        notes.append(f"Not corrected: {row['correction_note']}.")
    if row["strata"]:
        titles = [attributes[name].title.lower() for name in row["strata"].split(",")]
        notes.append(
            f"The labeller's error rates depend on {conjunction(titles)}. The correction measures them within these "
            "strata, whose mix may differ between the samples and the annotated images."
        )
    if row["unsure"]:
        notes.append(
            f"Samples with an unsure label: {number(row['unsure'])}. They are not counted; the correction allows for "
            "groups whose labels are unsure more often than others'."
        )
    return " ".join(notes)


def group_cells(row: dict[str, Any], pixels: dict[str, Any] | None, has_pixels: bool) -> list[Cell]:
    """The row of one group."""
    cells = [
        Cell(short(row["group"], 80), css="name"),
        Cell(number(row["count"])),
        share_cell(row, "share") if row["n"] else Cell("–"),
        Cell(percent(row["reference"])),
        share_cell(row, "corrected"),
        Cell(percent(row["annotated"])),
    ]
    if row["best_estimate"] == "audited":
        cells.append(share_cell(row, "audited"))
    if has_pixels:
        cells += [Cell(percent(pixels[side] if pixels else None)) for side in ("share", "reference")]
    high = "∞" if row["ratio_high"] is None else f"{row['ratio_high']:.2f}"
    is_undecided = row["verdict"] == "inconclusive"
    return [
        *cells,
        Cell(ratio(row["ratio"]), f"{row['ratio_low']:.2f} to {high}", bold=True),
        Cell(REASONS[row["inconclusive_reason"]] if is_undecided else row["verdict"], css=row["verdict"]),
        Cell(samples_needed(row)),
    ]


def samples_needed(row: dict[str, Any]) -> str:
    """The number of samples that would decide a group's verdict, as text."""
    if row["inconclusive_reason"] == "calibration":
        return "no number is enough"
    if row["labels_needed"]:
        return f"{number(row['labels_needed'])} human labels"
    return number(row["n_needed"]) if row["n_needed"] else ""


def share_cell(row: dict[str, Any], name: str) -> Cell:
    """A share with its interval."""
    if row[name] is None:
        return Cell("–")
    return Cell(percent(row[name]), f"{percent(row[f'{name}_low'])} to {percent(row[f'{name}_high'])}", bold=True)
