"""The verdict in sentences."""

import polars as pl
import pytest

from reports import verdict
from shards.attributes import built_in_attributes

ATTRIBUTES = built_in_attributes()
LIMITED = {"inconclusive_reason": "calibration"}


def row(group, share, reference, verdict, attribute="gender"):
    ratio = share / reference if reference else None
    values = {"attribute": attribute, "group": group, "share": share, "reference": reference, "ratio": ratio}
    return {**values, "verdict": verdict, "count": round(share * 100)}


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (
            [row("female", 0.62, 0.61, "preserved"), row("male", 0.38, 0.39, "preserved")],
            "preserves the gender balance of its training data (62 % women, training 61 %).",
        ),
        (
            [row("female", 0.3, 0.6, "reduced"), row("male", 0.7, 0.4, "amplified")],
            "0.50 times as many women (30 %, training 60 %) and 1.7 times as many men",
        ),
        (
            [row("female", 0.0, 0.01, "reduced"), row("male", 1.0, 0.99, "preserved")],
            "no women at all (0 %, training 1.0 %).",
        ),
        (
            [row("female", 0.5, 0.0, "amplified"), row("male", 0.5, 1.0, "reduced")],
            "women, absent from its training data",
        ),
        (
            [row("female", 0.6, 0.5, "inconclusive"), row("male", 0.4, 0.5, "inconclusive")],
            "too few samples to decide whether it preserves the gender balance",
        ),
        (
            [row("female", 0.9, 0.9, "preserved"), row("male", 0.1, 0.1, "inconclusive")],
            "it preserves women (90 %, training 90 %); there are too few men to decide",
        ),
        (
            [row("female", 0.9, 0.9, "preserved"), row("male", 0.1, 0.1, "inconclusive") | LIMITED],
            "it preserves women (90 %, training 90 %); there are too few annotated images to decide on men",
        ),
        (
            [row("female", 0.6, 0.5, "inconclusive") | LIMITED, row("male", 0.4, 0.5, "inconclusive") | LIMITED],
            "too few annotated images to decide whether it preserves the gender balance",
        ),
    ],
)
def test_an_attribute_is_summarised_in_a_sentence(rows, sentence):
    assert sentence in verdict.attribute_sentence(ATTRIBUTES["gender"], pl.DataFrame(rows))


@pytest.mark.parametrize(
    ("verdicts", "significant", "answer"),
    [
        (("reduced", "preserved"), True, "No: 1 of 2 groups"),
        (("preserved", "preserved"), False, "Yes: every group"),
        (("inconclusive", "inconclusive"), False, "Undecided: there are too few samples"),
        (("reduced", "preserved"), False, "Undecided: among this many groups, the apparent changes"),
        (("preserved", "inconclusive"), False, "Undecided: for most groups"),
    ],
)
def test_the_answer_is_no_only_for_significant_changes(verdicts, significant, answer):
    table = pl.DataFrame({"attribute": "gender", "verdict": list(verdicts), "significant": significant})
    assert verdict.answer_sentence(table, ATTRIBUTES).startswith(answer)


def estimate(group, share, verdict, *, unaudited=None):
    """A row of `estimates`; `unaudited` is the verdict by the labeller alone, where people labelled samples."""
    audit = {"best_estimate": "audited" if unaudited else "raw", "unaudited_verdict": unaudited, "labels": 1200}
    return row(group, share, 0.5, verdict) | audit | {"inconclusive_reason": None, "significant": True}


def test_a_foreign_labeller_gets_no_answer():
    rows = pl.DataFrame([estimate("female", 0.5, "preserved"), estimate("male", 0.5, "preserved")])
    assert verdict.run_verdict(rows, ATTRIBUTES, is_foreign=True).answer.startswith("No answer")


def test_people_get_an_answer_whatever_the_labeller_is_and_it_says_what_they_changed():
    groups = [("female", 0.2, "reduced", "preserved"), ("male", 0.8, "amplified", "amplified")]
    rows = pl.DataFrame(
        [estimate(group, share, found, unaudited=old) for group, share, found, old in groups],
        schema_overrides={"inconclusive_reason": pl.String},
    )
    answer = verdict.run_verdict(rows, ATTRIBUTES, is_foreign=True)
    assert answer.answer.startswith("No: 2 of 2 groups")
    assert answer.sentences[-1] == (
        "People labelled 1,200 samples (gender); their labels changed 1 of the 2 verdicts that the labeller alone "
        "would have given."
    )


def test_groups_of_which_people_labelled_too_few_are_counted_separately():
    reasons = {"verdict": ["inconclusive"] * 3, "inconclusive_reason": ["few", "labels", "labels"]}
    assert verdict.undecided_sentence(pl.DataFrame(reasons)) == (
        "1 of 3 groups is too rare for a verdict. For 2, people have labelled too few samples."
    )


def test_groups_that_people_disagree_on_are_counted_separately():
    reasons = {"verdict": ["inconclusive"] * 3, "inconclusive_reason": ["few", "raters", "raters"]}
    assert verdict.undecided_sentence(pl.DataFrame(reasons)) == (
        "1 of 3 groups is too rare for a verdict. For 2, the people who labelled the samples disagree too much."
    )
    groups = [row(name, 0.5, 0.6, "inconclusive") | {"inconclusive_reason": "raters"} for name in ("female", "male")]
    sentence = verdict.attribute_sentence(ATTRIBUTES["gender"], pl.DataFrame(groups))
    assert sentence == "There are too few raters who agree to decide whether it preserves the gender balance."


@pytest.mark.parametrize(
    ("share", "count", "phrase"),
    [(0.2, 0, "0.40 times as many women (20 %, training 50 %)"), (0.0, 9, "no women at all (0 %, training 50 %)")],
)
def test_whether_a_group_is_absent_is_what_people_see_where_they_labelled(share, count, phrase):
    women = estimate("female", share, "reduced", unaudited="reduced") | {"count": count}
    sentence = verdict.attribute_sentence(ATTRIBUTES["gender"], pl.DataFrame([women]))
    assert phrase in sentence
    assert not verdict.is_absent(women | {"best_share": 0.2})
    of_reference = {"estimate": "audited", "share": share, "count": count}
    assert verdict.is_absent(of_reference) == (share == 0)


def test_groups_that_more_samples_cannot_decide_are_counted_separately():
    reasons = {
        "verdict": ["inconclusive"] * 3 + ["preserved"],
        "inconclusive_reason": ["few"] + ["calibration"] * 2 + [None],
    }
    sentence = verdict.undecided_sentence(pl.DataFrame(reasons))
    assert sentence.startswith("1 of 4 groups is too rare for a verdict. For 2, there are too few annotated images")
