"""Metrics of detectors on replicates of the faces, from counts of faces in cells of equal or similar logits."""

from statistics import NormalDist

import numpy as np

from reports.estimation.detection.faces import CALIBRATION_BINS, EvaluatedFaces, ScoreCells, starts_new_value
from reports.estimation.intervals import Z


def utility_metrics(counts: np.ndarray, cells: ScoreCells, *, group: int) -> dict[str, np.ndarray]:
    """Every utility metric of a group, [replicates] each; NaN where it is undefined.

    `counts` are the real faces and fakes in each of the group's cells, [replicates, cells, 2].
    """
    own, is_merged = cells.group(group), bool(cells.is_merged[group])
    new_fp, new_tp = counts[..., 0].astype(float), counts[..., 1].astype(float)
    fp, tp = np.cumsum(new_fp, 1), np.cumsum(new_tp, 1)
    reals, fakes = fp[:, -1], tp[:, -1]
    called = cells.called_fake[own]
    with np.errstate(invalid="ignore", divide="ignore"):
        tpr, fpr = new_tp[:, called].sum(1) / fakes, new_fp[:, called].sum(1) / reals
        # within a cell of several logits, the precision is that in its middle
        half = is_merged / 2
        positives = np.maximum(tp + fp - half * (new_tp + new_fp), 1e-9)
        return {
            "tpr": tpr,
            "fpr": fpr,
            "auc": (new_fp * (tp - new_tp / 2)).sum(1) / (fakes * reals),
            "average_precision": (new_tp * (tp - half * new_tp) / positives).sum(1) / fakes,
            "eer": equal_error_rate(tp / fakes[:, None], fp / reals[:, None], is_merged=is_merged),
            "accuracy": (tpr * fakes + (1 - fpr) * reals) / (fakes + reals),
            "positive_rate": (tpr * fakes + fpr * reals) / (fakes + reals),
            "calibration_error": calibration_error(counts, cells, group=group),
        }


def overall_auc(faces: EvaluatedFaces) -> np.ndarray:
    """The AUC of all faces, [replicates], from every logit.

    It depends on the order of the faces alone, so that two detectors with the same order have the same AUC. That of
    merged cells differs by their calibration bins, which is enough to make one dominate the other.
    """
    is_fake = faces.is_fake[faces.falling]
    starts = np.flatnonzero(starts_new_value(faces.logits[faces.falling]))
    aucs = np.empty(len(faces.weights))
    for number, weights in enumerate(faces.weights):
        ordered = weights[faces.falling].astype(np.int64)
        new_fp, new_tp = (np.add.reduceat(np.where(side, ordered, 0), starts) for side in (~is_fake, is_fake))
        tp = np.cumsum(new_tp)
        with np.errstate(invalid="ignore", divide="ignore"):
            aucs[number] = (new_fp * (2 * tp - new_tp)).sum() / (2 * new_fp.sum() * tp[-1])
    return aucs


def equal_error_rate(tpr: np.ndarray, fpr: np.ndarray, *, is_merged: bool) -> np.ndarray:
    """The FPR where FPR and FNR are closest, [replicates], along curves [replicates, cells].

    If cells were merged, it is interpolated between the two cells where the FPR becomes larger than the FNR.
    """
    if tpr.shape[1] == 1:
        return np.full(len(tpr), np.nan)
    rows, difference = np.arange(len(tpr)), fpr - (1 - tpr)
    if not is_merged:
        corner = np.argmin(np.abs(difference), 1)
        return np.where(np.isfinite(difference[:, -1]), fpr[rows, corner], np.nan)
    after = np.argmax(difference >= 0, 1)
    before = np.maximum(after - 1, 0)
    start = np.where(after > 0, difference[rows, before], -1.0)  # before the first cell nothing is called fake
    low, high = np.where(after > 0, fpr[rows, before], 0.0), fpr[rows, after]
    return low + (high - low) * start / (start - difference[rows, after])


