"""Section: the audit, in which people labelled some of the samples."""

from dataclasses import dataclass
from typing import Any

from reports.formats import number, percent, short
from reports.run_report import RunReport
from reports.sections.methods import REASONS, USED, share_cell
from reports.sections.table import Cell, Table, expanded
from shards.attributes import Attribute, AttributeTable

DESIGNS = {
    "stratified": "by strata of the labeller's labels and confidence",
    "active": "with a higher probability where the labeller is probably wrong",
    "uniform": "with equal probabilities",
}
FREQUENT = 0.05  # share of "can't tell" above which the page shows the shares at the extremes
CHANGES = 8  # of verdicts that are listed
LEVEL = 0.05  # of the test of the labeller's errors


@dataclass(frozen=True)
class AuditedAttribute:
    """What people's labels say about one attribute."""

    title: str
    is_collapsed: bool
    sentences: list[str]  # on the answers
    shares: Table
    errors: Table | None  # None for crosses
    test: str  # of the assumption of the correction; "" without annotated photographs


@dataclass(frozen=True)
class AuditSection:
    """The audit of a run."""

    faces: str  # how many faces were chosen, and how
    has_several_looks: bool
    has_one_rater: bool
    changed: list[str]  # groups whose verdict the audit changed, in words, the first CHANGES of them
    changes: int  # of all groups
    attributes: list[AuditedAttribute]


def audit_section(report: RunReport, attributes: AttributeTable) -> AuditSection | None:
    """The section; None without an audit."""
    audits = {row["attribute"]: row for row in report.audit if row["source"] == "generated"}
    estimates: dict[str, list[dict[str, Any]]] = {}
    for row in report.estimates:
        if row["attribute"] in audits and row["audited"] is not None:
            estimates.setdefault(row["attribute"], []).append(row)
    shown = [item for name, item in attributes.tabulated.items() if name in estimates]
    if not shown:
        return None
    open_ones = expanded(shown)
    of_train = {row["attribute"]: row for row in report.audit if row["source"] == "train"}
    first = next(iter(audits.values()))
    changed = [change for item in shown for change in verdict_changes(item, estimates[item.name])]
    return AuditSection(
        faces=(
            f"{number(first['planned'])} samples were chosen {DESIGNS[first['design']]}, and "
            f"{number(max(row['answered'] for row in audits.values()))} have answers"
        ),
        has_several_looks=first["looks"] > 1,
        has_one_rater=max(row["raters"] for row in audits.values()) == 1,
        changed=changed[:CHANGES],
        changes=len(changed),
        attributes=[
            AuditedAttribute(
                title=item.title,
                is_collapsed=item.name not in open_ones or bool(item.cross),
                sentences=answer_sentences(audits[item.name], estimates[item.name], of_train.get(item.name), item),
                shares=shares_table(estimates[item.name]),
                errors=errors_table(report, item),
                test=test_sentence(audits[item.name]),
            )
            for item in shown
        ],
    )


def verdict_changes(attribute: Attribute, rows: list[dict[str, Any]]) -> list[str]:
    """The groups whose verdict differs without the audit, each in words."""
    faces = {item.name: item.faces for item in attribute.classes}
    return [
        f"{faces.get(row['group'], short(row['group'], 40))} ({row['unaudited_verdict']} by the labeller, "
        f"{row['verdict']} by the audit)"
        for row in rows
        if row["best_estimate"] == "audited" and row["unaudited_verdict"] not in (None, row["verdict"])
    ]


def answer_sentences(
    audit: dict[str, Any], rows: list[dict[str, Any]], train: dict[str, Any] | None, attribute: Attribute
) -> list[str]:
    """What the answers about an attribute are like."""
    sentences = [f"People could tell the class of {number(audit['classified'])} of {number(audit['answered'])} faces."]
    if audit["planned"] > audit["answered"]:
        sentences.append(f"{number(audit['planned'] - audit['answered'])} faces of the plan have no answer yet.")
    if train:
        sentences.append(f"They also labelled {number(train['classified'])} training images, which are the reference.")
    if audit["rated_twice"]:
        sentences.append(agreement_sentence(audit, attribute))
    if audit["cant_tell"] > FREQUENT:
        widest = max(rows, key=lambda row: row["audited_most"] - row["audited_least"])
        sentences.append(
            f"{percent(audit['cant_tell'])} of the answers are “can't tell”. The shares treat these faces like the "
            "others of their stratum. At the extremes, none or all of them belong to a group: the share of "
            f"{short(widest['group'])} would be {percent(widest['audited_least'])} or "
            f"{percent(widest['audited_most'])}."
        )
    if rows[0]["best_estimate"] != "audited":
        sentences.append(
            "The verdict does not use these shares, because the training images are neither annotated nor audited."
        )
    return sentences


