"""What an audit is expected to show before it is made, and after its first labels."""

import numpy as np
import pytest

from reports.estimation.audit.forecast import expected_width, labels_needed
from reports.estimation.audit.looks import widen_audit, width_factor
from reports.estimation.audit.shares import estimate_audit
from reports.estimation.intervals import Z
from tests.reports.estimation.audit.faces import audited_faces

LIMITS = (0.8, 1.25)
CLASSES, FACES, LABELS = 3, 4000, 200


def simulated_faces(rng, accuracy):
    """The classes and labels of FACES faces, and the confusion of photographs."""
    truth, photographs = (rng.choice(CLASSES, size, p=[0.5, 0.3, 0.2]) for size in (FACES, 2000))
    labels, labelled = (
        np.where(rng.random(len(classes)) < accuracy, classes, (classes + rng.integers(1, CLASSES, len(classes))) % 3)
        for classes in (truth, photographs)
    )
    confusion = np.zeros((CLASSES, CLASSES), int)
    np.add.at(confusion, (photographs, labelled), 1)
    return truth, labels, confusion


@pytest.mark.parametrize("design", ["uniform", "stratified"])
@pytest.mark.parametrize("accuracy", [0.6, 0.95])
def test_the_expected_width_is_that_of_the_intervals(design, accuracy):
    rng = np.random.default_rng(0)
    expected, widths = [], []
    for number in range(6):
        truth, labels, confusion = simulated_faces(rng, accuracy)
        strata = labels if design == "stratified" else np.zeros(FACES, int)
        probability = np.full(FACES, LABELS / FACES)
        chosen = np.concatenate(
            [rng.choice(faces, round(len(faces) * LABELS / FACES), replace=False) for faces in groups(strata)]
        )
        faces = audited_faces(
            truth[chosen], labels[chosen], counts=np.bincount(labels, minlength=4), strata=strata[chosen]
        )
        widths.append(estimate_audit(faces, seed=number, replicates=300).powered.width())
        expected.append(expected_width(labels, strata, classes=CLASSES, probability=probability, confusion=confusion))
    assert np.mean(expected, 0) == pytest.approx(np.mean(widths, 0), rel=0.16)


def groups(strata):
    return [np.flatnonzero(strata == stratum) for stratum in np.unique(strata)]


def test_without_photographs_the_width_is_that_of_human_labels_alone():
    labels, nothing = np.repeat([0, 1], FACES // 2), np.zeros(FACES, int)
    probability = np.full(FACES, LABELS / FACES)
    width = expected_width(labels, nothing, classes=2, probability=probability)
    assert width == pytest.approx([2 * Z * np.sqrt(0.25 / LABELS)] * 2, rel=0.02)
    confusion = np.array([[900, 100, 0], [100, 900, 0]])
    helped = expected_width(labels, nothing, classes=2, probability=probability, confusion=confusion)
    assert (helped < 0.75 * width).all()


def test_a_plan_without_a_face_of_a_class_has_the_width_of_an_unseen_class():
    labels, strata, probability = np.zeros(2000, int), np.zeros(2000, int), np.full(2000, 0.05)
    confusion = np.array([[1000, 0, 0], [0, 1000, 0]])
    width = expected_width(labels, strata, classes=2, probability=probability, confusion=confusion)
    faces = audited_faces(np.zeros(100, int), np.zeros(100, int), counts=[2000, 0, 0])
    assert width == pytest.approx(estimate_audit(faces, seed=0).powered.width(), rel=0.15)


def test_a_class_that_no_face_is_labelled_as_has_a_width():
    labels, probability = np.array([0] * 990 + [2] * 10), np.full(1000, 0.1)
    width = expected_width(labels, np.zeros(1000, int), classes=2, probability=probability)
    assert (width > 0.02).all()


def needed(ratio, *, label_variance, other_variance=1e-4, faces=20_000, labels=200):
    draws = ratio * np.exp(np.sqrt(label_variance) * np.random.default_rng(0).standard_normal(1000))
    return labels_needed(
        draws,
        ratio=ratio,
        label_variance=label_variance,
        other_variance=other_variance,
        sizes=(labels, faces),
        limits=LIMITS,
    )


def test_clear_changes_need_few_more_labels_and_small_ones_many():
    clear, small = needed(1.6, label_variance=0.04), needed(1.15, label_variance=0.04)
    assert 200 < clear < 1000
    assert small > 2 * clear


def test_no_number_of_labels_settles_what_samples_leave_open():
    assert needed(1.1, label_variance=0.04, other_variance=0.04) is None
    assert needed(1.1, label_variance=0.04, faces=210) is None


def test_the_number_of_labels_settles_most_verdicts():
    """Simulated audits of the group, with the number of labels that one of 200 labels says."""
    rng, settled = np.random.default_rng(1), []
    for truth in np.exp(0.2 + 0.1 * rng.standard_normal(200)):
        first = truth * np.exp(0.2 * rng.standard_normal())
        if not (number := needed(first, label_variance=0.04, faces=10**6)):
            continue
        variance = 0.04 * 200 / number
        new = np.log(truth) + np.sqrt(0.04 * 200 / (number - 200)) * rng.standard_normal()
        estimate = (200 * np.log(first) + (number - 200) * new) / number
        half = Z * width_factor(number, planned=200) * np.sqrt(variance + 1e-4)
        low, high = np.exp([estimate - half, estimate + half])
        settled.append(low > 1 or high < 1 or (low >= LIMITS[0] and high <= LIMITS[1]))
    assert len(settled) > 150
    assert np.mean(settled) > 0.7


def test_intervals_of_a_sequence_hold_however_often_people_look():
    answers = np.random.default_rng(2).random((600, 2000)) < 0.3
    looks = np.arange(100, 2001, 50)
    shares = answers.cumsum(1)[:, looks - 1] / looks
    errors = np.abs(shares - 0.3) / np.sqrt(shares * (1 - shares) / looks)
    factors = np.array([width_factor(n, planned=100) for n in looks])
    assert (errors > Z).any(1).mean() > 0.15
    assert (errors > Z * factors).any(1).mean() < 0.05
    assert 1.5 < factors.min() < factors.max() < 1.8


def test_an_extended_audit_has_wider_intervals_around_the_same_shares():
    faces = audited_faces([0, 1] * 100, [0, 1] * 100, counts=[1000, 1000, 0])
    once = estimate_audit(faces, seed=0)
    twice = widen_audit(once, planned=100)
    factor = width_factor(200, planned=100)
    assert twice.human.shares == pytest.approx(once.human.shares)
    assert twice.human.width() == pytest.approx(factor * once.human.width())
    assert (twice.powered.width() > once.powered.width()).all()