def calibration_error(counts: np.ndarray, cells: ScoreCells, *, group: int) -> np.ndarray:
    """The root mean squared calibration error of a group without the bias of small bins, [replicates].

    A replicate varies around the faces as these vary around the population. The view `calibration` subtracts only the
    second of these variances, because it has no replicates; here both are subtracted.
    """
    own = cells.group(group)
    in_bin = cells.bins[own][:, None] == np.arange(CALIBRATION_BINS)  # [cells, bins]
    faces, fakes = counts.sum(2) @ in_bin, counts[..., 1] @ in_bin
    probabilities = (counts.sum(2) * cells.probabilities[own]) @ in_bin
    return corrected_root(faces, fakes=fakes, probabilities=probabilities, variances=2)


def corrected_root(
    faces: np.ndarray, *, fakes: np.ndarray, probabilities: np.ndarray, variances: int = 1
) -> np.ndarray:
    """The root mean squared calibration error over bins, the last axis, from which chance is removed.

    `variances` times the variance by chance is subtracted from the mean squared error. `probabilities` are the sums of
    the probabilities in each bin. NaN if no bin has two faces. Ferro and Fricker, Q. J. R. Meteorol. Soc. 138 (2012)
    1954-1960.
    """
    is_used = faces > 1
    with np.errstate(invalid="ignore", divide="ignore"):
        share = fakes / faces
        squared = (probabilities / faces - share) ** 2 - variances * share * (1 - share) / (faces - 1)
        mean = np.where(is_used, faces * squared, 0).sum(-1) / np.where(is_used, faces, 0).sum(-1)
    return np.sqrt(np.maximum(mean, 0))  # NaN stays NaN


def fairness_gaps(groups: dict[str, np.ndarray], overall: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every fairness metric, [replicates] each, that the metrics of the groups allow.

    From the metrics of the groups, [groups, replicates] each, and the TPR and FPR of all faces, [replicates] each.
    """

    def gap(values: np.ndarray) -> np.ndarray:
        return np.fmax.reduce(values) - np.fmin.reduce(values)  # of the groups where it is defined

    tpr_differences, fpr_differences = (np.nansum(np.abs(groups[m] - overall[m]), 0) for m in ("tpr", "fpr"))
    tpr_gap, fpr_gap = gap(groups["tpr"]), gap(groups["fpr"])
    gaps = {
        "f_dp": gap(groups["positive_rate"]),
        "f_oae": gap(groups["accuracy"]),
        "f_efpr": fpr_differences,
        "fpr_gap": fpr_gap,
        "f_eo": tpr_differences + fpr_differences,
        "f_meo": np.maximum(tpr_gap, fpr_gap),
        "equalized_odds_difference": np.maximum(tpr_gap, fpr_gap),
        "equalized_odds_ratio": equalized_odds_ratio(groups["tpr"], groups["fpr"]),
        "error_rate_gap": gap(1 - (groups["tpr"] + 1 - groups["fpr"]) / 2),
    }
    if "auc" in groups:
        gaps["auc_gap"] = gap(groups["auc"])
    if "calibration_error" in groups:
        gaps["largest_calibration_error"] = np.fmax.reduce(groups["calibration_error"])
        gaps["calibration_gap"] = gap(groups["calibration_error"])
    return gaps


def equalized_odds_ratio(tpr: np.ndarray, fpr: np.ndarray) -> np.ndarray:
    """fairlearn's equalized_odds_ratio of the groups' rates [groups, replicates]: [replicates].

    The lowest rate over the highest, of TPR or of FPR, whichever is smaller. A ratio of FPRs that are all 0 is
    ignored; NaN if all TPRs are 0.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        tpr_ratio, fpr_ratio = (np.fmin.reduce(rate) / np.fmax.reduce(rate) for rate in (tpr, fpr))
    return np.where(np.isnan(tpr_ratio), np.nan, np.fmin(tpr_ratio, fpr_ratio))


def bias_corrected_interval(value: float, replicates: np.ndarray) -> tuple[float, float]:
    """Bias-corrected 95 % percentiles of bootstrap replicates: Efron, Can. J. Statist. 9 (1981) 139-172."""
    normal = NormalDist()
    below = ((replicates < value).sum() + (replicates == value).sum() / 2 + 0.5) / (len(replicates) + 1)
    shift = 2 * normal.inv_cdf(float(np.clip(below, 1e-4, 1 - 1e-4)))
    low, high = (float(np.quantile(replicates, normal.cdf(shift + z))) for z in (-Z, Z))
    return min(low, value), max(high, value)
