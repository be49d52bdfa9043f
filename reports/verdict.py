"""The verdict in sentences, from rows of `estimates`."""

import math
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from reports.formats import conjunction, percent, ratio, short
from shards.attributes import Attribute, AttributeTable

CHANGED = ("amplified", "reduced")
MISSING = {
    "calibration": "annotated images",
    "labels": "human labels",
    "raters": "raters who agree",
}  # reason -> what there are too few of


@dataclass(kw_only=True)
class Verdict:
    """The answer to the page's question and what it rests on."""

    answer: str  # one sentence
    sentences: list[str] = field(default_factory=list)  # one for each attribute with a headline
    undecided: str | None = None  # how many groups are too rare for a verdict

    @property
    def explanation(self) -> list[str]:
        """The sentences after the answer."""
        return [*self.sentences, *([self.undecided] if self.undecided else [])]


NOT_ANSWERED = Verdict(answer="Not answered yet.")
NOT_ANSWERABLE = Verdict(
    answer="No answer: this labeller is not valid for real faces. Its results are shown, but answer nothing."
)


CONSTANT = Verdict(
    answer="No answer: all samples are the same image, or each has a single colour. Their labels have no verdict."
)


def run_verdict(
    rows: pl.DataFrame,
    attributes: AttributeTable,
    *,
    is_foreign: bool = False,
    is_requested: bool = False,
    is_constant: bool = False,
) -> Verdict:
    """The verdict on a run, from its rows of `estimates`.

    Nothing is claimed from a labeller that was made for other faces (`is_foreign`), nor from samples that are all the
    same image or have a single colour each (`is_constant`). Where the samples were generated for requested classes
    (`is_requested`), the answer does not attribute the changes to the generator.
    """
    if is_constant:
        return CONSTANT
    if is_foreign:  # people's labels are valid whatever the labeller is
        rows = rows.filter(best_estimate="audited")
        if rows.is_empty():
            return NOT_ANSWERABLE
    of_attributes = [(attribute, rows.filter(attribute=attribute.name)) for attribute in attributes.headlines]
    sentences = [attribute_sentence(attribute, groups) for attribute, groups in of_attributes if len(groups)]
    if audited := audit_sentence(rows, attributes):
        sentences.append(audited)
    answer = requested_answer(rows) if is_requested else answer_sentence(rows, attributes)
    return Verdict(answer=answer, sentences=sentences, undecided=undecided_sentence(rows))


def audit_sentence(rows: pl.DataFrame, attributes: AttributeTable) -> str | None:
    """What people labelled, and how many verdicts their labels changed; None without an audit."""
    audited = rows.filter(best_estimate="audited")
    if audited.is_empty():
        return None
    names = [name.replace("_", " ") for name in attributes.labelled if name in audited["attribute"]]
    changed = int((audited["verdict"] != audited["unaudited_verdict"]).sum())
    effect = f"their labels changed {changed or 'none'}"
    labels = max(audited["labels"].drop_nulls())
    return (
        f"People labelled {labels:,} samples ({conjunction(names)}); {effect} of the {len(audited)} verdicts that the "
        "labeller alone would have given."
    )


def undecided_sentence(rows: pl.DataFrame) -> str:
    """How many groups have no verdict, and for how many of them more samples would not help."""
    total, is_undecided = len(rows), rows["verdict"] == "inconclusive"
    limited, unlabelled, disputed = (
        int((is_undecided & (rows["inconclusive_reason"] == reason)).sum())
        for reason in ("calibration", "labels", "raters")
    )
    rare = int(is_undecided.sum()) - limited - unlabelled - disputed
    sentence = f"{rare or 'None'} of {total} groups {'is' if rare <= 1 else 'are'} too rare for a verdict."
    if limited:
        sentence += f" For {limited}, there are too few annotated images: more samples would not be enough."
    if unlabelled:
        sentence += f" For {unlabelled}, people have labelled too few samples."
    if disputed:
        sentence += f" For {disputed}, the people who labelled the samples disagree too much."
    return sentence


def requested_answer(rows: pl.DataFrame) -> str:
    """The answer for samples of requested classes."""
    changed = rows["verdict"].is_in(CHANGED).sum()
    return (
        f"The samples follow a request: {changed} of {len(rows)} groups are more or less frequent "
        "than in the training data."
    )


