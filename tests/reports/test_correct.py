"""Correction: exact where nothing is left to chance, honest intervals, nearer to the truth than the raw shares."""

import numpy as np
import pytest

from reports.correct import CONDITION, corrected, estimated, projected, raw_is_better, solve
from reports.worlds import accuracy, coverage, world


def test_a_known_matrix_is_undone_exactly():
    matrix = np.array([[0.9, 0.1, 0.0], [0.2, 0.7, 0.1], [0.05, 0.15, 0.8]])
    truth = np.array([[0.5, 0.3, 0.2], [0.0, 0.0, 1.0]])
    assert np.allclose(solve(matrix, truth @ matrix), truth, atol=1e-9)


def test_the_simplex_is_never_left_and_the_border_is_the_best_point_of_it():
    rng = np.random.default_rng(0)
    matrix = np.stack([estimated(c + 25 * np.eye(3)) for c in rng.multinomial(40, [0.5, 0.3, 0.2], size=(50, 3))])
    seen = rng.dirichlet(np.full(3, 0.3), size=50)
    found = solve(matrix, seen)
    assert (found >= 0).all()
    assert np.allclose(found.sum(1), 1)
    assert (found == 0).any()  # some lie on the border
    grid = np.array([(i, j, 40 - i - j) for i in range(41) for j in range(41 - i)]) / 40
    misses = ((grid @ matrix - seen[:, None]) ** 2).sum(-1).min(1)
    ours = (((found[:, None] @ matrix)[:, 0] - seen) ** 2).sum(-1)
    assert (ours <= misses + 1e-9).all()


def test_a_matrix_that_cannot_be_inverted_still_gives_shares():
    found = solve(np.full((2, 2), 0.5), np.array([0.3, 0.7]))
    assert np.isfinite(found).all()
    assert corrected(np.array([30, 70]), np.full((2, 2), 50), 0).condition > CONDITION


def test_projection_is_the_nearest_point():
    points = np.random.default_rng(1).normal(size=(20, 4))
    nearest = projected(points)
    others = np.random.default_rng(2).dirichlet(np.ones(4), size=2000)
    assert np.allclose(nearest.sum(1), 1)
    assert (((points - nearest) ** 2).sum(1) <= ((points[:, None] - others) ** 2).sum(-1).min(1)).all()


def test_more_calibration_and_more_samples_give_narrower_intervals():
    confusion, counts = np.array([[80, 20], [10, 90]]), np.array([700, 1300])

    def width(calibration: int, samples: int) -> float:
        low, high = corrected(samples * counts, calibration * confusion, 0).interval()
        return (high - low).max()

    assert width(10, 1) < 0.6 * width(1, 1)
    assert width(10, 10) < 0.7 * width(10, 1)


def test_without_calibration_images_nothing_is_corrected():
    with pytest.raises(ValueError, match="calibration"):
        corrected(np.array([5, 5]), np.array([[3, 1], [0, 0]]), 0)


def test_a_class_without_labels_or_calibration_takes_no_part():
    confusion = np.array([[80, 20, 0], [10, 90, 0], [0, 0, 0]])
    found = corrected(np.array([700, 1300, 0]), confusion, 0)
    assert found.shares[2] == pytest.approx(0, abs=1e-3)
    assert np.allclose(found.shares[:2], corrected(np.array([700, 1300]), confusion[:2, :2], 0).shares, atol=3e-3)


def test_a_labeller_that_is_all_but_perfect_still_leaves_room_for_its_errors():
    rng, held = np.random.default_rng(4), []
    matrix, truth = np.array([[0.999, 0.001], [0.001, 0.999]]), np.array([0.02, 0.98])
    for seed in range(60):
        confusion = np.stack([rng.multinomial(50, row) for row in matrix])
        low, high = corrected(rng.multinomial(2000, truth @ matrix), confusion, seed, 300).interval()
        held.append(low[0] <= 0.02 <= high[0])
    assert np.mean(held) > 0.88


def test_two_sides_of_one_seed_share_the_matrix_and_not_the_labels():
    counts, confusion = np.array([700, 1300]), np.array([[80, 20], [30, 70]])
    one, other, alone = (corrected(counts, confusion, 0, side=0), corrected(counts, confusion, 0, side=1),
                         corrected(counts, confusion, 5))  # fmt: skip
    together = np.corrcoef(one.draws[:, 0], other.draws[:, 0])[0, 1]
    assert 0.5 < together < 0.999
    assert abs(np.corrcoef(one.draws[:, 0], alone.draws[:, 0])[0, 1]) < 0.15


def test_a_good_labeller_and_few_images_are_better_left_alone():
    rng = np.random.default_rng(3)
    good = np.full((10, 10), 0.05 / 9) + (0.95 - 0.05 / 9) * np.eye(10)
    confusion = np.stack([rng.multinomial(50, row) for row in good])
    counts = rng.multinomial(2000, np.full(10, 0.1) @ good)
    assert raw_is_better(counts, corrected(counts, confusion, 0))
    bad = np.array([[0.9, 0.1], [0.4, 0.6]])
    many = rng.multinomial(20_000, np.array([0.2, 0.8]) @ bad)
    assert not raw_is_better(many, corrected(many, (5000 * bad).astype(int), 0))


@pytest.mark.parametrize("classes", [2, 3, 5, 10])
def test_intervals_hold_the_truth_as_often_as_they_say(classes):
    """At least 93 % on average of the worlds that the issue names, and not much more than they need to."""
    ours, naive = coverage(classes, worlds=240, seed=classes)
    assert 0.93 <= ours <= 0.985
    assert naive < 0.8


@pytest.mark.parametrize(("classes", "most"), [(2, 0.25), (3, 0.25), (5, 0.25), (10, 0.4)])
def test_correcting_takes_most_of_the_error_away(classes, most):
    errors = accuracy(classes, worlds=60, seed=classes)
    assert errors["corrected"] <= most * errors["raw"]


def test_a_world_is_as_accurate_as_it_was_asked_to_be():
    made = world(np.random.default_rng(0), 5, 0.8, 2000, 20_000)
    balanced = (np.diag(made.confusion) / made.confusion.sum(1)).mean()
    assert balanced == pytest.approx(0.8, abs=0.02)
    assert made.counts.sum() == 2000
    assert made.confusion.sum() == 20_000
