"""Rates of groups at thresholds that all groups share; in bootstrap replicates the thresholds are set again."""

from dataclasses import dataclass

import numpy as np

from reports.estimation.detection.faces import EvaluatedFaces, Groups, starts_new_value


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold by the rate that it gives over all faces, as in the view `common_thresholds`."""

    rate: str  # fpr: the lowest threshold with at most this rate; tpr: the highest with at least this rate
    bound: float


POINTS = {
    "fpr_1": OperatingPoint("fpr", 0.01),
    "fpr_5": OperatingPoint("fpr", 0.05),
    "tpr_95": OperatingPoint("tpr", 0.95),
}


def replicate_cuts(faces: EvaluatedFaces) -> dict[str, np.ndarray]:
    """How many faces, ordered by falling logit, are called fake at every operating point, int64 [replicates] each."""
    is_fake, logits = faces.is_fake[faces.falling], faces.logits[faces.falling]
    is_new = starts_new_value(logits)
    starts = np.append(np.flatnonzero(is_new), len(logits))  # of equal logits
    tie = np.cumsum(is_new) - 1
    places = {"fpr": np.flatnonzero(~is_fake), "tpr": np.flatnonzero(is_fake)}
    cuts = {name: np.zeros(len(faces.weights), int) for name in POINTS}
    for number, weights in enumerate(faces.weights):
        ordered = weights[faces.falling]
        at_least = {rate: np.cumsum(ordered[place], dtype=np.int64) for rate, place in places.items()}
        for name, point in POINTS.items():
            counts, place = at_least[point.rate], places[point.rate]
            if not len(counts) or not counts[-1]:
                continue
            bound = point.bound * counts[-1]
            if point.rate == "fpr":  # all faces above the first real face that is one too many
                first = np.searchsorted(counts, bound, "right")
                cuts[name][number] = starts[tie[place[first]]] if first < len(place) else len(logits)
            else:
                cuts[name][number] = starts[tie[place[np.searchsorted(counts, bound, "left")]] + 1]
    return cuts


def group_rates(faces: EvaluatedFaces, groups: Groups, cuts: dict[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """TPR and FPR of each group, [groups, replicates] each, at every operating point.

    `cuts` are the numbers of faces, ordered by falling logit, that are called fake at each point, [replicates].
    """
    count = len(groups.names)
    codes = np.where(groups.numbers < 0, 2 * count, 2 * groups.numbers.astype(int) + faces.is_fake)[faces.falling]
    called = {name: np.empty((len(faces.weights), 2 * count)) for name in cuts}
    totals = np.empty((len(faces.weights), 2 * count))
    for number, weights in enumerate(faces.weights):
        ordered, start, sums = weights[faces.falling].astype(float), 0, np.zeros(2 * count + 1)
        for name in sorted(cuts, key=lambda name: cuts[name][number]):
            stop = cuts[name][number]
            sums += np.bincount(codes[start:stop], ordered[start:stop], minlength=2 * count + 1)
            called[name][number], start = sums[:-1], stop
        totals[number] = (sums + np.bincount(codes[start:], ordered[start:], minlength=2 * count + 1))[:-1]
    with np.errstate(invalid="ignore", divide="ignore"):
        rates = {name: counts / totals for name, counts in called.items()}
    return {name: {"tpr": rate[:, 1::2].T, "fpr": rate[:, 0::2].T} for name, rate in rates.items()}
