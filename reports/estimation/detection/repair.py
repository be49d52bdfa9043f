"""Thresholds by group, fitted on one half of the faces and evaluated on the other, and their cost in utility."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from reports.estimation.detection.faces import REPLICATES, EvaluatedFaces, Groups
from reports.estimation.detection.interval_columns import interval_columns
from reports.estimation.permutation_null import permutation_null

VARIANTS = ("none", "single", "equalized", "worst_group")
RATES = ("tpr", "fpr", "accuracy", "balanced_accuracy")
FAIRNESS = ("equalized_odds_difference", "worst_balanced_accuracy")
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Curve:
    """TPR and FPR of faces at each of their logits as the threshold, from the highest, and at infinity."""

    thresholds: np.ndarray  # float64 [logits + 1]
    tpr: np.ndarray
    fpr: np.ndarray

    @property
    def balanced_accuracy(self) -> np.ndarray:
        return (self.tpr + 1 - self.fpr) / 2

    def best(self) -> int:
        """The index of the threshold with the highest balanced accuracy."""
        return int(np.argmax(self.balanced_accuracy))

    def closest(self, *, tpr: float, fpr: float) -> int:
        """The index of the threshold at which the larger distance from these rates is smallest.

        Of several, it is the one with the highest balanced accuracy.
        """
        distance = np.maximum(np.abs(self.tpr - tpr), np.abs(self.fpr - fpr))
        return int(np.lexsort((-self.balanced_accuracy, distance))[0])


def roc_curve(logits: np.ndarray, is_fake: np.ndarray) -> Curve | None:
    """The curve of faces ordered by falling logit; None without real faces or without fakes."""
    if not 0 < is_fake.sum() < len(is_fake):
        return None
    last = np.append(logits[1:] != logits[:-1], True)  # of equal logits
    tp, fp = np.cumsum(is_fake)[last], np.cumsum(~is_fake)[last]
    return Curve(*(np.append(*ends) for ends in ((logits[last], np.inf), (tp / tp[-1], 0), (fp / fp[-1], 0))))


def fit_thresholds(
    logits: np.ndarray, is_fake: np.ndarray, *, numbers: np.ndarray, groups: int
) -> dict[str, np.ndarray] | None:
    """Thresholds of each group, float64 [groups], by variant, fitted to faces ordered by falling logit.

    - single: the threshold with the highest balanced accuracy over all faces, the same for all groups
    - equalized: brings each group's TPR and FPR as close as possible to those of all faces at the single threshold: the
      larger of both distances is minimised. (Minimising only the differences between groups would yield a detector
      that never detects a fake.)
    - worst_group: each group's threshold with the highest balanced accuracy, which maximises that of the worst group

    A group without real faces or fakes has the single threshold. None if all faces are real, or fake.
    """
    overall = roc_curve(logits, is_fake)
    if overall is None:
        return None
    best = overall.best()
    fitted = {variant: np.full(groups, overall.thresholds[best]) for variant in VARIANTS[1:]}
    for number in range(groups):
        curve = roc_curve(logits[numbers == number], is_fake[numbers == number])
        if curve:
            closest = curve.closest(tpr=overall.tpr[best], fpr=overall.fpr[best])
            fitted["equalized"][number] = curve.thresholds[closest]
            fitted["worst_group"][number] = curve.thresholds[curve.best()]
    return fitted


def split_halves(is_fake: np.ndarray, numbers: np.ndarray, *, shuffle: np.ndarray) -> np.ndarray:
    """The half of each face, 0 or 1, [N]: every other one by `shuffle` of the faces of each group and target."""
    strata = 2 * numbers.astype(int) + is_fake
    order = np.lexsort((shuffle, strata))
    first = np.flatnonzero(np.diff(strata[order], prepend=-3) != 0)
    sizes = np.diff(np.append(first, len(order)))
    half = np.empty(len(order), int)
    half[order] = (np.arange(len(order)) - np.repeat(first, sizes)) % 2
    return half


def repair(
    faces: EvaluatedFaces, groups: Groups, *, shuffle: np.ndarray, rng: np.random.Generator
) -> tuple[Rows, Rows]:
    """Rows of `repair` and of `repair_thresholds` of one attribute, without the names of detector and attribute.

    `shuffle` is a hash of each face's key, [N]. Faces of unknown group are excluded. The intervals take the fitted
    thresholds as given: they are not fitted again in the replicates.
    """
    order = faces.falling[groups.numbers[faces.falling] >= 0]
    logits, is_fake, numbers = faces.logits[order], faces.is_fake[order], groups.numbers[order]
    half = split_halves(is_fake, numbers, shuffle=shuffle[order])
    called = {"none": faces.called_fake[order], **{name: np.zeros(len(order), bool) for name in VARIANTS[1:]}}
    thresholds: Rows = []
    for name, fitted_on in (("first half", half == 0), ("second half", half == 1), ("all", half >= 0)):
        fitted = fit_thresholds(
            logits[fitted_on], is_fake[fitted_on], numbers=numbers[fitted_on], groups=len(groups.names)
        )
        if fitted is None:
            return [], []
        for variant, values in fitted.items():
            called[variant] = np.where(fitted_on, called[variant], logits >= values[numbers])
            thresholds += [
                {"group": group, "variant": variant, "fitted_on": name, "threshold": float(value)}
                for group, value in zip(groups.names, values, strict=True)
            ]
    return evaluate_decisions(called, is_fake, numbers=numbers, rng=rng), thresholds


def evaluate_decisions(
    called: Mapping[str, np.ndarray], is_fake: np.ndarray, *, numbers: np.ndarray, rng: np.random.Generator
) -> Rows:
    """Rows of `repair` from the decisions of each variant, bool [N] each."""
    # faces of the same group, target and decisions are counted together, and their number is resampled
    pattern = sum((decision.astype(int) << bit for bit, decision in enumerate(called.values())), np.zeros(1, int))
    code = ((2 * numbers.astype(int) + is_fake) << len(called)) + pattern
    cells, counts = np.unique(code, return_counts=True)
    draws = np.vstack([counts, rng.poisson(counts, (REPLICATES, len(counts)))]).astype(float)
    metrics = {
        variant: decision_metrics(draws, cells >> len(called), called=(cells >> bit & 1).astype(bool))
        for bit, variant in enumerate(called)
    }
    rows = []
    for variant, decision in called.items():
        null = permutation_null(rng, numbers, is_fake=is_fake, called_fake=decision, permutations=REPLICATES)
        for measure in (*RATES, *FAIRNESS):
            values = metrics[variant][measure]
            value = float(values[0])
            columns = interval_columns(
                value,
                values[1:],
                null=null[measure] if measure in FAIRNESS else None,
                equal=float(metrics[variant]["balanced_accuracy"][0]) if measure == "worst_balanced_accuracy" else 0.0,
                smaller_is_fairer=measure != "worst_balanced_accuracy",
            )
            change = values - metrics["none"][measure]
            difference = interval_columns(float(change[0]), change[1:])
            row = {"variant": variant, "measure": measure, **columns}
            if variant != "none":
                row |= {"change": difference["value"]}
                row |= {"change_low": difference["low"], "change_high": difference["high"]}
            rows.append(row)
    return rows


def decision_metrics(counts: np.ndarray, strata: np.ndarray, *, called: np.ndarray) -> dict[str, np.ndarray]:
    """Utility and fairness, [replicates] each, from counts of faces in cells, [replicates, cells].

    `strata` is twice the group, plus 1 for fakes; `called` is whether the cell's faces are called fake; [cells] each.
    """
    of_stratum = (strata[:, None] == np.arange(2 * (strata.max() // 2 + 1))).astype(float)
    totals, positives = counts @ of_stratum, (counts * called) @ of_stratum
    reals, fakes, fp, tp = totals[:, 0::2], totals[:, 1::2], positives[:, 0::2], positives[:, 1::2]
    has_both = (reals[0] > 0) & (fakes[0] > 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        tpr, fpr = tp[:, has_both] / fakes[:, has_both], fp[:, has_both] / reals[:, has_both]
    overall_tpr, overall_fpr = tp.sum(1) / fakes.sum(1), fp.sum(1) / reals.sum(1)
    gaps = [np.fmax.reduce(rate, 1) - np.fmin.reduce(rate, 1) for rate in (tpr, fpr)]
    return {
        "tpr": overall_tpr,
        "fpr": overall_fpr,
        "accuracy": (tp.sum(1) + reals.sum(1) - fp.sum(1)) / totals.sum(1),
        "balanced_accuracy": (overall_tpr + 1 - overall_fpr) / 2,
        "equalized_odds_difference": np.maximum(*gaps),
        "worst_balanced_accuracy": np.fmin.reduce((tpr + 1 - fpr) / 2, 1),
    }
