"""Faces are chosen at random with the probabilities that are stored, and a larger plan contains a smaller one."""

import numpy as np
import polars as pl
import pytest

from pipeline.audit.design import (
    RARE,
    Strata,
    allocate,
    by_expected_error,
    choose,
    equal_sizes,
    inclusion_probabilities,
    permanent_numbers,
    stratify,
)


def labels(n=2000, shares=(0.01, 0.19, 0.8), seed=0):
    """`n` faces of which few have tone 1, with gender and the confidence of both."""
    generator = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "key": [f"{i:08d}" for i in range(n)],
            "gender": generator.choice(["female", "male"], n),
            "p_gender": generator.uniform(0.5, 1, n),
            "skin_tone": generator.choice(["1", "2", "3"], n, p=shares),
            "p_skin_tone": generator.uniform(0.3, 1, n),
        }
    )


NAMES = ["gender", "skin_tone"]


def test_a_face_belongs_to_the_stratum_of_its_rarest_label():
    table = labels()
    strata = stratify(table, NAMES, count=300)
    names = np.array(strata.names)[strata.index]
    assert set(names[table["skin_tone"] == "1"]) == {"skin tone 1"}
    assert {name.split(",")[0] for name in names[table["skin_tone"] == "3"]} == {"gender female", "gender male"}


def test_large_strata_are_split_by_confidence_and_small_ones_are_pooled():
    table = labels()
    names = stratify(table, NAMES, count=300).names
    assert {"skin tone 2, less confident", "skin tone 2, more confident", "skin tone 1"} <= set(names)
    assert RARE in stratify(table, NAMES, count=24).names
    assert stratify(table, NAMES, count=1).names == [RARE]


def test_faces_without_probabilities_or_labels_have_strata_as_well():
    table = labels().with_columns(
        p_gender=pl.lit(None, pl.Float64),
        gender=pl.when(pl.col("key") < "00000100").then(None).otherwise("gender"),
    )
    assert stratify(table, ["gender"], count=300).names == ["gender female", "gender male", "gender unsure"]


@pytest.mark.parametrize("total", [1, 8, 100, 699])
def test_allocation_is_proportional_with_a_floor_and_never_more_than_there_are(total):
    counts = np.array([5, 95, 600])
    chosen = allocate(counts, total)
    assert chosen.sum() == total
    assert (chosen <= counts).all()
    if total == 100:
        assert chosen.tolist() == [5, 19, 76]  # the floor gives the smallest one all of its faces


def test_no_stratum_loses_a_face_when_the_total_grows():
    counts = np.random.default_rng(0).integers(1, 300, 12)
    rows = np.array([allocate(counts, total) for total in range(0, counts.sum() + 1, 7)])
    assert (np.diff(rows, axis=0) >= 0).all()
    assert (allocate(counts, counts.sum()) == counts).all()


@pytest.mark.parametrize("make", [lambda t: stratify(t, NAMES, count=100), lambda t: by_expected_error(t, NAMES)])
def test_a_larger_plan_contains_the_smaller_one(make):
    table = labels()
    strata, numbers = make(table), permanent_numbers(table["key"].to_list(), seed=3, source="generated")
    small, large = choose(strata, numbers, [100]), choose(strata, numbers, [100, 150, 400])
    assert (small.rounds == 0).sum() == 100
    assert ((small.rounds == 0) == (large.rounds == 0)).all()
    assert [int((large.rounds == number).sum()) for number in (0, 1, 2)] == [100, 50, 250]
    assert (large.probabilities >= small.probabilities).all()
    assert large.probabilities.sum() == pytest.approx(400)


@pytest.mark.parametrize(
    "make",
    [lambda t: stratify(t, NAMES, count=60), lambda t: by_expected_error(t, NAMES), lambda t: equal_sizes(len(t))],
    ids=["stratified", "active", "uniform"],
)
def test_faces_are_chosen_as_often_as_their_probability_says(make):
    table = labels(200, shares=(0.05, 0.15, 0.8))
    strata, keys, trials = make(table), table["key"].to_list(), 2000
    times = np.zeros(len(table))
    for seed in range(trials):
        choice = choose(strata, permanent_numbers(keys, seed=seed, source="generated"), [60])
        times += choice.rounds >= 0
    error = np.sqrt(choice.probabilities * (1 - choice.probabilities) / trials)
    assert (np.abs(times / trials - choice.probabilities) <= 4.5 * error + 0.01).all()


def test_improbable_labels_are_chosen_more_often_and_every_face_may_be_chosen():
    table = labels()
    strata = by_expected_error(table, NAMES)
    probabilities = choose(
        strata, permanent_numbers(table["key"].to_list(), seed=0, source="train"), [300]
    ).probabilities
    error = 2 - table["p_gender"] - table["p_skin_tone"]
    assert np.corrcoef(probabilities, np.sqrt(error))[0, 1] == pytest.approx(1)
    assert probabilities.min() >= 0.5 * 300 / 2000
    assert (by_expected_error(table.with_columns(p_gender=1.0, p_skin_tone=1.0), NAMES).sizes == 1).all()


def test_probabilities_are_at_most_one():
    probabilities = inclusion_probabilities(np.array([100.0, 30.0, 1.0, 1.0, 2.0]), 3)
    assert probabilities.tolist() == [1, 1, 0.25, 0.25, 0.5]


def test_random_numbers_depend_on_the_seed_the_side_and_the_key_alone():
    numbers = permanent_numbers([str(i) for i in range(4000)], seed=1, source="train")
    assert (permanent_numbers(["7"], seed=1, source="train") == numbers[7]).all()
    assert np.histogram(numbers, 10, (0, 1))[0].min() > 330
    assert not (permanent_numbers(["7"], seed=2, source="train") == numbers[7]).any()
    assert not (permanent_numbers(["7"], seed=1, source="generated") == numbers[7]).any()


def test_a_full_stratum_is_chosen_for_sure():
    strata = Strata(["a", "b"], np.repeat([0, 1], [3, 50]), np.ones(53))
    choice = choose(strata, permanent_numbers([str(i) for i in range(53)], seed=0, source="generated"), [30])
    assert choice.probabilities[:3].tolist() == [1, 1, 1]
    assert (choice.rounds[:3] == 0).all()
