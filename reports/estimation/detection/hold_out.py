"""How differently a detector finds the fakes of the groups that were left out of its training."""

import numpy as np

from reports.estimation.detection.faces import EvaluatedFaces, Groups
from reports.estimation.detection.interval_columns import interval_columns
from reports.estimation.permutation_null import permuted_counts

HELD_OUT_GAP = "held_out_tpr_gap"  # of detectors that were trained without some of the fakes


def held_out_gap(faces: EvaluatedFaces, groups: Groups, *, rng: np.random.Generator) -> dict[str, float | None] | None:
    """value, low, high and floor of the range of TPR over the groups, of fakes that were left out of training.

    None if no group has such fakes.
    """
    numbers = groups.numbers
    is_held_out = faces.is_held_out & (numbers >= 0)
    sizes = np.bincount(numbers[is_held_out])
    if not sizes.any():
        return None
    found, count = is_held_out & faces.called_fake, len(faces.weights)
    present = np.flatnonzero(sizes)
    hits = np.stack([faces.weights[:, found & (numbers == group)].sum(1) for group in present])
    weights = np.stack([faces.weights[:, is_held_out & (numbers == group)].sum(1) for group in present])
    with np.errstate(invalid="ignore", divide="ignore"):
        replicates = np.ptp(hits / weights, 0)  # NaN where a group has no face in a replicate
    null = permuted_counts(rng, sizes[present], total=int(found.sum()), count=count) / sizes[present, None]
    rates = np.bincount(numbers[found], minlength=len(sizes))[present] / sizes[present]
    return interval_columns(float(np.ptp(rates)), replicates, null=np.ptp(null, 0))
