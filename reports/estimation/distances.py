"""Distances between distributions over groups, with intervals and null floors: what chance alone would show."""

from collections.abc import Callable
from typing import Any

import numpy as np

REPLICATES = 500  # for each of the mixtures
CORRECTED_REPLICATES = 200  # of corrected shares, which take longer
MIXTURES = 31
# (mixtures [T, K], replicates) -> shares of samples of the mixtures and of the reference, [T, replicates, K] each; or,
# without reference faces, the reference itself, [K]
Sampler = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]


def total_variation(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Half the sum of absolute differences of shares [..., K]: the share of faces that differ in group; 0 to 1."""
    return np.abs(p - q).sum(-1) / 2


def fairness_discrepancy(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Euclidean distance: Choi et al., Fair Generative Modeling via Weak Supervision, ICML 2020, sec. 5."""
    return np.sqrt(((p - q) ** 2).sum(-1))


def jensen_shannon(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Divergence in bits, 0 to 1: Lin, IEEE Trans. Inf. Theory 37 (1991) 145-151, eq. 4.1, equal weights."""
    middle = (p + q) / 2

    def relative_entropy(a: np.ndarray) -> np.ndarray:
        return np.where(a > 0, a * np.log2(np.where(a > 0, a, 1) / np.where(a > 0, middle, 1)), 0).sum(-1)

    return (relative_entropy(p) + relative_entropy(q)) / 2


def entropy(p: np.ndarray) -> np.ndarray:
    """Shannon entropy in bits of shares [..., K]: Bell Syst. Tech. J. 27 (1948) 379-423, section 6."""
    return 0.0 - np.where(p > 0, p * np.log2(np.where(p > 0, p, 1)), 0).sum(-1)


def entropy_ratio(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """The ratio of the entropies of `p` and `q`: 1 means as diverse as `q`, less than 1 less diverse."""
    return entropy(p) / np.maximum(entropy(q), 1e-12)


MEASURES = {f.__name__: f for f in (total_variation, jensen_shannon, fairness_discrepancy)}


def count_sampler(n: int, reference_n: int | None, *, generator: np.random.Generator) -> Sampler:
    """Resamples the labels of `n` faces and of `reference_n` reference faces (None: the reference is known exactly)."""

    def sample(mixtures: np.ndarray, replicates: int) -> tuple[np.ndarray, np.ndarray]:
        size, q = (len(mixtures), replicates), mixtures[0]
        shares = generator.multinomial(n, mixtures[:, None, :], size=size) / n
        if reference_n is None:
            return shares, q
        return shares, generator.multinomial(reference_n, q, size=size) / reference_n

    return sample


def distance_rows(
    p: np.ndarray, q: np.ndarray, *, sampler: Sampler, replicates: int = REPLICATES
) -> list[dict[str, Any]]:
    """Every measure's value between shares `p` and `q`, [K], with its 95 % interval and null floor.

    Columns: measure, value, low, high, null_floor.

    Distances of counts are biased upwards, most of all near 0, so neither percentile nor basic bootstrap intervals
    cover the truth (0-80 % in a trial). Instead a test is inverted: the interval contains the mixtures q + t (p - q)
    that would plausibly show the observed distance (Carpenter, J. R. Stat. Soc. B 61 (1999) 159-172). The null floor
    is the 95th percentile at t = 0, which a generator of exactly `q` rarely exceeds with these numbers of faces. The
    ratio of entropies is biased downwards instead: its floor is the 5th percentile, and its interval that of a basic
    bootstrap (Davison and Hinkley 1997, section 2.4).
    """
    mixtures = mixtures_towards(p, q, null_distance=total_variation(*sampler(q[None], replicates)))
    samples, rows = sampler(mixtures, replicates), []
    for name, measure in MEASURES.items():
        value, truth, resampled = float(measure(p, q)), measure(mixtures, q), measure(*samples)
        below, above = np.maximum.accumulate(np.quantile(resampled, [0.025, 0.975], axis=1), axis=1)
        low = crossing(above, truth, value=value, first=True)
        # a distance below the median of chance alone gets the upper end of that median
        high = crossing(below, truth, value=max(value, float(np.median(resampled[0]))), first=False)
        row = {"measure": name, "value": value, "low": min(low, value), "high": max(high, value)}
        rows.append({**row, "null_floor": float(np.quantile(resampled[0], 0.95))})
    return [*rows, entropy_ratio_row(p, q, sampler=sampler, replicates=replicates, samples=samples)]


def mixtures_towards(p: np.ndarray, q: np.ndarray, *, null_distance: np.ndarray) -> np.ndarray:
    """Mixtures [MIXTURES, K] from `q` to `p` and beyond it, by twice the 95th percentile of the `null_distance`s."""
    floor, distance, target = np.quantile(null_distance, 0.95), total_variation(p, q), p
    if distance < 1e-9:  # no direction between equal shares: towards the smallest group
        target = np.eye(len(q))[q.argmin()]
    end = float(distance >= 1e-9) + 2 * floor / max(total_variation(target, q), 1e-9)
    mixtures = np.clip(q + np.linspace(0, end, MIXTURES)[:, None] * (target - q), 0, None)
    mixtures /= mixtures.sum(1, keepdims=True)
    return mixtures


def crossing(curve: np.ndarray, truth: np.ndarray, *, value: float, first: bool) -> float:
    """The truth at which a rising curve first reaches `value`, or last exceeds it; an end if it never does.

    `curve` and `truth` are [T]; between them the crossing is interpolated linearly.
    """
    reached = np.flatnonzero(curve >= value) if first else np.flatnonzero(curve <= value)
    if not len(reached):
        return float(truth[-1] if first else truth[0])
    at = reached[0] if first else reached[-1]
    neighbour = at - 1 if first else at + 1
    if not 0 <= neighbour < len(curve):
        return float(truth[at])
    slope = (value - curve[at]) / (curve[neighbour] - curve[at])
    return float(truth[at] + slope * (truth[neighbour] - truth[at]))


def entropy_ratio_row(
    p: np.ndarray, q: np.ndarray, *, sampler: Sampler, replicates: int, samples: tuple[np.ndarray, np.ndarray]
) -> dict[str, Any]:
    """The row of the ratio of entropies; its value is None if `q` has a single group.

    `samples` are those of the mixtures, of which the first is `q`.
    """
    if entropy(q) < 1e-9:
        return {"measure": "entropy_ratio", **dict.fromkeys(("value", "low", "high", "null_floor"))}
    shares, reference = samples
    null = entropy_ratio(shares[0], reference if reference.ndim == 1 else reference[0])
    value = float(entropy_ratio(p, q))
    resampled = entropy_ratio(*(side[1] if side.ndim > 1 else side for side in sampler(np.stack([q, p]), replicates)))
    low, high = 2 * value - np.quantile(resampled, [0.975, 0.025])
    if np.allclose(q, 1 / len(q)):
        high = min(high, 1.0)  # equal shares have the greatest entropy
    ends = {"low": min(max(float(low), 0.0), value), "high": max(float(high), value)}
    return {"measure": "entropy_ratio", "value": value, **ends, "null_floor": float(np.quantile(null, 0.05))}
