"""Intervals and tests of shares, from counts."""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

Z = 1.959964  # two-sided 95 %
BISECTIONS = 60


def wilson(count: ArrayLike, n: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """95 % score interval of a share; (0, 1) where n is 0. Wilson, JASA 22 (1927) 209-212."""
    x, size = np.asarray(count, float), np.maximum(np.asarray(n, float), 1e-12)
    centre = (x + Z**2 / 2) / (size + Z**2)
    half_width = Z / (size + Z**2) * np.sqrt(np.maximum(x * (size - x) / size, 0) + Z**2 / 4)
    return np.maximum(centre - half_width, 0), np.minimum(centre + half_width, 1)


def ratio_interval(x: ArrayLike, n: ArrayLike, *, y: ArrayLike, m: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """95 % score interval of (x/n) / (y/m), the ratio of two independent binomial shares.

    Koopman, Biometrics 40 (1984) 513-517: every ratio that a chi-squared test does not reject, by bisection. Zero
    counts need no correction: x = 0 gives a lower end of 0, y = 0 an upper end of infinity.
    """
    x, n, y, m = np.broadcast_arrays(*(np.asarray(value, float) for value in (x, n, y, m)))

    def is_rejected(log_ratio: np.ndarray) -> np.ndarray:
        ratio = np.exp(log_ratio)
        b, c = ratio * (n + y) + x + m, ratio * (x + y)
        # the most likely share behind x/n given this ratio, in a form without cancellation
        first = 2 * c / (b + np.sqrt(np.maximum(b**2 - 4 * (n + m) * c, 0)))
        first = np.clip(first, 1e-300, 1 - 1e-12)
        second = np.clip(first / ratio, 1e-300, 1 - 1e-12)
        chi2 = (x - n * first) ** 2 / (n * first * (1 - first)) + (y - m * second) ** 2 / (m * second * (1 - second))
        return chi2 > Z**2

    with np.errstate(divide="ignore", invalid="ignore"):
        best = np.log((x + 0.5) / (n + 0.5)) - np.log((y + 0.5) / (m + 0.5))
        best = np.where((x > 0) & (y > 0), np.log(x / n) - np.log(y / m), best)
        low, high = (np.exp(bisect(is_rejected, best, outside=end)) for end in (-30.0, 30.0))
    return np.where(x > 0, low, 0.0), np.where(y > 0, high, np.inf)


def bisect(is_rejected: Callable[[np.ndarray], np.ndarray], inside: np.ndarray, *, outside: float) -> np.ndarray:
    """The points between `inside` and `outside` from which on `is_rejected` is true."""
    kept, rejected = inside, np.full_like(inside, outside)
    for _ in range(BISECTIONS):
        middle = (kept + rejected) / 2
        is_outside = is_rejected(middle)
        kept, rejected = np.where(is_outside, kept, middle), np.where(is_outside, middle, rejected)
    return kept


def pearson_p(x: ArrayLike, n: ArrayLike, *, y: ArrayLike, m: ArrayLike) -> np.ndarray:
    """p-value of Pearson's chi-squared test that x/n and y/m estimate the same share; 1 where n or m is 0."""
    x, n, y, m = (np.asarray(value, float) for value in (x, n, y, m))
    pooled = (x + y) / np.maximum(n + m, 1)
    variance = pooled * (1 - pooled) * (1 / np.maximum(n, 1) + 1 / np.maximum(m, 1))
    difference = x / np.maximum(n, 1) - y / np.maximum(m, 1)
    return np.where((n > 0) & (m > 0), two_sided_p(difference, variance), 1.0)


def two_sided_p(difference: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Two-sided p-value of normal differences with these variances and mean 0; 1 where a variance is 0."""
    return np.array(
        [math.erfc(abs(d) / math.sqrt(2 * v)) if v > 0 else 1.0 for d, v in zip(difference, variance, strict=True)]
    )


def holm_significant(p: np.ndarray, *, level: float = 0.05) -> np.ndarray:
    """Which of several tests are significant when taken together, given their p-values: bool, shaped like `p`.

    Holm's step-down procedure (Scand. J. Statist. 6 (1979) 65-70): among generators that change nothing, at most a
    share `level` has any significant test.
    """
    order = np.argsort(p)
    is_below = np.minimum.accumulate(p[order] <= level / np.arange(len(p), 0, -1))
    significant = np.zeros(len(p), bool)
    significant[order] = is_below
    return significant
