"""The verdict in sentences where samples are not compared with training images, from rows of `reference_estimates`."""

from collections.abc import Collection
from typing import Any

import polars as pl

from reports.formats import conjunction, percent, ratio, short
from reports.verdict import Verdict, is_absent
from shards.attributes import Attribute, AttributeTable

DIFFERENT = ("over", "under")


def reference_verdict(rows: pl.DataFrame, attributes: AttributeTable, *, corrected: Collection[str] = ()) -> Verdict:
    """The verdict on samples compared with an external reference, or with equal shares.

    `corrected` are the attributes whose shares were corrected; the answer says so if those of others were not.
    """
    rows = rows.filter(pl.col("attribute").is_in(list(attributes.tabulated)))
    of_attributes = [(item, rows.filter(attribute=item.name)) for item in attributes.headlines]
    sentences = [attribute_sentence(item, groups) for item, groups in of_attributes if len(groups)]
    undecided = int((rows["verdict"] == "inconclusive").sum())
    return Verdict(
        answer=answer_sentence(rows, corrected),
        sentences=sentences,
        undecided=f"{undecided} of {len(rows)} groups {'is' if undecided == 1 else 'are'} too rare for a verdict.",
    )


def reference_sentence(rows: pl.DataFrame, attributes: AttributeTable) -> str:
    """How the samples of a run with training images differ from an external reference as well."""
    rows = rows.filter(pl.col("attribute").is_in(list(attributes.tabulated)))
    return (
        f"Compared with {baseline_names(rows)}, {count_changed(rows)} of {len(rows)} groups are over- or "
        "under-represented."
    )


def baseline_names(rows: pl.DataFrame) -> str:
    """The names of the references, in words."""
    return conjunction([short(name, 60) for name in rows["baseline"].unique().sort()])


def count_changed(rows: pl.DataFrame) -> int:
    """The number of groups that differ by more than chance explains."""
    return int((rows["significant"] & rows["verdict"].is_in(DIFFERENT)).sum())


def answer_sentence(rows: pl.DataFrame, corrected: Collection[str]) -> str:
    """The answer in one sentence; "no" only for differences that chance does not explain."""
    baselines, is_corrected = baseline_names(rows), rows["attribute"].is_in(list(corrected))
    labels = "" if is_corrected.all() else f", by {'partly ' if is_corrected.any() else ''}uncorrected labels"
    if changed := count_changed(rows):
        return f"No{labels}: {changed} of {len(rows)} groups are over- or under-represented compared with {baselines}."
    if len(rows) and (rows["verdict"] == "similar").all():
        return f"Yes{labels}: the shares of all groups are close to {baselines}."
    return (
        "Undecided: there are too few samples, or the labels carry too little information, to compare the shares with "
        f"{baselines}."
    )


def attribute_sentence(attribute: Attribute, rows: pl.DataFrame) -> str:
    """One sentence on one attribute, from its rows of `reference_estimates`."""
    groups, words = rows.to_dicts(), {item.name: item.faces for item in attribute.classes}
    baseline = short(groups[0]["baseline"], 60)

    def phrase(row: dict[str, Any]) -> str:
        faces = words.get(row["group"], short(row["group"], 40))
        shares = f"({percent(row['share'])}, {baseline} {percent(row['reference'])})"
        if row["ratio"] is None or is_absent(row):
            return f"{faces} {shares}"
        return f"{ratio(row['ratio']).removeprefix('×')} times as many {faces} {shares}"

    changed = [row for row in groups if row["verdict"] in DIFFERENT]
    if changed:
        return f"Of {attribute.plural}, it generates {conjunction([phrase(row) for row in changed[:3]])}."
    if all(row["verdict"] == "similar" for row in groups):
        return f"The {attribute.subject} is close to that of {baseline}."
    return f"There are too few samples to decide whether the {attribute.subject} differs from that of {baseline}."
