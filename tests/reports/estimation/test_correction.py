"""Correction of shares: exact without chance, with covering intervals, and nearer to the truth than raw shares."""

import numpy as np
import pytest

from reports.estimation.attribute_estimate import MAX_GROUPS
from reports.estimation.correction import (
    MAX_CONDITION,
    correct_shares,
    estimate_matrix,
    project_to_simplex,
    raw_is_better,
    solve_shares,
)
from reports.estimation.simulation import estimate_errors, interval_coverage, simulate_study


def test_a_known_matrix_is_inverted_exactly():
    matrix = np.array([[0.9, 0.1, 0.0], [0.2, 0.7, 0.1], [0.05, 0.15, 0.8]])
    truth = np.array([[0.5, 0.3, 0.2], [0.0, 0.0, 1.0]])
    assert np.allclose(solve_shares(matrix, truth @ matrix), truth, atol=1e-9)


def test_solutions_are_the_best_points_of_the_simplex():
    rng = np.random.default_rng(0)
    matrix = np.stack([estimate_matrix(c + 25 * np.eye(3)) for c in rng.multinomial(40, [0.5, 0.3, 0.2], size=(50, 3))])
    observed = rng.dirichlet(np.full(3, 0.3), size=50)
    shares = solve_shares(matrix, observed)
    assert (shares >= 0).all()
    assert np.allclose(shares.sum(1), 1)
    assert (shares == 0).any()  # some lie on the border
    grid = np.array([(i, j, 40 - i - j) for i in range(41) for j in range(41 - i)]) / 40
    best_of_grid = ((grid @ matrix - observed[:, None]) ** 2).sum(-1).min(1)
    residuals = (((shares[:, None] @ matrix)[:, 0] - observed) ** 2).sum(-1)
    assert (residuals <= best_of_grid + 1e-9).all()


def test_a_singular_matrix_still_gives_shares():
    shares = solve_shares(np.full((2, 2), 0.5), np.array([0.3, 0.7]))
    assert np.isfinite(shares).all()
    assert correct_shares(np.array([30, 70]), np.full((2, 2), 50), seed=0).condition > MAX_CONDITION


def test_projection_is_the_nearest_point():
    points = np.random.default_rng(1).normal(size=(20, 4))
    nearest = project_to_simplex(points)
    others = np.random.default_rng(2).dirichlet(np.ones(4), size=2000)
    assert np.allclose(nearest.sum(1), 1)
    assert (((points - nearest) ** 2).sum(1) <= ((points[:, None] - others) ** 2).sum(-1).min(1)).all()


def test_more_calibration_and_more_samples_narrow_the_intervals():
    confusion, counts = np.array([[80, 20], [10, 90]]), np.array([700, 1300])

    def width(calibration: int, samples: int) -> float:
        low, high = correct_shares(samples * counts, calibration * confusion, seed=0).interval()
        return (high - low).max()

    assert width(10, 1) < 0.6 * width(1, 1)
    assert width(10, 10) < 0.7 * width(10, 1)


def test_a_class_with_labels_and_no_calibration_images_is_refused():
    with pytest.raises(ValueError, match="calibration"):
        correct_shares(np.array([5, 5]), np.array([[3, 1], [0, 0]]), seed=0)


def test_a_class_without_labels_and_calibration_images_changes_nothing():
    confusion = np.array([[80, 20, 0], [10, 90, 0], [0, 0, 0]])
    shares = correct_shares(np.array([700, 1300, 0]), confusion, seed=0).shares
    assert shares[2] == pytest.approx(0, abs=1e-3)
    without = correct_shares(np.array([700, 1300]), confusion[:2, :2], seed=0).shares
    assert np.allclose(shares[:2], without, atol=3e-3)


def test_intervals_of_a_nearly_perfect_labeller_include_its_errors():
    rng, covered = np.random.default_rng(4), []
    matrix, truth = np.array([[0.999, 0.001], [0.001, 0.999]]), np.array([0.02, 0.98])
    for seed in range(60):
        confusion = np.stack([rng.multinomial(50, row) for row in matrix])
        counts = rng.multinomial(2000, truth @ matrix)
        low, high = correct_shares(counts, confusion, seed=seed, replicates=300).interval()
        covered.append(low[0] <= 0.02 <= high[0])
    assert np.mean(covered) > 0.88


def test_two_sides_of_one_seed_share_the_matrices_and_not_the_labels():
    counts, confusion = np.array([700, 1300]), np.array([[80, 20], [30, 70]])
    first = correct_shares(counts, confusion, seed=0, side=0).bootstrap_shares[:, 0]
    second = correct_shares(counts, confusion, seed=0, side=1).bootstrap_shares[:, 0]
    other_seed = correct_shares(counts, confusion, seed=5).bootstrap_shares[:, 0]
    assert 0.5 < np.corrcoef(first, second)[0, 1] < 0.999
    assert abs(np.corrcoef(first, other_seed)[0, 1]) < 0.15


def test_raw_shares_are_better_for_a_good_labeller_and_few_images_only():
    rng = np.random.default_rng(3)
    good = np.full((10, 10), 0.05 / 9) + (0.95 - 0.05 / 9) * np.eye(10)
    confusion = np.stack([rng.multinomial(50, row) for row in good])
    counts = rng.multinomial(2000, np.full(10, 0.1) @ good)
    assert raw_is_better(counts, correct_shares(counts, confusion, seed=0))
    bad = np.array([[0.9, 0.1], [0.4, 0.6]])
    many = rng.multinomial(20_000, np.array([0.2, 0.8]) @ bad)
    assert not raw_is_better(many, correct_shares(many, (5000 * bad).astype(int), seed=0))


MORE_CLASSES = [pytest.param(classes, marks=pytest.mark.attack) for classes in (3, 5, 10)]


@pytest.mark.parametrize("classes", [2, *MORE_CLASSES, MAX_GROUPS])
def test_intervals_have_their_coverage(classes):
    """At least 93 % on average over the simulated studies, and not much wider than necessary."""
    corrected, raw = interval_coverage(classes, studies=min(200, 1500 // classes), seed=classes)
    assert 0.93 <= corrected <= 0.985
    assert raw < 0.8


@pytest.mark.parametrize(("classes", "most"), [(2, 0.25), (10, 0.4)])
def test_correction_removes_most_of_the_error(classes, most):
    errors = estimate_errors(classes, studies=30, seed=classes)
    assert errors["corrected"] <= most * errors["raw"]


def test_a_simulated_labeller_has_the_requested_accuracy():
    study = simulate_study(np.random.default_rng(0), 5, accuracy=0.8, n=2000, calibration=20_000)
    balanced = (np.diag(study.confusion) / study.confusion.sum(1)).mean()
    assert balanced == pytest.approx(0.8, abs=0.02)
    assert study.counts.sum() == 2000
    assert study.confusion.sum() == 20_000
