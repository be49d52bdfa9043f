"""Thresholds by group, fitted on one half of the faces and evaluated on the other, and their cost in utility."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from reports.estimation.detection.faces import REPLICATES, EvaluatedFaces, Groups, score_cells
from reports.estimation.detection.interval_columns import interval_columns
from reports.estimation.permutation_null import permutation_null

VARIANTS = ("none", "single", "equalized", "worst_group")
RATES = ("tpr", "fpr", "accuracy", "balanced_accuracy")
FAIRNESS = ("equalized_odds_difference", "worst_balanced_accuracy")
TIE = 1e-9  # distances of rates that differ by less are equal
MAX_COUNTS = 4_000_000  # of faces in cells, of as many replicates as are evaluated together
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Curve:
    """TPR and FPR of faces at an infinite threshold, and at each of their logits as the threshold, from the highest."""

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
        return int(np.argmin(distance - TIE * self.balanced_accuracy))


def roc_curve(logits: np.ndarray, is_fake: np.ndarray) -> Curve | None:
    """The curve of faces ordered by falling logit; None without real faces or without fakes."""
    if not 0 < is_fake.sum() < len(is_fake):
        return None
    last = np.append(logits[1:] != logits[:-1], True)  # of equal logits
    tp, fp = np.cumsum(is_fake)[last], np.cumsum(~is_fake)[last]
    return Curve(*(np.append(*ends) for ends in ((np.inf, logits[last]), (0, tp / tp[-1]), (0, fp / fp[-1]))))


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

    `shuffle` is a hash of each face's key, [N]. Faces of unknown group are excluded. In the replicates that the
    intervals follow from, thresholds are fitted again.
    """
    half = split_halves(faces.is_fake, groups.numbers, shuffle=shuffle)
    order = faces.falling[groups.numbers[faces.falling] >= 0]
    logits, is_fake, numbers, halves = (
        of_face[order] for of_face in (faces.logits, faces.is_fake, groups.numbers, half)
    )
    called = {"none": faces.called_fake[order], **{name: np.zeros(len(order), bool) for name in VARIANTS[1:]}}
    thresholds: Rows = []
    for name, fitted_on in (("first half", halves == 0), ("second half", halves == 1), ("all", halves >= 0)):
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
    replicates = refitted_metrics(faces, groups, half)
    return evaluate_decisions(called, is_fake, numbers=numbers, replicates=replicates, rng=rng), thresholds


