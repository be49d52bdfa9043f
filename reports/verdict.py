"""The verdict as a person would say it: sentences made from rows of `estimates`."""

import math
from typing import Any

import polars as pl

from reports import figures

WORDS = {"female": "women", "male": "men", "child": "children", "young": "young faces", "adult": "adults"}
WORDS |= {"middle": "middle-aged faces", "senior": "old faces"}
WORDS |= {group: f"{group}-skinned faces" for group in ("light", "medium", "dark")}


def sentences(rows: pl.DataFrame, foreign: bool = False, asked_for: bool = False) -> list[str]:
    """The verdict as a person would say it, a sentence or two for each thing that people ask about first.

    Of labels that mean nothing (`foreign`) nothing is claimed; what was `asked` for is not blamed on the generator.
    """
    if foreign:
        return ["No answer: these labels say nothing about real faces. They are shown as they are."]
    asked = {"gender": ("gender balance", "genders"), "skin_group": ("balance of skin groups", "skin groups")}
    asked["age"] = ("balance of ages", "ages")
    said = [clause(*names, rows.filter(attribute=attribute)) for attribute, names in asked.items()]
    rare, total = (rows["verdict"] == "inconclusive").sum(), len(rows)
    last = f"{rare} of {total} groups {'is' if rare == 1 else 'are'} too rare to tell." if rare else ""
    opening = answer(rows)
    if asked_for:
        moved = rows["verdict"].is_in(["amplified", "reduced"]).sum()
        opening = f"It was asked to: {moved} of {len(rows)} groups are more or less frequent than it was shown them."
    return [opening, *said, last or f"None of {total} groups is too rare to tell."]


def answer(rows: pl.DataFrame) -> str:
    """The question answered in one sentence; "no" only of shifts that chance among so many groups does not explain."""
    moved = (rows["shifted"] & rows["verdict"].is_in(["amplified", "reduced"])).sum()
    if moved:
        return f"No: it drew {moved} of {len(rows)} groups more or less often than it was shown them."
    if (rows["verdict"] == "preserved").all():
        return "Yes: it drew every group about as often as it was shown it."
    if (rows["verdict"] == "inconclusive").all():
        return "It can not be told: there are too few samples, or labels that say too little."
    if rows["verdict"].is_in(["amplified", "reduced"]).any():
        return "It can not be told: what looks moved may be chance among so many groups."
    asked = rows.filter(pl.col("attribute").is_in(["gender", "skin_group"]))
    if len(asked) and (asked["verdict"] == "preserved").all():
        return "Yes for gender and skin group, as far as these samples can tell; of other groups there are too few."
    return "It can not be told: for most groups there are too few samples, or the labels disagree."


def clause(name: str, plural: str, rows: pl.DataFrame) -> str:
    """One sentence on one attribute, from its rows of `estimates`."""
    groups = rows.to_dicts()
    moved = [row for row in groups if row["verdict"] in ("amplified", "reduced")]
    unclear = [word(row) for row in groups if row["verdict"] == "inconclusive"]
    if moved:
        moved.sort(key=size_of, reverse=True)
        return f"Of {plural}, it drew {listed([told(row) for row in moved[:3]])}."
    if groups and all(row.get("why") == "no labels" for row in groups):
        return f"The {name} is not known: no face was labelled for it."
    if len(unclear) == len(groups):
        return f"The samples are too few to tell whether it kept the {name}."
    if unclear:
        kept = [f"{word(row)} {shares(row)}" for row in groups if row["verdict"] == "preserved"]
        return f"Of {plural}, it kept {listed(kept)}; there are too few {listed(unclear)} to tell."
    example = groups[0] if plural == "genders" else max(groups, key=lambda row: row["share"] or 0)
    said = f"{figures.percent(example['share'])} {word(example)}, training {figures.percent(example['reference'])}"
    return f"It kept the {name} of its training data ({said})."


def size_of(row: dict[str, Any]) -> float:
    """How far a row's ratio is from 1, on a log scale; none and 0 count as a hundredfold change."""
    return abs(math.log(max(row["ratio"] or 0.01, 0.01)))


def word(row: dict[str, Any]) -> str:
    """What people call a group."""
    return WORDS.get(row["group"], figures.short(row["group"], 40))


def shares(row: dict[str, Any]) -> str:
    return f"({figures.percent(row['share'])}, training {figures.percent(row['reference'])})"


def told(row: dict[str, Any]) -> str:
    if not row["count"]:
        return f"no {word(row)} at all {shares(row)}"
    if row["ratio"] is None:
        return f"{word(row)}, whom its training data lack {shares(row)}"
    return f"{figures.times(row['ratio']).removeprefix('×')} times as many {word(row)} {shares(row)}"


def listed(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
