"""Intervals and tests over seeds, against hand computation, tables, and simulated studies with a known truth."""

import numpy as np
import pytest

from reports.estimation.study import seeds
from reports.estimation.study.worlds import measure_study_coverage


@pytest.mark.parametrize(
    ("degrees", "quantile"), [(1, 12.7062), (2, 4.30265), (4, 2.77645), (9, 2.26216), (1e5, 1.95996)]
)
def test_student_quantiles_are_those_of_the_tables(degrees, quantile):
    assert seeds.student_quantile(degrees) == pytest.approx(quantile, rel=1e-4)
    assert seeds.student_p(quantile, degrees) == pytest.approx(0.05, rel=1e-3)


@pytest.mark.parametrize(("degrees", "ends"), [(1, (5.0239, 0.00098)), (2, (7.3778, 0.05064)), (9, (19.0228, 2.7004))])
def test_chi_squared_quantiles_are_those_of_the_tables(degrees, ends):
    assert seeds.chi_squared_quantiles(degrees) == pytest.approx(ends, rel=5e-3)


def test_five_pairs_never_reach_significance_and_six_can():
    same_sign = np.arange(1.0, 7)[:, None]
    assert seeds.sign_flip_p(same_sign[:5]) == pytest.approx([0.0625])
    assert seeds.sign_flip_p(same_sign) == pytest.approx([0.03125])
    assert seeds.least_pairs() == 6
    assert [seeds.least_sign_flip_p(pairs) for pairs in (5, 6)] == [0.0625, 0.03125]


def test_a_sign_flip_test_counts_the_flips_that_differ_as_much():
    # of the sums ±1 ±2 ±4, those of at least 5 in size are ±7 and ±5
    assert seeds.sign_flip_p(np.array([[-1.0, 1], [2, 2], [4, 4]])) == pytest.approx([4 / 8, 2 / 8])
    assert seeds.sign_flip_p(np.zeros((4, 1))) == pytest.approx([1])


def test_a_sign_flip_test_of_many_pairs_is_never_certain():
    p = seeds.sign_flip_p(np.stack([np.ones(30), np.tile([1.0, -1], 15)], 1))
    assert 0 < p[0] < 1e-3
    assert p[1] == 1


def test_without_sampling_noise_the_interval_is_students():
    values = np.array([[0.1], [0.2], [0.6]])
    mean = seeds.mean_over_seeds(values, np.repeat(values[None], 5, 0))
    half_width = 4.30265 * values.std(ddof=1) / np.sqrt(3)
    assert (mean.mean[0], mean.low[0], mean.high[0]) == pytest.approx(
        (0.3, 0.3 - half_width, 0.3 + half_width), rel=1e-4
    )
    assert mean.sd[0] == pytest.approx(values.std(ddof=1))
    assert mean.sd_low[0] < mean.sd[0] < mean.sd_high[0]


def test_one_seed_claims_no_interval():
    mean = seeds.mean_over_seeds(np.array([[0.4]]), np.full((5, 1, 1), 0.4))
    assert mean.mean[0] == 0.4
    assert np.isnan([mean.low, mean.high, mean.sd, mean.p]).all()


def replicates(rng, values, *, own, shared):
    """Bootstrap replicates with an own and a shared standard deviation."""
    return (
        values
        + own * rng.standard_normal((4000, *values.shape))
        + shared * rng.standard_normal((4000, 1, values.shape[1]))
    )


def test_calibration_noise_is_separated_from_sampling_noise_and_does_not_fall_with_the_seeds():
    rng = np.random.default_rng(1)
    values = np.full((50, 1), 0.5)
    mean = seeds.mean_over_seeds(values, replicates(rng, values, own=0.02, shared=0.03))
    assert mean.sampling_sd[0] == pytest.approx(0.02, rel=0.1)
    assert mean.shared_sd[0] == pytest.approx(0.03, rel=0.1)
    assert mean.high[0] - 0.5 == pytest.approx(1.96 * 0.03, rel=0.1)


def test_seeds_that_agree_by_chance_still_have_sampling_noise():
    rng = np.random.default_rng(2)
    values = np.full((3, 1), 0.5)
    mean = seeds.mean_over_seeds(values, replicates(rng, values, own=0.02, shared=0))
    assert mean.high[0] - 0.5 == pytest.approx(4.30265 * 0.02 / np.sqrt(3), rel=0.1)
    assert mean.sd[0] == 0 < mean.sd_high[0]


def test_the_seeds_needed_are_those_of_a_paired_t_test():
    assert seeds.seeds_needed(1.0, sd=1.0, shared_sd=0) == 10  # the usual table for a power of 80 %
    assert seeds.seeds_needed(9.0, sd=1.0, shared_sd=0) == seeds.least_pairs()
    assert seeds.seeds_needed(1.0, sd=1.0, shared_sd=0.3) > 10
    assert seeds.seeds_needed(1.0, sd=1.0, shared_sd=0, level=0.99) > 10
    assert seeds.seeds_needed(1.0, sd=1.0, shared_sd=0.5) is None  # calibration alone hides it
    assert seeds.seeds_needed(0.0, sd=1.0, shared_sd=0) is None


@pytest.mark.parametrize("count", [2, 3, 6])
def test_intervals_cover_and_tests_find_nothing_where_arms_are_equal(count):
    coverage = measure_study_coverage(count, 150, seed=7)
    assert coverage.means["t"] >= 0.92
    assert coverage.distances["t"] >= 0.91
    assert coverage.false_positives["t"] <= 0.06
    assert coverage.false_positives["sign_flip"] <= 0.06
    assert coverage.means["single"] < 0.75  # what one run claims does not hold for its condition
    assert coverage.means["bca"] < coverage.means["t"]