def refitted_metrics(faces: EvaluatedFaces, groups: Groups, half: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    """Utility and fairness, [replicates] each, by variant, with thresholds that are fitted in each replicate.

    `half` is that of each face, [N]. Thresholds are the lower ends of cells of similar logits.
    """
    cells = score_cells(faces, faces.everyone)
    sizes = (2, len(groups.names), 2, len(cells.bins))  # half, group, target, cell
    total, numbers = math.prod(sizes), groups.numbers.astype(int)
    codes = ((half * sizes[1] + numbers) * 2 + faces.is_fake) * sizes[3] + cells.codes // 2
    codes[numbers < 0] = total
    sums: dict[str, list[np.ndarray]] = {variant: [] for variant in VARIANTS}
    per_chunk = max(MAX_COUNTS // total, 1)
    for weights in np.split(faces.weights, range(per_chunk, len(faces.weights), per_chunk)):
        counts = np.stack([np.bincount(codes, one, minlength=total + 1)[:-1].reshape(sizes) for one in weights])
        called = {"none": counts[..., cells.called_fake].sum((1, -1))}
        # at or above each threshold; the first one is infinite
        above = np.concatenate([np.zeros((*counts.shape[:-1], 1)), np.cumsum(counts, -1)], -1)
        for fitted_on, evaluated_on in ((0, 1), (1, 0)):
            lacks_target = (above[:, fitted_on, ..., -1].sum(1) == 0).any(-1)
            for variant, places in fit_places(above[:, fitted_on]).items():
                hits = np.take_along_axis(above[:, evaluated_on], places[:, :, None, None], -1)[..., 0]
                hits[lacks_target] = np.nan
                called[variant] = called.get(variant, 0) + hits
        totals = counts.sum((1, -1))
        for variant, hits in called.items():
            sums[variant].append(np.stack([hits, totals], -1))
    # a group is compared if it has both targets among all faces
    observed = np.bincount(codes, minlength=total + 1)[:-1].reshape(sizes)
    is_compared = (observed.sum((0, -1)) > 0).all(-1)
    return {variant: decision_metrics(np.concatenate(many), is_compared) for variant, many in sums.items()}


def fit_places(above: np.ndarray) -> dict[str, np.ndarray]:
    """The place of each group's threshold, int64 [replicates, groups], by variant, as in `fit_thresholds`.

    `above` are the real faces and fakes at or above each threshold, [replicates, groups, 2, thresholds], from
    the highest threshold to the lowest.
    """

    def curves(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with np.errstate(invalid="ignore", divide="ignore"):
            rates = counts / counts[..., -1:]
        return rates, (rates[..., 1, :] + 1 - rates[..., 0, :]) / 2

    overall, balanced = curves(above.sum(1))
    best = np.argmax(balanced, -1)
    target = np.take_along_axis(overall, best[:, None, None], -1)
    rates, balanced_of_group = curves(above)
    distance = np.abs(rates - target[:, None]).max(-2) - TIE * balanced_of_group
    has_both = (above[..., -1] > 0).all(-1)
    places = {"equalized": np.argmin(distance, -1), "worst_group": np.argmax(balanced_of_group, -1)}
    single = np.broadcast_to(best[:, None], has_both.shape)
    return {"single": single} | {variant: np.where(has_both, own, single) for variant, own in places.items()}


def evaluate_decisions(
    called: Mapping[str, np.ndarray],
    is_fake: np.ndarray,
    *,
    numbers: np.ndarray,
    replicates: Mapping[str, Mapping[str, np.ndarray]],
    rng: np.random.Generator,
) -> Rows:
    """Rows of `repair` from the decisions of each variant, bool [N] each, and its metrics in replicates."""
    strata = 2 * numbers.astype(int) + is_fake
    totals = np.bincount(strata, minlength=2 * (numbers.max() + 1)).reshape(1, -1, 2)
    metrics = {}
    for variant, decision in called.items():
        hits = np.bincount(strata[decision], minlength=totals.size).reshape(totals.shape)
        metrics[variant] = decision_metrics(np.stack([hits, totals], -1), (totals[0] > 0).all(-1))
    rows = []
    for variant, decision in called.items():
        null = permutation_null(rng, numbers, is_fake=is_fake, called_fake=decision, permutations=REPLICATES)
        for measure in (*RATES, *FAIRNESS):
            value, many = float(metrics[variant][measure][0]), replicates[variant][measure]
            columns = interval_columns(
                value,
                many,
                null=null[measure] if measure in FAIRNESS else None,
                equal=float(metrics[variant]["balanced_accuracy"][0]) if measure == "worst_balanced_accuracy" else 0.0,
                smaller_is_fairer=measure != "worst_balanced_accuracy",
            )
            row = {"variant": variant, "measure": measure, **columns}
            if variant != "none":
                change = value - float(metrics["none"][measure][0])
                difference = interval_columns(change, many - replicates["none"][measure])
                row |= {"change": change, "change_low": difference["low"], "change_high": difference["high"]}
            rows.append(row)
    return rows


def decision_metrics(counts: np.ndarray, is_compared: np.ndarray) -> dict[str, np.ndarray]:
    """Utility and fairness, [replicates] each, from counts of each group's real faces and fakes.

    `counts` are those called fake and all of them, [replicates, groups, 2 targets, 2]; fairness is measured over the
    groups `is_compared`, bool [groups].
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        rates = (counts[..., 0] / counts[..., 1])[:, is_compared]
        overall = counts[..., 0].sum(1) / counts[..., 1].sum(1)
    right = counts[..., 1, 0] + counts[..., 0, 1] - counts[..., 0, 0]
    return {
        "tpr": overall[:, 1],
        "fpr": overall[:, 0],
        "accuracy": right.sum(1) / counts[..., 1].sum((1, 2)),
        "balanced_accuracy": (overall[:, 1] + 1 - overall[:, 0]) / 2,
        "equalized_odds_difference": (np.fmax.reduce(rates, 1) - np.fmin.reduce(rates, 1)).max(-1),
        "worst_balanced_accuracy": np.fmin.reduce((rates[..., 1] + 1 - rates[..., 0]) / 2, 1),
    }
