"""Intervals and tests of shares: what counts can say about the shares behind them."""

import math
from typing import Any

import numpy as np

Z = 1.959964  # two-sided 95 %
Counts = np.ndarray


def wilson(count: Counts, n: Counts) -> tuple[np.ndarray, np.ndarray]:
    """95 % score interval of a share; (0, 1) where n is 0. Wilson, JASA 22 (1927) 209-212."""
    count, n = np.asarray(count, float), np.maximum(np.asarray(n, float), 1e-12)
    centre = (count + Z**2 / 2) / (n + Z**2)
    half = Z / (n + Z**2) * np.sqrt(np.maximum(count * (n - count) / n, 0) + Z**2 / 4)
    return np.maximum(centre - half, 0), np.minimum(centre + half, 1)


def ratio_interval(x: Counts, n: Counts, y: Counts, m: Counts) -> tuple[np.ndarray, np.ndarray]:
    """95 % score interval of (x/n) / (y/m), two independent binomial shares: Koopman, Biometrics 40 (1984)
    513-517.

    It holds every ratio that a chi-squared test does not reject, found by bisection. It needs no correction
    at zero counts: x = 0 gives a low end of 0, y = 0 a high end of infinity.
    """
    x, n, y, m = np.broadcast_arrays(*(np.asarray(value, float) for value in (x, n, y, m)))

    def rejected(log_ratio: np.ndarray) -> np.ndarray:
        ratio = np.exp(log_ratio)
        b, c = ratio * (n + y) + x + m, ratio * (x + y)
        # the share x/n estimates, most likely where the ratio is this; written so that nothing cancels
        first = 2 * c / (b + np.sqrt(np.maximum(b**2 - 4 * (n + m) * c, 0)))
        first = np.clip(first, 1e-300, 1 - 1e-12)
        second = np.clip(first / ratio, 1e-300, 1 - 1e-12)
        chi2 = (x - n * first) ** 2 / (n * first * (1 - first)) + (y - m * second) ** 2 / (m * second * (1 - second))
        return chi2 > Z**2

    with np.errstate(divide="ignore", invalid="ignore"):
        best = np.log((x + 0.5) / (n + 0.5)) - np.log((y + 0.5) / (m + 0.5))
        best = np.where((x > 0) & (y > 0), np.log(x / n) - np.log(y / m), best)
        low, high = (np.exp(boundary(rejected, best, end)) for end in (-30.0, 30.0))
    return np.where(x > 0, low, 0.0), np.where(y > 0, high, np.inf)


def boundary(rejected: Any, inside: np.ndarray, outside: float) -> np.ndarray:
    """Where, between `inside` and `outside`, `rejected` turns true: 60 halvings."""
    kept, lost = inside, np.full_like(inside, outside)
    for _ in range(60):
        middle = (kept + lost) / 2
        out = rejected(middle)
        kept, lost = np.where(out, kept, middle), np.where(out, middle, lost)
    return kept


def pearson(x: Counts, n: Counts, y: Counts, m: Counts) -> np.ndarray:
    """p of Pearson's chi-squared test that x/n and y/m are of one share; 1 where there is nothing to compare."""
    x, n, y, m = (np.asarray(value, float) for value in (x, n, y, m))
    pooled = (x + y) / np.maximum(n + m, 1)
    spread = pooled * (1 - pooled) * (1 / np.maximum(n, 1) + 1 / np.maximum(m, 1))
    distance = x / np.maximum(n, 1) - y / np.maximum(m, 1)
    return np.where((n > 0) & (m > 0), two_sided(distance, spread), 1.0)


def two_sided(distance: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """p of a normal distance of that variance, 1 where the variance is 0."""
    return np.array(
        [math.erfc(abs(d) / math.sqrt(2 * v)) if v > 0 else 1.0 for d, v in zip(distance, variance, strict=True)]
    )


def shifted(p: np.ndarray, level: float = 0.05) -> np.ndarray:
    """Which of many tests, by their `p`, tell of more than chance, all of them taken together: bool, like `p`.

    Holm's step-down procedure (Scand. J. Statist. 6 (1979) 65-70), under which a generator without any shift is accused
    in at most `level` of all reports.
    """
    order = np.argsort(p)
    passed = np.minimum.accumulate(p[order] <= level / np.arange(len(p), 0, -1))
    found = np.zeros(len(p), bool)
    found[order] = passed
    return found
