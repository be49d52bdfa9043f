"""Shares from people's labels: formulas against other programs, and intervals of rare and unknown classes.

The figures of ppi-python 0.2.3 and glide-py 0.11.0 were computed from `patterned_faces`. The first needs numba, pandas,
statsmodels and scikit-learn, the second Python 3.12 and scipy.
"""

import numpy as np
import pytest

from reports.estimation.audit.shares import NO_ANSWER, AuditedFaces, estimate_audit, merge_strata
from reports.estimation.intervals import wilson
from tests.reports.estimation.audit.faces import audited_faces, patterned_faces


def patterned_audit(n, chosen, *, strata=None, probability=None):
    """The estimate from some of n patterned faces, chosen with a probability in strata, [n] each."""
    truth, labels = patterned_faces(n)
    faces = audited_faces(
        truth[chosen],
        labels[chosen],
        counts=np.append(np.bincount(labels), 0),
        strata=None if strata is None else strata[chosen],
        probability=None if probability is None else probability[chosen],
    )
    return estimate_audit(faces, seed=0, replicates=3000)


def standard_error(estimate):
    return estimate.bootstrap_shares[:, 1].std()


def test_shares_are_those_of_ppi_python():
    result = patterned_audit(600, np.arange(120))
    assert result.human.shares[1] == pytest.approx(0.4)
    # ppi_mean_pointestimate(..., lam=0.7 * 480 / 600) is 0.3825: its weight is that of the unlabelled faces alone
    assert result.powered.shares[1] == pytest.approx(0.4 + result.tuned_weight[1] / 0.7 * (0.3825 - 0.4))
    # its own weight gives 0.38137, and ppi_mean_ci 0.31651 to 0.44622
    assert result.powered.shares[1] == pytest.approx(0.38137, abs=0.002)
    low, high = result.powered.interval()
    assert (low[1], high[1]) == pytest.approx((0.31651, 0.44622), abs=0.01)


def test_strata_count_by_their_share_of_all_faces_as_in_glide():
    strata = (np.arange(600) % 3 == 0).astype(int)
    chosen = np.sort(np.concatenate([np.flatnonzero(strata == stratum)[:60] for stratum in (0, 1)]))
    result = patterned_audit(600, chosen, strata=strata, probability=np.where(strata == 0, 60 / 400, 60 / 200))
    assert result.human.shares[1] == pytest.approx(0.4)  # StratifiedClassicalMeanEstimator, standard error 0.04754
    assert standard_error(result.human) == pytest.approx(0.04754, rel=0.06)
    assert result.powered.shares[1] == pytest.approx(
        0.36640, abs=0.005
    )  # StratifiedPPIMeanEstimator, a weight a stratum
    assert standard_error(result.powered) == pytest.approx(0.03502, rel=0.06)


def test_faces_count_by_the_inverse_of_their_probability_as_in_glide():
    probability = np.where(np.arange(640) % 2 == 0, 0.25, 0.125)
    chosen = np.sort(np.concatenate([np.arange(0, 640, 2)[::4], np.arange(1, 640, 2)[::8]]))
    result = patterned_audit(640, chosen, probability=probability)
    # ASIMeanEstimator, 0.38244 with standard error 0.03475, has a weight of 0.8029
    assert result.powered.shares[1] == pytest.approx(0.4 + result.tuned_weight[1] / 0.8029 * (0.38244 - 0.4), abs=1e-4)
    assert standard_error(result.powered) == pytest.approx(0.03475, rel=0.06)


def test_a_useless_labeller_has_no_weight_and_a_good_one_narrows_the_intervals():
    rng = np.random.default_rng(0)
    truth = rng.choice(5, 300, p=[0.4, 0.3, 0.15, 0.1, 0.05])
    good = np.where(rng.random(300) < 0.05, rng.integers(0, 5, 300), truth)
    useless = rng.permutation(truth)
    counts = [2000, 1500, 750, 500, 250, 0]
    results = [estimate_audit(audited_faces(truth, labels, counts=counts), seed=0) for labels in (good, useless)]
    for result in results:
        assert result.powered.shares.sum() == pytest.approx(1)
        assert (result.powered.shares >= 0).all()
        assert result.powered.width().mean() <= 1.001 * result.human.width().mean()
    assert results[0].powered.width().mean() < 0.6 * results[0].human.width().mean()
    assert (results[0].tuned_weight > 0.5).all()
    assert results[1].tuned_weight.max() < 0.2


def test_a_class_that_nobody_saw_has_an_interval():
    ratings, labels = np.array([0] * 60 + [1] * 40), np.array([0] * 55 + [1] * 45)
    result = estimate_audit(audited_faces(ratings, labels, counts=[2500, 2400, 100, 0]), seed=0)
    for estimate in (result.human, result.powered):
        low, high = estimate.interval()
        assert (low[2], estimate.shares[2]) == (0, pytest.approx(0, abs=0.02))
        assert 0.02 < high[2] < 0.08
    human_low, human_high = result.human.interval()
    expected = wilson([60, 40], 100)
    assert human_low[:2] == pytest.approx(expected[0], abs=0.012)
    assert human_high[:2] == pytest.approx(expected[1], abs=0.012)


