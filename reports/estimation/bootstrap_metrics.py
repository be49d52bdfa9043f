"""Metrics of detectors on bootstrap replicates of the faces: integer weights, [replicates, N]."""

from statistics import NormalDist

import numpy as np

from reports.estimation.intervals import Z

MAX_BLOCK_WEIGHTS = 1e7  # weights that are summed at a time


def bootstrap_rates(
    weights: np.ndarray, is_fake: np.ndarray, *, called_fake: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """TPR and FPR, [replicates] each, of weighted faces; NaN where there are no fakes, or no real faces."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return (
            weights[:, is_fake & called_fake].sum(1) / weights[:, is_fake].sum(1),
            weights[:, ~is_fake & called_fake].sum(1) / weights[:, ~is_fake].sum(1),
        )


def bootstrap_metrics(
    weights: np.ndarray, is_fake: np.ndarray, *, called_fake: np.ndarray, tie_ends: np.ndarray
) -> dict[str, np.ndarray]:
    """Every utility metric, [replicates] each, of faces ordered by falling logit.

    `tie_ends` are the indices of the last face of each logit.
    """
    block = max(int(MAX_BLOCK_WEIGHTS / max(len(is_fake), 1)), 1)
    if len(weights) > block:
        parts = [
            bootstrap_metrics(weights[i : i + block], is_fake, called_fake=called_fake, tie_ends=tie_ends)
            for i in range(0, len(weights), block)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    tp, fp = (np.cumsum(weights * side, 1, dtype=float)[:, tie_ends] for side in (is_fake, ~is_fake))
    fakes, reals = tp[:, -1], fp[:, -1]
    new_tp, new_fp = np.diff(tp, prepend=0), np.diff(fp, prepend=0)
    tpr, fpr = bootstrap_rates(weights, is_fake, called_fake=called_fake)
    with np.errstate(invalid="ignore", divide="ignore"):
        auc = (new_fp * (tp - new_tp / 2)).sum(1) / (fakes * reals)
        precision = np.where(tp + fp > 0, tp / np.maximum(tp + fp, 1), 0)
        fpr_curve = fp / reals[:, None]
        corner = np.argmin(np.abs(1 - tp / fakes[:, None] - fpr_curve), 1)
        has_curve = len(tie_ends) > 1
        eer = fpr_curve[np.arange(len(fpr_curve)), corner] if has_curve else np.full(len(fpr_curve), np.nan)
        return {
            "tpr": tpr,
            "fpr": fpr,
            "auc": auc,
            "average_precision": (new_tp * precision).sum(1) / fakes,
            "eer": eer,
            "accuracy": (tpr * fakes + (1 - fpr) * reals) / (fakes + reals),
            "positive_rate": (tpr * fakes + fpr * reals) / (fakes + reals),
        }


def fairness_gaps(groups: dict[str, np.ndarray], overall: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every fairness metric, [replicates] each.

    From the metrics of the groups, [groups, replicates] each, and the TPR and FPR of all faces, [replicates] each.
    """

    def gap(values: np.ndarray) -> np.ndarray:
        return np.fmax.reduce(values) - np.fmin.reduce(values)  # of the groups where it is defined

    tpr_differences, fpr_differences = (np.nansum(np.abs(groups[m] - overall[m]), 0) for m in ("tpr", "fpr"))
    fpr_gap = gap(groups["fpr"])
    gaps = {
        "f_dp": gap(groups["positive_rate"]),
        "f_oae": gap(groups["accuracy"]),
        "f_efpr": fpr_differences,
        "fpr_gap": fpr_gap,
        "f_eo": tpr_differences + fpr_differences,
        "f_meo": np.maximum(gap(groups["tpr"]), fpr_gap),
        "error_rate_gap": gap(1 - (groups["tpr"] + 1 - groups["fpr"]) / 2),
    }
    return gaps | ({"auc_gap": gap(groups["auc"])} if "auc" in groups else {})


def bias_corrected_interval(value: float, replicates: np.ndarray) -> tuple[float, float]:
    """Bias-corrected 95 % percentiles of bootstrap replicates: Efron, Can. J. Statist. 9 (1981) 139-172."""
    normal = NormalDist()
    below = ((replicates < value).sum() + (replicates == value).sum() / 2 + 0.5) / (len(replicates) + 1)
    shift = 2 * normal.inv_cdf(float(np.clip(below, 1e-4, 1 - 1e-4)))
    low, high = (float(np.quantile(replicates, normal.cdf(shift + z))) for z in (-Z, Z))
    return min(low, value), max(high, value)
