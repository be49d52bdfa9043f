"""The estimate of one attribute: verdicts, and what they claim when the labeller and the generator are known."""

from dataclasses import replace

import numpy as np
import pytest

from reports.estimation.attribute_estimate import MAX_GROUPS, AttributeCounts, Ratios, estimate_attribute, verdict
from reports.estimation.estimate_rows import estimate_rows
from reports.estimation.external_reference import ExternalShares, reference_rows
from reports.estimation.intervals import wilson


@pytest.mark.parametrize(
    ("low", "high", "other_ratio", "expected"),
    [
        (0.81, 1.2, 1.0, "preserved"),
        (0.81, 1.2, 1.3, "inconclusive"),  # the other estimate points elsewhere
        (1.02, 1.2, 1.1, "preserved"),
        (1.02, 1.3, 1.1, "amplified"),
        (1.02, 1.3, 0.9, "inconclusive"),
        (0.5, 0.99, 0.8, "reduced"),
        (0.5, 0.99, 1.01, "inconclusive"),
        (0.0, 0.4, 0.0, "reduced"),
        (0.7, 1.1, 0.9, "inconclusive"),
        (0.0, np.inf, None, "inconclusive"),
        (1.5, np.inf, np.inf, "amplified"),
    ],
)
def test_verdict(low, high, other_ratio, expected):
    assert verdict(low, high, other_ratio=other_ratio) == expected


def gender_counts(count, reference, annotated, *, confusion):
    """Counts of two genders by CLIP."""
    sides = [np.asarray(side, float) for side in (count, reference, annotated)]
    return AttributeCounts("gender", "clip", ["female", "male"], *sides, confusion)


def test_labels_that_do_not_tell_groups_apart_are_not_corrected():
    estimate = estimate_attribute(gender_counts(*[[300, 300]] * 3, confusion=np.full((2, 2), 200)))
    assert estimate.corrected is None
    assert "condition number" in estimate.correction_note


@pytest.mark.parametrize(("groups", "is_corrected"), [(14, True), (MAX_GROUPS, True), (MAX_GROUPS + 1, False)])
def test_attributes_of_many_groups_are_corrected_up_to_the_limit(groups, is_corrected):
    sides = [np.full(groups, 100.0)] * 3
    confusion = 90 * np.eye(groups, dtype=int) + 1
    estimate = estimate_attribute(AttributeCounts("race", "clip", list(map(str, range(groups))), *sides, confusion))
    assert (estimate.corrected is not None) == is_corrected
    assert is_corrected or "too many" in estimate.correction_note


def simulate_studies(accuracy, ratio, count, calibration=500, n=2000):
    """Verdicts on the first group, and how often the used intervals cover its true share and ratio."""
    rng, verdicts, covered = np.random.default_rng(0), [], []
    matrix = np.array([[accuracy, 1 - accuracy], [1 - accuracy, accuracy]])
    reference = np.array([0.4, 0.6])
    truth = np.array([0.4 * ratio, 1 - 0.4 * ratio])
    for _ in range(count):
        annotated = rng.multinomial(calibration, reference)
        confusion = np.stack([rng.multinomial(m, row) for m, row in zip(annotated, matrix, strict=True)])
        labels = rng.multinomial(n, truth @ matrix)
        counts = gender_counts(labels, confusion.sum(0), annotated, confusion=confusion)
        row = estimate_rows(estimate_attribute(counts), "r")[0]
        verdicts.append(row["verdict"])
        is_share_covered = row["best_share_low"] <= truth[0] <= row["best_share_high"]
        covered.append((is_share_covered, row["ratio_low"] <= ratio <= row["ratio_high"]))
    return verdicts, np.mean(covered, axis=0)


@pytest.mark.parametrize(("accuracy", "ratio"), [(0.65, 0.6), (0.65, 0.7), (0.9, 0.7), (0.97, 1.3)])
def test_used_intervals_cover_the_truth_and_changes_are_not_called_preserved(accuracy, ratio):
    verdicts, (share_coverage, ratio_coverage) = simulate_studies(accuracy, ratio, 80)
    assert share_coverage >= 0.9
    assert ratio_coverage >= 0.9
    assert verdicts.count("preserved") <= 4  # 5 %
    assert "amplified" not in verdicts or ratio > 1


def test_a_group_that_its_labels_lack_and_its_correction_has_disagrees_without_a_warning(monkeypatch, recwarn):
    zeros, ones = np.zeros(2), np.ones(2)
    ratios = Ratios(np.array([1.5, 0.8]), zeros, ones, other_ratio=np.array([0.0, 0.8]), p=ones)
    counts = gender_counts([90, 10], [5000, 5000], [5000, 5000], confusion=np.array([[4000, 1000], [1000, 4000]]))
    estimate = estimate_attribute(counts)
    monkeypatch.setitem(estimate.__dict__, "ratios", ratios)
    monkeypatch.setitem(estimate.__dict__, "verdicts", ["inconclusive"] * 2)
    assert [estimate.inconclusive_reason(group) for group in range(2)] == ["disagree", "few"]
    assert not recwarn.list


