"""Distances between distributions over groups, each with an interval and what chance alone would show."""

from collections.abc import Callable
from typing import Any

import numpy as np

DRAWS = 500  # resamples for each point of `rows`; of corrected shares, which cost more, CORRECTED_DRAWS
CORRECTED_DRAWS = 200
Sampler = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]


def total_variation(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Half the sum of absolute differences: the share of faces that would have to change group; 0 to 1."""
    return np.abs(p - q).sum(-1) / 2


def fairness_discrepancy(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Euclidean distance: Choi et al., Fair Generative Modeling via Weak Supervision, ICML 2020, sec. 5."""
    return np.sqrt(((p - q) ** 2).sum(-1))


def jensen_shannon(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Divergence in bits, 0 to 1: Lin, IEEE Trans. Inf. Theory 37 (1991) 145-151, eq. 4.1, equal weights."""
    middle = (p + q) / 2

    def relative(a: np.ndarray) -> np.ndarray:
        return np.where(a > 0, a * np.log2(np.where(a > 0, a, 1) / np.where(a > 0, middle, 1)), 0).sum(-1)

    return (relative(p) + relative(q)) / 2


def entropy(p: np.ndarray) -> np.ndarray:
    """Shannon entropy in bits of shares [..., K]: Bell Syst. Tech. J. 27 (1948) 379-423, section 6."""
    return 0.0 - np.where(p > 0, p * np.log2(np.where(p > 0, p, 1)), 0).sum(-1)


def entropy_ratio(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """How much of the diversity of `q` there is in `p`: the ratio of their entropies; 1 keeps it, less loses some."""
    return entropy(p) / np.maximum(entropy(q), 1e-12)


MEASURES = {f.__name__: f for f in (total_variation, jensen_shannon, fairness_discrepancy)}


def counted(n: int, m: int | None, generator: np.random.Generator) -> Sampler:
    """Draws both sides' shares again: of `n` faces and of `m` reference faces, or equal shares without any."""

    def sampler(mixtures: np.ndarray, draws: int) -> tuple[np.ndarray, np.ndarray]:
        size, q = (len(mixtures), draws), mixtures[0]
        left = generator.multinomial(n, mixtures[:, None, :], size=size) / n
        return left, q if m is None else generator.multinomial(m, q, size=size) / m

    return sampler


def rows(p: np.ndarray, q: np.ndarray, sampler: Sampler, draws: int = DRAWS) -> list[dict[str, Any]]:
    """Every measure's value between shares `p` and `q` [K], its 95 % interval and null floor.

    `sampler` gives what would be seen of mixtures [T, K], of which the first is `q`, and of `q`: [T, draws, K] each.
    Distances of counts are biased upwards, most where the truth is near 0, so neither percentile nor basic bootstrap
    intervals hold it (0-80 % in a trial). The test is inverted instead: which mixtures, q + t (p - q), would give the
    distance that was seen? (Carpenter, J. R. Stat. Soc. B 61 (1999) 159-172.) The null floor is the 95th percentile at
    t = 0: what a generator of just `q` would show at these n. The ratio of entropies falls, instead: its
    floor is the 5th percentile, and its interval a basic bootstrap's (Davison and Hinkley 1997, section 2.4).
    """
    floor, apart, towards = np.quantile(total_variation(*sampler(q[None], draws)), 0.95), total_variation(p, q), p
    if apart < 1e-9:  # there is no direction to go in: towards the smallest group
        towards = np.eye(len(q))[q.argmin()]
    top = float(apart >= 1e-9) + 2 * floor / max(total_variation(towards, q), 1e-9)
    mixtures = np.clip(q + np.linspace(0, top, 31)[:, None] * (towards - q), 0, None)
    mixtures /= mixtures.sum(1, keepdims=True)
    seen, found = sampler(mixtures, draws), []
    for name, measure in MEASURES.items():
        value, truth, again = float(measure(p, q)), measure(mixtures, q), measure(*seen)
        below, above = np.maximum.accumulate(np.quantile(again, [0.025, 0.975], axis=1), axis=1)
        low = crossing(above, truth, value, first=True)
        # a distance below what chance alone shows is no less chance's
        high = crossing(below, truth, max(value, float(np.median(again[0]))), first=False)
        row = {"measure": name, "value": value, "low": min(low, value), "high": max(high, value)}
        found.append({**row, "null_floor": float(np.quantile(again[0], 0.95))})
    return [*found, diversity(p, q, sampler, draws, seen)]


def crossing(curve: np.ndarray, truth: np.ndarray, value: float, first: bool) -> float:
    """The truth [T] at which a rising curve [T] reaches `value` first, or leaves it last; an end where it does not."""
    reached = np.flatnonzero(curve >= value) if first else np.flatnonzero(curve <= value)
    if not len(reached):
        return float(truth[-1] if first else truth[0])
    at = reached[0] if first else reached[-1]
    other = at - 1 if first else at + 1
    if not 0 <= other < len(curve):
        return float(truth[at])
    return float(truth[at] + (value - curve[at]) / (curve[other] - curve[at]) * (truth[other] - truth[at]))


def diversity(
    p: np.ndarray, q: np.ndarray, sampler: Sampler, draws: int, seen: tuple[np.ndarray, np.ndarray]
) -> dict[str, Any]:
    """The row of the ratio of entropies; without value where `q` is all of one group."""
    if entropy(q) < 1e-9:
        return {"measure": "entropy_ratio", **dict.fromkeys(("value", "low", "high", "null_floor"))}
    value, null = float(entropy_ratio(p, q)), entropy_ratio(seen[0][0], seen[1] if seen[1].ndim == 1 else seen[1][0])
    again = entropy_ratio(*(side[1] if side.ndim > 1 else side for side in sampler(np.stack([q, p]), draws)))
    low, high = 2 * value - np.quantile(again, [0.975, 0.025])
    if np.allclose(q, 1 / len(q)):
        high = min(high, 1.0)  # equal shares have the greatest entropy
    ends = {"low": min(max(float(low), 0.0), value), "high": max(float(high), value)}
    return {"measure": "entropy_ratio", "value": value, **ends, "null_floor": float(np.quantile(null, 0.05))}
