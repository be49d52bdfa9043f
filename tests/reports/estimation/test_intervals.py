"""Intervals and tests of shares: published examples, coverage, and the family-wise error of many tests."""

import numpy as np
import pytest

from reports.estimation import intervals


def test_wilson_by_hand():
    low, high = intervals.wilson([0, 5, 10, 0], [10, 10, 10, 0])
    # 0 of 10: z^2 / (n + z^2) = 3.8415 / 13.8415; 5 of 10: 0.5 -+ 1.96 * sqrt(2.5 + 0.9604) / 13.8415
    assert low == pytest.approx([0, 0.23659, 0.72247, 0], abs=1e-4)
    assert high == pytest.approx([0.27753, 0.76341, 1, 1], abs=1e-4)


def test_ratio_interval_reproduces_koopmans_example():
    low, high = intervals.ratio_interval(36, 40, y=16, m=80)
    assert (float(low), float(high)) == pytest.approx((2.94, 7.15), abs=0.01)
    swapped = intervals.ratio_interval(16, 80, y=36, m=40)
    assert (1 / float(swapped[1]), 1 / float(swapped[0])) == pytest.approx((float(low), float(high)))


def test_ratio_interval_at_zero_counts():
    low, high = intervals.ratio_interval([0, 5, 0, 50], [100, 100, 100, 50], y=[5, 0, 0, 80], m=[100, 100, 100, 80])
    assert low[[0, 2]].tolist() == [0, 0]
    assert np.isinf(high[[1, 2]]).all()
    assert 0 < high[0] < 1 < low[1]
    assert low[3] < 1 < high[3]


@pytest.mark.parametrize(
    ("n", "m", "p", "q"),
    [
        (2000, 6000, 0.6, 0.6),
        (2000, 6000, 0.03, 0.02),
        (500, 135766, 0.01, 0.015),
        (200, 200, 0.05, 0.1),
        (100, 2000, 0.95, 0.9),
    ],
)
def test_ratio_interval_covers_the_truth(n, m, p, q):
    generator = np.random.default_rng(0)
    low, high = intervals.ratio_interval(generator.binomial(n, p, 5000), n, y=generator.binomial(m, q, 5000), m=m)
    covered = np.mean((low <= p / q) & (p / q <= high))
    assert 0.935 <= covered <= 0.975


def test_unchanged_shares_are_seldom_significant_and_a_change_is():
    generator, n, m = np.random.default_rng(0), 2000, 6000
    shares = np.array([0.5, 0.5, 0.08, 0.71, 0.21, 0.1, 0.26, 0.37, 0.14, 0.13])
    n_of_each, m_of_each = n + 0 * shares, m + 0 * shares

    def significant(generated, training):
        return intervals.holm_significant(intervals.pearson_p(generated, n_of_each, y=training, m=m_of_each))

    unchanged = [(generator.binomial(n, shares), generator.binomial(m, shares)) for _ in range(400)]
    assert np.mean([significant(*counts).any() for counts in unchanged]) < 0.08
    changed = shares.copy()
    changed[0] += 0.1
    assert significant(n * changed, m * shares).tolist() == [True] + [False] * 9