def estimate_genders(n, calibration, *, accuracy=0.8, ratio=0.85):
    """The estimate from exactly the expected labels of `n` samples, with so many calibration images."""
    matrix = np.array([[accuracy, 1 - accuracy], [1 - accuracy, accuracy]])
    reference, truth = np.array([0.4, 0.6]), np.array([0.4 * ratio, 1 - 0.4 * ratio])
    confusion = np.round(calibration * reference[:, None] * matrix).astype(int)
    return estimate_attribute(
        gender_counts(n * truth @ matrix, 10_000 * reference @ matrix, 10_000 * reference, confusion=confusion)
    )


def shifted(estimate):
    """The same estimate where the labeller's confidence has shifted."""
    return estimate_attribute(replace(estimate.counts, is_shifted=True))


def test_where_the_confidence_has_shifted_a_verdict_needs_both_estimates():
    estimate = estimate_genders(20_000, 20_000, ratio=0.5)
    assert (estimate.best_estimate, estimate.verdicts[0]) == ("corrected", "reduced")
    after = shifted(estimate)
    assert (after.best_estimate, after.verdicts[0]) == ("raw", "reduced")
    assert after.ratios.ratio[0] == pytest.approx(estimate.ratios.other_ratio[0])
    assert after.ratios.low[0] == pytest.approx(estimate.ratios.low[0])
    assert after.ratios.high[0] > after.ratios.ratio[0] > estimate.ratios.high[0]


def test_a_change_that_only_the_correction_makes_large_is_no_verdict_where_the_confidence_has_shifted():
    confusion = np.array([[2400, 600], [1400, 5600]])
    estimate = estimate_attribute(gender_counts([500, 500], [4800, 5200], [3000, 7000], confusion=confusion))
    assert estimate.verdicts[0] == "amplified"
    after = shifted(estimate)
    assert after.verdicts[0] == "inconclusive"
    assert after.ratios.low[0] == pytest.approx(estimate.raw_interval[0][0])
    preserved = estimate_attribute(gender_counts([4800, 5200], [4800, 5200], [3000, 7000], confusion=confusion))
    after = shifted(preserved)
    assert (after.verdicts[0], after.inconclusive_reason(0), after.n_needed(0)) == ("inconclusive", "disagree", None)


def test_the_shares_used_after_a_shift_have_intervals_that_include_both_estimates():
    confusion = np.array([[3000, 2000], [250, 4750]])
    after = shifted(estimate_attribute(gender_counts([510, 490], [5000, 5000], [5000, 5000], confusion=confusion)))
    row = estimate_rows(after, "r")[0]
    low, high = wilson(np.array([510.0]), 1000)
    assert row["best_share_low"] == pytest.approx(low[0])
    assert row["best_share_high"] == row["corrected_high"] > high[0]
    census = reference_rows(after, "r", ExternalShares("census", {"female": 0.5, "male": 0.5}))[0]
    assert (census["verdict"], census["ratio"]) == ("inconclusive", pytest.approx(1.02))
    assert census["ratio_low"] == pytest.approx(low[0] / 0.5)


def test_a_group_whose_calibration_images_are_all_unsure_is_not_corrected():
    confusion = np.array([[0, 0, 10], [0, 500, 50]])
    estimate = estimate_attribute(gender_counts([30, 300], [30, 300], [30, 300], confusion=confusion))
    assert estimate.correction_note == "no calibration images of female"


def test_the_number_of_samples_needed_is_enough():
    few = estimate_genders(400, 20_000)
    assert (few.verdicts[0], few.inconclusive_reason(0)) == ("inconclusive", "few")
    needed = few.n_needed(0)
    assert needed > 600
    assert estimate_genders(1.2 * needed, 20_000).verdicts[0] == "reduced"
    assert estimate_genders(0.8 * needed, 20_000).verdicts[0] == "inconclusive"


def test_where_calibration_limits_the_interval_no_number_of_samples_is_named():
    for n in (400, 4000, 1_000_000):
        limited = estimate_genders(n, 150)
        assert (limited.verdicts[0], limited.n_needed(0)) == ("inconclusive", None)
        assert limited.inconclusive_reason(0) == "calibration"


def test_needed_samples_are_no_few_more_than_there_are_however_narrow_the_estimate_is():
    """The interval is slightly too wide because the labeller was measured on few images: it lacks calibration."""
    for calibration in (300, 400, 500, 700, 1000, 2000):
        estimate = estimate_genders(1_000_000, calibration)
        if estimate.verdicts[0] == "inconclusive":
            assert estimate.n_needed(0) is None or estimate.n_needed(0) > 1_500_000, calibration
