"""Fairness metrics of a detector that treats all groups equally: groups are permuted among real and among fakes."""

import numpy as np

from reports.estimation.bootstrap_metrics import fairness_gaps


def permutation_null(
    rng: np.random.Generator,
    groups: np.ndarray,
    *,
    is_fake: np.ndarray,
    called_fake: np.ndarray,
    permutations: int,
) -> dict[str, np.ndarray]:
    """Every fairness metric but the AUC gap, [permutations] each.

    `groups` are the faces' group numbers, -1 where unknown; all arrays are [N]. A permutation only changes how many of
    the faces called fake are in each group, which has a multivariate hypergeometric distribution.
    """
    count = groups.max() + 1
    is_known = groups >= 0
    sides = {"tpr": is_fake & is_known, "fpr": ~is_fake & is_known}
    tables = {}
    for rate, side in sides.items():
        sizes = np.bincount(groups[side], minlength=count)
        tables[rate] = (sizes, permuted_counts(rng, sizes, total=int((side & called_fake).sum()), count=permutations))
    has_both = (tables["tpr"][0] > 0) & (tables["fpr"][0] > 0)
    (fakes, tp), (reals, fp) = ((sizes[has_both, None], hits[has_both]) for sizes, hits in tables.values())
    metrics = {
        "tpr": tp / fakes,
        "fpr": fp / reals,
        "positive_rate": (tp + fp) / (fakes + reals),
        "accuracy": (tp + reals - fp) / (fakes + reals),
    }
    overall = {
        rate: np.full(permutations, (side & called_fake).sum() / max(side.sum(), 1)) for rate, side in sides.items()
    }
    return fairness_gaps(metrics, overall)


def permuted_counts(rng: np.random.Generator, sizes: np.ndarray, *, total: int, count: int) -> np.ndarray:
    """How many of `total` faces are in each group of `sizes` [groups], when groups are permuted: [groups, count]."""
    return rng.multivariate_hypergeometric(sizes, total, count, method="marginals").T


def permutation_null_auc_gap(
    rng: np.random.Generator, groups: np.ndarray, *, is_fake: np.ndarray, logits: np.ndarray, permutations: int
) -> np.ndarray:
    """The gap of the groups' AUCs, [permutations]."""
    sides = [np.flatnonzero(side & (groups >= 0)) for side in (is_fake, ~is_fake)]
    gaps = np.empty(permutations)
    for number in range(permutations):
        permuted = np.full(len(groups), -1)
        for side in sides:
            permuted[side] = rng.permutation(groups[side])
        areas = [auc(is_fake[permuted == g], logits[permuted == g]) for g in range(groups.max() + 1)]
        gaps[number] = np.fmax.reduce(areas) - np.fmin.reduce(areas)
    return gaps


def auc(is_fake: np.ndarray, logits: np.ndarray) -> float:
    """The probability that a fake's logit is above a real face's, ties counting half; NaN without either."""
    fakes, reals = np.sort(logits[is_fake]), np.sort(logits[~is_fake])
    if not len(fakes) or not len(reals):
        return np.nan
    below = np.searchsorted(reals, fakes, "left") + np.searchsorted(reals, fakes, "right")
    return float(below.sum() / (2 * len(fakes) * len(reals)))