def answer_sentence(rows: pl.DataFrame, attributes: AttributeTable) -> str:
    """The answer in one sentence; "no" only for changes that chance does not explain."""
    changed = (rows["significant"] & rows["verdict"].is_in(CHANGED)).sum()
    if changed:
        return (
            f"No: {changed} of {len(rows)} groups are generated more or less often than "
            "they occur in the training data."
        )
    if (rows["verdict"] == "preserved").all():
        return "Yes: every group is generated about as often as it occurs in the training data."
    if (rows["verdict"] == "inconclusive").all():
        return "Undecided: there are too few samples, or the labels carry too little information."
    if rows["verdict"].is_in(CHANGED).any():
        return "Undecided: among this many groups, the apparent changes may be due to chance."
    known = {item.subject: rows.filter(attribute=item.name)["verdict"] for item in attributes.headlines}
    known = {subject: verdicts for subject, verdicts in known.items() if len(verdicts)}
    preserved = [subject for subject, verdicts in known.items() if (verdicts == "preserved").all()]
    if len(preserved) > len(known) / 2:
        return (
            f"Yes for {conjunction(preserved)}, as far as these samples show; there are too few faces of the other "
            "groups."
        )
    return "Undecided: for most groups there are too few samples, or the labels disagree."


def attribute_sentence(attribute: Attribute, rows: pl.DataFrame) -> str:
    """One sentence on one attribute, from its rows of `estimates`."""
    groups, words = rows.to_dicts(), {item.name: item.faces for item in attribute.classes}
    name, plural = attribute.subject, attribute.plural

    def group_word(row: dict[str, Any]) -> str:
        return words.get(row["group"], short(row["group"], 40))

    changed = sorted((row for row in groups if row["verdict"] in CHANGED), key=effect_size, reverse=True)
    inconclusive = [row for row in groups if row["verdict"] == "inconclusive"]
    undecided = [group_word(row) for row in inconclusive]
    reasons = {row.get("inconclusive_reason") for row in inconclusive}
    few = MISSING.get(str(*reasons), "samples") if len(reasons) == 1 else "samples"
    if changed:
        return f"Of {plural}, it generates {conjunction([change_phrase(row, group_word(row)) for row in changed[:3]])}."
    if groups and all(row.get("inconclusive_reason") == "no labels" for row in groups):
        return f"The {name} is unknown: no face has a label for it."
    if len(undecided) == len(groups):
        return f"There are too few {few} to decide whether it preserves the {name}."
    if undecided:
        preserved = [f"{group_word(row)} {both_shares(row)}" for row in groups if row["verdict"] == "preserved"]
        too_few = f"{few} to decide on {conjunction(undecided)}"
        if few == "samples":
            too_few = f"{conjunction(undecided)} to decide"
        return f"Of {plural}, it preserves {conjunction(preserved)}; there are too few {too_few}."
    example = groups[0] if len(groups) == 2 else max(groups, key=lambda row: row["share"] or 0)
    shares = f"{percent(example['share'])} {group_word(example)}, training {percent(example['reference'])}"
    return f"It preserves the {name} of its training data ({shares})."


def effect_size(row: dict[str, Any]) -> float:
    """The distance of a row's ratio from 1 on a log scale; a missing ratio and 0 count as a hundredfold change."""
    return abs(math.log(max(row["ratio"] or 0.01, 0.01)))


def is_absent(row: dict[str, Any]) -> bool:
    """Whether no sample is of a row's group: by people's labels where these decide, by the labeller's otherwise."""
    if "audited" in (row.get("best_estimate"), row.get("estimate")):
        return not row.get("best_share", row["share"])
    return not row["count"]


def both_shares(row: dict[str, Any]) -> str:
    return f"({percent(row['share'])}, training {percent(row['reference'])})"


def change_phrase(row: dict[str, Any], faces: str) -> str:
    """How much more or less often a group is generated; `faces` are its faces in a sentence."""
    if is_absent(row):
        return f"no {faces} at all {both_shares(row)}"
    if row["ratio"] is None:
        return f"{faces}, absent from its training data {both_shares(row)}"
    return f"{ratio(row['ratio']).removeprefix('×')} times as many {faces} {both_shares(row)}"
