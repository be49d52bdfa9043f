"""The kernel distance by brute force, its variance and interval, and the bandwidth."""

import math

import numpy as np
import pytest

from reports.estimation import kernel_distance as kd
from shards.errors import FairfaceError
from tests.reports.estimation.embedded_images import random_embeddings


def kernels(x, y, bandwidth):
    """Kernels of x and x, y and y, x and y."""
    return [kd.gaussian_kernel(kd.squared_distances(a, b), bandwidth) for a, b in ((x, x), (y, y), (x, y))]


def test_distance_equals_the_double_loop():
    generator = np.random.default_rng(0)
    x, y = random_embeddings(generator, 7), random_embeddings(generator, 5, 0.4)

    def k(a, b):
        return math.exp(-sum((float(p) - float(q)) ** 2 for p, q in zip(a, b, strict=True)) / (2 * 0.9**2))

    within = [np.mean([k(a, b) for i, a in enumerate(side) for j, b in enumerate(side) if i != j]) for side in (x, y)]
    direct = sum(within) - 2 * np.mean([k(a, b) for a in x for b in y])
    assert kd.kernel_distance(x, y, bandwidth=0.9) == pytest.approx(direct, abs=1e-12)
    assert kd.kernel_distance(x, -x, bandwidth=0.01) == pytest.approx(0, abs=1e-9)  # nothing is near anything
    farthest = kd.kernel_distance(np.tile(x[:1], (9, 1)), np.tile(-x[:1], (9, 1)), bandwidth=0.1)
    assert farthest == pytest.approx(2)


def test_distance_of_equal_distributions_is_0_on_average():
    generator = np.random.default_rng(1)
    distances = [
        kd.kernel_distance(random_embeddings(generator, 12), random_embeddings(generator, 12), bandwidth=1.0)
        for _ in range(600)
    ]
    assert abs(np.mean(distances)) < 4 * np.std(distances) / math.sqrt(600)
    assert 0.4 < np.mean(np.less(distances, 0)) < 0.8


def test_distance_grows_with_a_shift():
    x, *others = (random_embeddings(np.random.default_rng(seed), 300, seed * 0.2) for seed in range(5))
    distances = [kd.kernel_distance(x, other, bandwidth=1.0) for other in others]
    assert sorted(distances) == distances
    assert distances[-1] > 3 * distances[0] > 0


def test_bandwidth_is_the_median_distance_of_real_images():
    corners = np.eye(3)[[0, 0, 1]]
    assert kd.median_bandwidth(corners, seed=0) == pytest.approx(math.sqrt(2))  # copies are left out
    angles = np.array([0, 0.1, 0.4])
    row = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float16)
    assert kd.median_bandwidth(row, seed=0) == pytest.approx(2 * math.sin(0.15), abs=1e-3)
    real = random_embeddings(np.random.default_rng(2), 3000)
    assert kd.median_bandwidth(real, seed=0) == pytest.approx(kd.median_bandwidth(real, seed=1), rel=0.05)
    with pytest.raises(FairfaceError, match="all the same"):
        kd.median_bandwidth(np.tile(real[:1], (30, 1)), seed=0)


def true_mmd2(variances, spread, shift, *, bandwidth):
    """Squared MMD of two normal distributions with diagonal covariances, the second scaled by `spread`."""

    def mean_kernel(sums, difference):
        wide = bandwidth**2 + sums
        return np.prod(bandwidth / np.sqrt(wide)) * np.exp(-(difference**2 / wide).sum() / 2)

    other, no_shift = variances * spread**2, 0 * variances
    within = mean_kernel(2 * variances, no_shift) + mean_kernel(2 * other, no_shift)
    return within - 2 * mean_kernel(variances + other, shift)


@pytest.mark.parametrize("n", [20, 80])
@pytest.mark.parametrize(
    ("decay", "spread", "shift"), [(1, 1, 0), (1, 1, 0.15), (1.5, 1, 0.5), (1.5, 1, 1), (0, 1, 2), (1, 0.5, 0)]
)
def test_interval_covers_the_truth(n, decay, spread, shift):
    generator, variances = np.random.default_rng(3), 1 / np.arange(1.0, 17) ** decay
    bandwidth, moved = math.sqrt(2 * variances.sum()), np.zeros(16)
    moved[0] = shift * math.sqrt(variances.sum()) / 2
    truth, intervals, estimates, parts = true_mmd2(variances, spread, moved, bandwidth=bandwidth), [], [], []
    for _ in range(200):
        x, y = generator.normal(size=(2, n, 16)) * np.sqrt(variances)
        xx, yy, xy = kernels(x, y * spread + moved, bandwidth)
        intervals.append(kd.mmd2_interval(xx, yy, xy=xy))
        estimates.append(kd.unbiased_mmd2(xx, yy, xy=xy))
        parts.append(kd.mmd2_variances(xx, yy, xy=xy))
    first, second = np.mean(parts, axis=0)
    assert first + second == pytest.approx(np.var(estimates), rel=0.4)
    if shift == 0 and spread == 1:
        assert abs(first) < 0.4 * second
    low, high = np.array(intervals).T
    assert np.mean(estimates) == pytest.approx(truth, abs=4 * np.std(estimates) / math.sqrt(200))
    assert np.mean((low <= truth) & (truth <= high)) >= 0.9  # 95 % less three standard errors
    assert (low <= estimates).all()
    assert (estimates <= high).all()
    assert np.mean(low > 0) < 0.1 or truth > 0
    if shift == 2:  # far apart, the interval is estimate +- 1.96 sd and no wider
        assert np.mean(high - low) == pytest.approx(2 * 1.96 * np.std(estimates), rel=0.2)


def test_variance_of_unequal_sides_is_unbiased():
    generator, estimates, parts = np.random.default_rng(10), [], []
    for _ in range(3000):
        x, y = random_embeddings(generator, 6, dimensions=2), random_embeddings(generator, 8, 0.1, dimensions=2)
        xx, yy, xy = kernels(x, y, 0.8)
        estimates.append(kd.unbiased_mmd2(xx, yy, xy=xy))
        parts.append(kd.mmd2_variances(xx, yy, xy=xy))
    assert np.sum(np.mean(parts, axis=0)) == pytest.approx(np.var(estimates), rel=0.09)
