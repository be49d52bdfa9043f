"""The findings of a study in sentences, from its tables `paired` and `estimates`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from reports.estimation.intervals import Z
from reports.estimation.study.seeds import LEAST_SEEDS, LEVEL, MAX_SEEDS_NEEDED, least_pairs, least_sign_flip_p
from reports.formats import conjunction, number, percent, points, short
from shards.attributes import Attribute, AttributeTable

ARM_LENGTH = 40  # letters of an arm's name in a sentence


@dataclass(frozen=True)
class Finding:
    """What a study says about one arm, compared with the first arm."""

    arm: str
    answer: str  # one sentence
    sentences: list[str]


def question(arms: Sequence[str]) -> str:
    """The question that the page answers."""
    if len(arms) == 2:
        return f"Does {name(arms[1])} generate more balanced faces than {name(arms[0])}?"
    if len(arms) == 1:
        return f"How much do the faces that {name(arms[0])} generates depend on the seed?"
    return "Which of these arms generates the most balanced faces?"


def find_answers(arms: Sequence[str], paired: pl.DataFrame, attributes: AttributeTable) -> list[Finding]:
    """What the rows of `paired` say about each arm, compared with the first; balanced means close to equal shares."""
    rows = paired.filter(
        pl.col("used"),
        pl.col("compared_with") == arms[0],
        pl.col("metric") == "total_variation",
        pl.col("baseline") == "uniform",
    )
    findings = []
    for arm in arms[1:]:
        by_attribute = {row["attribute"]: row for row in rows.filter(arm=arm).to_dicts()}
        of_headlines = [(item, by_attribute[item.name]) for item in attributes.headlines if item.name in by_attribute]
        sentences = [distance_sentence(item, row) for item, row in of_headlines]
        findings.append(Finding(arm, answer_sentence(arm, arms, of_headlines), sentences))
    return findings


def answer_sentence(arm: str, arms: Sequence[str], rows: Sequence[tuple[Attribute, dict[str, Any]]]) -> str:
    """Whether an arm is more balanced than the first, by the distances from equal shares of each attribute."""
    first = name(arms[0])
    if not rows:
        return f"Not answered: {name(arm)} and {first} have no labelled runs with the same seed."
    pairs = rows[0][1]["pairs"]
    if pairs < LEAST_SEEDS:
        return "Not answered: a single seed does not show how much training runs differ by chance."
    closer, farther, undecided = (
        [item.plural for item, row in rows if row["verdict"] == verdict] for verdict in ("less", "more", "inconclusive")
    )
    if not closer and not farther:
        both = f"{name(arm)} and {first}"
        return f"Undecided: over {pairs} seeds, no difference between {both} is larger than chance could explain."
    parts = [f"closer to equal shares of {conjunction(closer)}"] if closer else []
    parts += [f"farther from equal shares of {conjunction(farther)}"] if farther else []
    rest = f"; for {conjunction(undecided)}, the difference is undecided" if undecided else ""
    answer = f"over {pairs} seeds, {name(arm)} is {conjunction(parts)} than {first}{rest}."
    if len(arms) > 2:
        return f"O{answer[1:]}"
    word = "It depends" if closer and farther else "Yes" if closer else "No"
    return f"{word}: {answer}"


def distance_sentence(attribute: Attribute, row: dict[str, Any]) -> str:
    """The difference of two arms' distances from equal shares of one attribute, and the seeds that would settle it."""
    text = (
        f"{attribute.title}: total variation from equal shares {percent(row['value'])}, in "
        f"{name(row['compared_with'])} {percent(row['compared_value'])}"
    )
    if row["low"] is None:
        return f"{text}."
    text += (
        f"; difference {points(row['difference'])} points, 95 % interval {points(row['low'])} to "
        f"{points(row['high'])}, exact test p = {row['sign_flip_p']:.3g}"
    )
    if row["verdict"] != "inconclusive":
        return f"{text}."
    if row["seeds_needed"] is not None:
        return f"{text}. If it is as estimated, about {number(row['seeds_needed'])} seeds would settle it."
    return f"{text}. If it is as estimated, even {number(MAX_SEEDS_NEEDED)} seeds would not settle it."


def test_sentence(paired: pl.DataFrame) -> str | None:
    """A note that the exact test can't be significant with as few pairs of seeds as there are; None if it can."""
    pairs = paired.select(pl.max("pairs")).item()
    if pairs is None or pairs < LEAST_SEEDS or (least := least_sign_flip_p(pairs)) <= 1 - LEVEL:
        return None
    return (
        "The exact sign-flip test, which makes no assumption about the distribution of the seeds' values, can't "
        f"confirm a difference: with {pairs} pairs of seeds, its two-sided p-value is at least {least:.3g}. "
        f"{least_pairs() - 1} pairs can never reach 0.05; {least_pairs()} can. The intervals assume that the values "
        "are approximately normal."
    )


def spread_sentence(estimates: pl.DataFrame, attributes: AttributeTable) -> str | None:
    """The spread between seeds next to the interval of a single run, for the group with the largest spread."""
    rows = arm_shares(estimates).filter(pl.col("attribute").is_in([item.name for item in attributes.headlines]))
    rows = rows.filter(pl.col("seed_sd").is_not_null()).sort("seed_sd", descending=True, maintain_order=True)
    if rows.is_empty():
        return None
    row = rows.row(0, named=True)
    attribute = attributes[row["attribute"]]
    words = {item.name: item.faces for item in attribute.classes}
    claimed = claimed_half_width(estimates, row)
    faces = words.get(row["group"], short(row["group"]))
    return (
        f"Between training runs of {name(row['arm'])} that differ only in their seed, the share of {faces} has a "
        f"standard deviation of {100 * row['seed_sd']:.1f} percentage points: 95 % of the runs lie within "
        f"±{100 * Z * row['seed_sd']:.1f} points of their mean, whereas the interval of a single run claims "
        f"±{100 * claimed:.1f} points."
    )


def arm_shares(estimates: pl.DataFrame) -> pl.DataFrame:
    """The rows of the arms' mean shares by the estimate that is used."""
    return estimates.filter(pl.col("used"), pl.col("seed").is_null(), pl.col("metric") == "share")


def claimed_half_width(estimates: pl.DataFrame, row: dict[str, Any]) -> float:
    """Half the mean width of the intervals that the single runs of an arm claim for a share."""
    runs = estimates.filter(
        pl.col("seed").is_not_null(),
        *(pl.col(key) == row[key] for key in ("arm", "attribute", "group", "metric", "estimate")),
    )
    return float(runs.select(((pl.col("high") - pl.col("low")) / 2).mean()).item() or 0.0)


def name(arm: str) -> str:
    """An arm's name, shortened for a sentence."""
    return short(arm, ARM_LENGTH)
