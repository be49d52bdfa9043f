"""The labeller's errors on audited faces next to those on photographs."""

import numpy as np
import pytest

from reports.estimation.audit.labeller_errors import compare_errors, homogeneity_p
from tests.reports.estimation.audit.faces import audited_faces

RATES = np.array([[0.9, 0.1, 0.0], [0.05, 0.85, 0.1], [0.0, 0.2, 0.8]])
OTHER_RATES = np.array([[0.6, 0.4, 0.0], [0.05, 0.85, 0.1], [0.0, 0.2, 0.8]])


def compared(rates, seed, *, classes=3, n=150):
    """The comparison of faces with these rates with photographs with RATES."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, n)
    labels = np.array([rng.choice(3, p=rates[item]) for item in truth])
    confusion = np.stack([rng.multinomial(300, row) for row in RATES])
    faces = audited_faces(truth, labels, counts=[n, n, n, 0], probability=np.full(n, 1 / 3))
    return compare_errors(faces, confusion, seed=seed)


def test_equal_errors_are_rarely_called_different_and_other_ones_often():
    alike = [compared(RATES, seed).p for seed in range(60)]
    different = [compared(OTHER_RATES, seed).p for seed in range(20)]
    assert np.mean(np.array(alike) < 0.05) <= 0.1
    assert np.mean(np.array(different) < 0.05) >= 0.9


def test_rates_have_intervals_and_a_class_without_faces_has_none():
    errors = compared(RATES, 0, classes=2)
    assert errors.rates[0] == pytest.approx([0.9, 0.1, 0, 0], abs=0.12)
    assert (errors.low[:2] <= errors.rates[:2]).all()
    assert (errors.rates[:2] <= errors.high[:2]).all()
    assert np.isnan(errors.rates[2]).all()
    assert errors.counts.sum() == pytest.approx(150)
    assert errors.photographs[:, 3].tolist() == [0, 0, 0]


def test_faces_count_by_their_weights():
    faces = audited_faces([0] * 30, [0] * 20 + [1] * 10, counts=[90, 10, 0], probability=[0.9] * 20 + [0.1] * 10)
    errors = compare_errors(faces, np.array([[50, 50], [0, 0]]), seed=0)
    assert errors.rates[0, 1] == pytest.approx(100 / (100 + 20 / 0.9))
    assert errors.counts[0].tolist() == [20, 10, 0]


def test_nothing_is_tested_without_photographs_of_a_class_that_was_seen():
    generator = np.random.default_rng(0)
    assert np.isnan(homogeneity_p(np.array([[10, 5], [0, 0]]), np.array([[0, 0], [7, 8]]), generator=generator))
    assert homogeneity_p(np.array([[10, 5]]), np.array([[10, 5]]), generator=generator) == 1
