"""Fairness metrics of a detector that treats all groups equally: groups are permuted among real and among fakes."""

from collections.abc import Sequence

import numpy as np

from reports.estimation.bootstrap_metrics import corrected_root, fairness_gaps
from reports.estimation.detection.faces import CALIBRATION_BINS, EvaluatedFaces, Groups, ScoreCells, score_cells


def permutation_null(
    rng: np.random.Generator,
    groups: np.ndarray,
    *,
    is_fake: np.ndarray,
    called_fake: np.ndarray,
    permutations: int,
) -> dict[str, np.ndarray]:
    """Every fairness metric but those of the scores, `worst_tpr` and `worst_balanced_accuracy`, [permutations] each.

    `groups` are the faces' group numbers, -1 where unknown; all arrays are [N]. A permutation only changes how many of
    the faces called fake are in each group, which has a multivariate hypergeometric distribution.
    """
    count = groups.max() + 1
    is_known = groups >= 0
    sides = {"tpr": is_fake & is_known, "fpr": ~is_fake & is_known}
    tables = {}
    for rate, side in sides.items():
        sizes = np.bincount(groups[side], minlength=count)
        positives = permuted_counts(rng, sizes, total=int((side & called_fake).sum()), count=permutations)
        tables[rate] = (sizes, positives)
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
    return fairness_gaps(metrics, overall) | {
        "worst_tpr": metrics["tpr"].min(0),
        "worst_balanced_accuracy": ((metrics["tpr"] + 1 - metrics["fpr"]) / 2).min(0),
    }


def permuted_counts(rng: np.random.Generator, sizes: np.ndarray, *, total: int, count: int) -> np.ndarray:
    """How many of `total` faces are in each group of `sizes` [groups], when groups are permuted: [groups, count]."""
    return rng.multivariate_hypergeometric(sizes, total, count, method="marginals").T


def score_null(
    rng: np.random.Generator, faces: EvaluatedFaces, attributes: Sequence[str], *, permutations: int
) -> dict[str, dict[str, np.ndarray]]:
    """The gap of the groups' AUCs and their calibration errors, [permutations] each, by attribute and metric.

    The faces are permuted once for all attributes, and their scores are in cells as those of a single group.
    """
    cells = score_cells(faces, faces.everyone)
    sides = [np.flatnonzero(faces.is_fake), np.flatnonzero(~faces.is_fake)]
    permuted = np.empty(len(faces.is_fake), int)
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in attributes}
    for _ in range(permutations):
        for side in sides:
            permuted[side] = rng.permutation(side)
        for name in attributes:
            rows[name].append(score_gaps(cells, faces.groups[name], permuted))
    return {
        name: {measure: np.array([row[measure] for row in gaps]) for measure in gaps[0]} for name, gaps in rows.items()
    }


def score_gaps(cells: ScoreCells, groups: Groups, permuted: np.ndarray) -> dict[str, float]:
    """The fairness metrics of the scores if face i has the group of face `permuted[i]`."""
    count, size = len(groups.names), 2 * len(cells.bins)
    numbers = groups.numbers[permuted].astype(int)
    codes = np.where(numbers < 0, count * size, numbers * size + cells.codes)
    counts = np.bincount(codes, minlength=count * size + 1)[:-1].reshape(count, -1, 2).astype(float)
    counts = counts[(counts.sum(1) > 0).all(1)]  # groups with real faces and fakes
    new_fp, new_tp = counts[..., 0], counts[..., 1]
    tp = np.cumsum(new_tp, 1)
    areas = (new_fp * (tp - new_tp / 2)).sum(1) / (new_fp.sum(1) * tp[:, -1])
    in_bin = cells.bins[:, None] == np.arange(CALIBRATION_BINS)
    probabilities = (counts.sum(2) * cells.probabilities) @ in_bin
    errors = corrected_root(counts.sum(2) @ in_bin, fakes=new_tp @ in_bin, probabilities=probabilities)
    return {
        "auc_gap": float(np.ptp(areas)),
        "largest_calibration_error": float(np.fmax.reduce(errors)),
        "calibration_gap": float(np.fmax.reduce(errors) - np.fmin.reduce(errors)),
    }
