"""The gap between the groups' TPRs on the fakes that were held out of a detector's training."""

import numpy as np

from reports.estimation.detection.faces import SEED, EvaluatedFaces
from reports.estimation.detection.interval_columns import interval_columns
from reports.estimation.detection.metric_rows import Rows
from reports.estimation.permutation_null import permuted_counts

HELD_OUT_GAP = "held_out_tpr_gap"


def held_out_rows(faces: EvaluatedFaces, is_held_out: np.ndarray) -> Rows:
    """Rows of `detection_metrics`: the range of TPR over each attribute's groups, on the fakes `is_held_out`, bool [N].

    The floor is the 95th percentile of the range when groups are permuted among these fakes.
    """
    rng, rows = np.random.default_rng(SEED), []
    for attribute, groups in faces.groups.items():
        numbers = np.where(is_held_out, groups.numbers, -1)
        is_known = numbers >= 0
        sizes = np.bincount(numbers[is_known], minlength=len(groups.names))
        present = np.flatnonzero(sizes)
        if len(present) < 2:
            continue
        found = is_known & faces.called_fake
        hits, counts = (
            np.stack([faces.weights[:, side & (numbers == group)].sum(1) for group in present])
            for side in (found, is_known)
        )
        with np.errstate(invalid="ignore", divide="ignore"):
            replicates = np.ptp(hits / counts, 0)  # NaN where a group has no face in a replicate
        rates = np.bincount(numbers[found], minlength=len(groups.names))[present] / sizes[present]
        permuted = permuted_counts(rng, sizes[present], total=int(found.sum()), count=len(faces.weights))
        null = np.ptp(permuted / sizes[present, None], 0)
        columns = interval_columns(float(np.ptp(rates)), replicates, null=null)
        rows.append({"attribute": attribute, "group": None, "measure": HELD_OUT_GAP, **columns})
    return rows