def test_one_class_only_is_not_certain():
    result = estimate_audit(audited_faces(np.zeros(50, int), np.zeros(50, int), counts=[5000, 0, 0]), seed=0)
    low, high = result.powered.interval()
    assert result.powered.shares.tolist() == [1, 0]
    assert 0.9 < low[0] < 0.99
    assert (high[0], low[1]) == (1, 0)
    assert high[1] == pytest.approx(1 - low[0], abs=0.02)


def test_faces_that_raters_cannot_tell_count_as_missing_in_their_stratum():
    ratings = [0] * 10 + [1] * 10 + [2] * 20 + [1] * 40  # of the first stratum, half can't be told
    strata, probability = [0] * 40 + [1] * 40, [0.1] * 80
    faces = audited_faces(ratings, [0] * 40 + [1] * 40, counts=[400, 400, 0], strata=strata, probability=probability)
    result = estimate_audit(faces, seed=0)
    assert faces.cant_tell == pytest.approx(0.25)
    assert result.human.shares == pytest.approx([0.25, 0.75])
    least, most = result.bounds()
    assert least == pytest.approx(result.powered.shares * 0.75)
    assert most - least == pytest.approx([0.25, 0.25])


def test_unanswered_faces_are_neither_answers_nor_untellable():
    faces = audited_faces([0, 1, NO_ANSWER, NO_ANSWER] * 10, [0, 1, 0, 1] * 10, counts=[500, 500, 0])
    assert (faces.is_answered.sum(), faces.cant_tell) == (20, 0)
    assert estimate_audit(faces, seed=0).human.shares == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize("rating", [2, NO_ANSWER])
def test_an_audit_without_a_class_is_refused(rating):
    faces = audited_faces(np.full(20, rating), np.zeros(20, int), counts=[500, 500, 0])
    with pytest.raises(ValueError, match="fewer than two faces"):
        estimate_audit(faces, seed=0)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"ratings": np.zeros(4, int)}, r"ratings are \[n, R\]"),
        ({"labels": np.zeros(3, int)}, r"ratings are \[n, R\]"),
        ({"probability": np.array([0.5, 0.5, 0.5, 0])}, r"not in \(0, 1\]"),
        ({"labels": np.array([0, 1, 2, 3])}, "not a class"),
    ],
)
def test_bad_shapes_and_values_are_refused(change, reason):
    values = {"ratings": np.zeros((4, 1), int), "labels": np.zeros(4, int), "strata": np.zeros(4, int)}
    values |= {"probability": np.full(4, 0.5), "label_counts": np.array([4, 4, 0])} | change
    with pytest.raises(ValueError, match=reason):
        AuditedFaces(**values)


def test_raters_who_disagree_widen_the_intervals():
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 2, 400)
    alike = np.stack([truth] * 3, 1)
    biased = np.stack([truth, np.where(rng.random(400) < 0.2, 1, truth), np.where(rng.random(400) < 0.2, 0, truth)], 1)
    widths = [
        estimate_audit(audited_faces(ratings, truth, counts=[2000, 2000, 0]), seed=0).powered.width()[0]
        for ratings in (truth, alike, biased)
    ]
    assert widths[0] == pytest.approx(widths[1], rel=0.05)
    assert widths[2] > 1.5 * widths[1]


def test_rater_variance_is_that_between_raters():
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 2, 400)
    opposed = np.stack([truth, 1 - truth, np.zeros(400, int)], 1)
    for ratings, is_larger in ((np.stack([truth] * 3, 1), False), (opposed, True)):
        result = estimate_audit(audited_faces(ratings, truth, counts=[2000, 2000, 0]), seed=0)
        assert ((result.rater_variance > result.other_variance / 2) == is_larger).all()


@pytest.mark.parametrize("seed", range(4))
def test_labels_that_widen_the_interval_of_a_class_get_no_weight(seed):
    rng = np.random.default_rng(seed)
    truth, labels = rng.integers(0, 6, (2, 60))
    labels = np.where(rng.random(60) < 0.3, truth, labels)
    result = estimate_audit(audited_faces(truth, labels, counts=[200] * 6 + [0]), seed=0)
    is_wider = result.powered.width() > result.human.width()
    assert (result.tuned_weight[is_wider] == 0).all()


def test_rounding_errors_are_not_shares():
    faces = audited_faces(np.zeros(60, int), np.full(60, 2), counts=[0, 10, 1990, 0])
    assert estimate_audit(faces, seed=0).powered.shares[1:].tolist() == [0, 0]


def test_important_faces_count_more_and_others_not_at_all():
    faces = audited_faces([0] * 10 + [1] * 10 + [2] * 10, [0] * 30, counts=[500, 200, 0, 0])
    weighted = faces.weighted(np.repeat([3.0, 1.0, 0.0], 10))
    assert len(weighted.ratings) == 20
    assert estimate_audit(weighted, seed=0).human.shares == pytest.approx([0.75, 0.25, 0])


def test_small_strata_are_merged_with_the_next():
    strata = np.array([0, 1, 1, 1, 1, 2, 2, 2, 2, 3])
    classified = np.ones(10, bool)
    assert merge_strata(strata, classified).tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1, 1]
    assert merge_strata(strata, classified & (strata != 2)).tolist() == [0] * 10
    assert merge_strata(strata[:3], classified[:3]).tolist() == [0, 0, 0]
