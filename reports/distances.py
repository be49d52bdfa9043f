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


MEASURES = {f.__name__: f for f in (total_variation, jensen_shannon, fairness_discrepancy)}


def entropy(p: np.ndarray) -> np.ndarray:
    """Shannon entropy in bits of shares [..., K]: Bell Syst. Tech. J. 27 (1948) 379-423, section 6."""
    return -np.where(p > 0, p * np.log2(np.where(p > 0, p, 1)), 0).sum(-1)


def entropy_ratio(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """How much of the diversity of `q` there is in `p`: the ratio of their entropies; 1 keeps it, less loses some."""
    return entropy(p) / np.maximum(entropy(q), 1e-12)


MEASURES = {f.__name__: f for f in (total_variation, jensen_shannon, fairness_discrepancy)}


def counted(count: np.ndarray, reference: np.ndarray | None, generator: np.random.Generator) -> Sampler:
    """Draws both sides' shares again, from as many faces as were counted; without `reference`, against equal shares."""
    n, m = round(count.sum()), None if reference is None else round(reference.sum())

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
    t = 0: what a generator that changes nothing would show at these n. The ratio of entropies falls, instead: its
    floor is the 5th percentile, and its interval a basic bootstrap's (Davison and Hinkley 1997, section 2.4).
    """
    reach = np.quantile(total_variation(*sampler(q[None], draws)), 0.95) / max(total_variation(p, q), 1e-9)
    mixtures = np.clip(q + np.linspace(0, 1 + 1.5 * reach, 31)[:, None] * (p - q), 0, None)
    mixtures /= mixtures.sum(1, keepdims=True)
    seen, found = sampler(mixtures, draws), []
    for name, measure in MEASURES.items():
        value, truth, again = float(measure(p, q)), measure(mixtures, q), measure(*seen)
        below, above = np.maximum.accumulate(np.quantile(again, [0.025, 0.975], axis=1), axis=1)
        low = 0.0 if above[0] >= value else float(np.interp(value, above, truth))
        high = 0.0 if below[0] > value else float(np.interp(value, below, truth))
        row = {"measure": name, "value": value, "low": min(low, value), "high": max(high, value)}
        found.append({**row, "null_floor": float(np.quantile(again[0], 0.95))})
    value, null = float(entropy_ratio(p, q)), entropy_ratio(seen[0][0], seen[1] if seen[1].ndim == 1 else seen[1][0])
    again = entropy_ratio(*(side[1] if side.ndim > 1 else side for side in sampler(np.stack([q, p]), draws)))
    low, high = 2 * value - np.quantile(again, [0.975, 0.025])
    most = float(np.log2(len(q)) / max(entropy(q), 1e-12))  # equal shares have the greatest entropy
    ends = {"low": min(max(float(low), 0.0), value), "high": max(min(float(high), most), value)}
    return [*found, {"measure": "entropy_ratio", "value": value, **ends, "null_floor": float(np.quantile(null, 0.05))}]
