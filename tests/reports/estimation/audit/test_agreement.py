"""Agreement among raters."""

import numpy as np
import pytest

from reports.estimation.audit.agreement import measure_agreement

# three raters, with missing answers; alpha by the package krippendorff 0.9.0
RATINGS = np.array(
    [[0, 0, 0], [1, 1, 2], [3, 3, 3], [2, 2, -1], [1, 1, 1], [0, 1, 0], [3, 2, 3], [-1, 2, 2], [0, -1, -1], [3, 3, 2]]
)
NOMINAL, ORDINAL = 0.5879828326180256, 0.8654500616522811


def test_alpha_is_that_of_another_program():
    agreement = measure_agreement(RATINGS, classes=4, seed=0)
    assert agreement.faces == 9
    assert agreement.nominal[0] == pytest.approx(NOMINAL)
    assert agreement.ordinal[0] == pytest.approx(ORDINAL)
    for value, low, high in (agreement.nominal, agreement.ordinal, agreement.same, agreement.close):
        assert low <= value <= high <= 1


def test_neighbouring_classes_are_close():
    agreement = measure_agreement(np.array([[0, 1], [1, 1], [2, 0], [2, 3]]), classes=4, seed=0)
    assert agreement.same[0] == pytest.approx(1 / 4)
    assert agreement.close[0] == pytest.approx(3 / 4)


def test_random_answers_have_an_alpha_of_0_and_equal_ones_of_1():
    answers = np.random.default_rng(0).integers(0, 3, (500, 2))
    agreement = measure_agreement(answers, classes=3, seed=0)
    assert agreement.nominal[1] < 0 < agreement.nominal[2]
    equal = measure_agreement(answers[:, :1].repeat(3, 1), classes=3, seed=0)
    assert (equal.nominal, equal.ordinal) == ((1, 1, 1), (1, 1, 1))


@pytest.mark.parametrize("ratings", [np.zeros((30, 2), int), np.full((30, 2), 2), np.array([[0, -1], [-1, 1]])])
def test_alpha_is_undefined_without_two_classes_or_two_answers(ratings):
    agreement = measure_agreement(ratings, classes=2, seed=0)
    assert np.isnan(agreement.nominal).all()
    assert np.isnan(agreement.ordinal).all()
