"""The columns value, low, high and floor of a metric."""

import numpy as np

from reports.estimation.bootstrap_metrics import bias_corrected_interval


def interval_columns(
    value: float | None,
    replicates: np.ndarray,
    *,
    null: np.ndarray | None = None,
    equal: float = 0.0,
    smaller_is_fairer: bool = True,
) -> dict[str, float | None]:
    """value, low, high and floor of a metric; there is no interval if the value is undefined.

    `null` are values under equal treatment: the floor is what they exceed in only 5 % of cases, on the unfair side.
    A value within the floor may as well be `equal`, which it would be if all groups were equal.
    """
    low = high = floor = None
    replicates = replicates[np.isfinite(replicates)]
    if value is not None and len(replicates) and np.ptp(replicates):  # equal replicates carry no uncertainty
        low, high = bias_corrected_interval(value, replicates)
    null = null[np.isfinite(null)] if null is not None else None
    if value is not None and null is not None and len(null):
        floor = float(np.quantile(null, 0.95 if smaller_is_fairer else 0.05))
        if low is not None and high is not None:
            # within the floor, equality can't be ruled out, nor any value that resampling reaches
            if smaller_is_fairer and value <= floor:
                low, high = min(low, equal), max(high, float(np.quantile(replicates, 0.975)))
            elif not smaller_is_fairer and value >= floor:
                low, high = min(low, float(np.quantile(replicates, 0.025))), max(high, equal)
    return {"value": value, "low": low, "high": high, "floor": floor}