def agreement_sentence(audit: dict[str, Any], attribute: Attribute) -> str:
    """How well raters agree; alpha is ordinal for numbered classes."""
    kind = "ordinal" if attribute.is_numbered else "nominal"
    name = f"alpha_{kind}"
    pairs = f"on {number(audit['rated_twice'])} faces, {percent(audit['same'])} of the pairs of answers are the same"
    if attribute.is_numbered:
        pairs += f", and {percent(audit['close'])} at most one class apart"
    if audit[name] is None:
        return f"Agreement among {audit['raters']} raters: {pairs}."
    low, high = audit[f"{name}_low"], audit[f"{name}_high"]
    ends = f", {low:.2f} to {high:.2f}" if low is not None else ""
    return (
        f"Agreement among {audit['raters']} raters: Krippendorff's alpha is {audit[name]:.2f} ({kind}{ends}); {pairs}."
    )


def shares_table(rows: list[dict[str, Any]]) -> Table:
    """The shares of an attribute's groups by every estimate."""
    used = USED if rows[0]["best_estimate"] == "audited" else ""
    columns = ["group", "human labels alone, 95 %", f"{used}with the labeller (PPI++), 95 %", "corrected, 95 %"]
    columns += ["raw, 95 %", "verdict", "without the audit", "labels needed"]
    return Table(columns, [share_cells(row) for row in rows])


def share_cells(row: dict[str, Any]) -> list[Cell]:
    """The row of one group."""
    is_undecided = row["verdict"] == "inconclusive"
    verdict = REASONS[row["inconclusive_reason"]] if is_undecided else row["verdict"] or "–"
    needed = number(row["labels_needed"]) if row["labels_needed"] else ""
    return [
        Cell(short(row["group"], 80), css="name"),
        share_cell(row, "human"),
        share_cell(row, "audited"),
        share_cell(row, "corrected"),
        share_cell(row, "share") if row["n"] else Cell("–"),
        Cell(verdict, css=row["verdict"] or ""),
        Cell(row["unaudited_verdict"] or "–"),
        Cell(needed),
    ]


def errors_table(report: RunReport, attribute: Attribute) -> Table | None:
    """The labeller's labels by the class that people see, on the samples next to photographs; None for crosses."""
    rows = [row for row in report.audit_errors if row["attribute"] == attribute.name]
    if attribute.cross or not rows:
        return None
    labels = list(dict.fromkeys(row["labelled"] for row in rows))
    by_seen: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        by_seen.setdefault(row["seen"], {})[row["labelled"]] = row
    cells = [
        [
            Cell(short(seen, 40), css="name"),
            Cell(number(sum(cell["faces"] for cell in of_class.values()), 1).removesuffix(".0")),
            *(error_cell(of_class.get(label), is_right=label == seen) for label in labels),
        ]
        for seen, of_class in by_seen.items()
    ]
    return Table(["seen", "faces", *(short(label) for label in labels)], cells)


def error_cell(row: dict[str, Any] | None, *, is_right: bool) -> Cell:
    """The share of a label within a class, with that on photographs."""
    if row is None or row["share"] is None:
        return Cell("–")
    return Cell(percent(row["share"]), percent(row["photographs_share"]), bold=is_right)


def test_sentence(audit: dict[str, Any]) -> str:
    """What the audit says about the assumption of the correction."""
    p = audit["errors_p"]
    if p is None:
        return ""
    value = "less than 0.01" if p < 0.01 else f"{p:.2f}"
    if p < LEVEL:
        return (
            f"On the samples, the labeller's errors differ from those on photographs (p is {value}): the assumption "
            "of the corrected shares does not hold."
        )
    return (
        "On the samples, the labeller's errors do not differ from those on photographs by more than chance (p is "
        f"{value}); small differences would not show with this number of faces."
    )
