"""Intervals and tests over the seeds of an arm, which include sampling noise and calibration noise.

The value of a seed differs from the arm's true mean by the effect of the seed, by the noise of its samples, and by the
noise of the calibration images, which all seeds share. The spread between seeds contains the first two; their part of
the mean's variance decreases with the number of seeds. The third does not decrease. It is the covariance between the
bootstrap replicates of different seeds, which share the replicates of the labeller's error rates. The interval of the
mean is Student's, with Satterthwaite's degrees of freedom (Biometrics Bull. 2 (1946) 110-114).

A hierarchical bootstrap (Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8) would
resample the seeds as well. With few seeds, its BCa intervals (Efron, JASA 82 (1987) 171-185) contain the truth too
seldom, and its percentile-t intervals are far too wide or no better: `bench study` measures both in simulated studies.
"""

import itertools
import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

LEVEL = 0.95  # of every interval
LEAST_SEEDS = 2  # smallest number of seeds with an interval
POWER = 0.8  # probability that a study with `seeds_needed` seeds finds a difference significant
MAX_SEEDS_NEEDED = 1000  # larger numbers are not reported
MAX_EXACT_PAIRS = 16  # of an exact sign-flip test; with more pairs, `FLIPS` random combinations of signs are tested
FLIPS = 50_000
NORMAL = NormalDist()
GRID_POINTS = 4001  # of numerical integrals
MAX_DEGREES = 1e5  # of freedom; beyond this, Student's distribution is practically normal


@dataclass(frozen=True)
class SeedMean:
    """The means of G values over the seeds of an arm, with their intervals and the variation behind them; [G] each."""

    mean: np.ndarray
    low: np.ndarray  # this and all fields below are NaN for fewer than `LEAST_SEEDS` seeds
    high: np.ndarray
    sd: np.ndarray  # standard deviation between seeds, without sampling noise
    sd_low: np.ndarray  # ends of the interval of `sd`
    sd_high: np.ndarray
    sampling_sd: np.ndarray  # standard deviation of one seed's value due to its samples
    shared_sd: np.ndarray  # standard deviation of every seed's value due to calibration
    p: np.ndarray  # two-sided p-value of the hypothesis that the true mean is 0


def mean_over_seeds(values: np.ndarray, replicates: np.ndarray) -> SeedMean:
    """The mean of `values`, [seeds, G], over the seeds; `replicates`, [R, seeds, G], are their bootstrap replicates.

    Replicates with the same index share the error rates of the labeller across seeds, and nothing else.
    """
    count, mean = len(values), values.mean(0)
    if count < LEAST_SEEDS:
        return SeedMean(mean, *np.full((8, len(mean)), np.nan))
    variances = replicates.var(0)
    # mean of the covariances between two seeds
    shared = (replicates.sum(1).var(0) - variances.sum(0)) / (count * (count - 1))
    shared = np.clip(shared, 0, None)
    sampling = np.clip(variances.mean(0) - shared, 0, None)
    spread = values.var(0, ddof=1)
    own = np.maximum(spread, sampling) / count  # a smaller spread than sampling noise is a coincidence
    variance = own + shared
    ratio = np.divide(variance, own, out=np.full_like(own, np.inf), where=own > 0)
    degrees = np.minimum((count - 1) * ratio**2, MAX_DEGREES)
    half_width = np.array([student_quantile(df) for df in degrees]) * np.sqrt(variance)
    sd_low, sd_high = (
        np.sqrt(np.clip(own * count * (count - 1) / quantile - sampling, 0, None))
        for quantile in chi_squared_quantiles(count - 1)
    )
    statistic = np.divide(np.abs(mean), np.sqrt(variance), out=np.zeros_like(mean), where=variance > 0)
    return SeedMean(
        mean=mean,
        low=mean - half_width,
        high=mean + half_width,
        sd=np.sqrt(np.clip(spread - sampling, 0, None)),
        sd_low=sd_low,
        sd_high=sd_high,
        sampling_sd=np.sqrt(sampling),
        shared_sd=np.sqrt(shared),
        p=np.array([student_p(t, df) for t, df in zip(statistic, degrees, strict=True)]),
    )


def sign_flip_p(differences: np.ndarray) -> np.ndarray:
    """Two-sided p-values, [G], of a test of paired `differences`, [pairs, G], by randomly flipped signs.

    Exact for up to `MAX_EXACT_PAIRS` pairs: Fisher, The Design of Experiments, 1935, section 21; Pitman, Suppl. J. R.
    Stat. Soc. 4 (1937) 119-130. The test assumes no distribution, only that the arms of a pair are exchangeable.
    """
    pairs = len(differences)
    if pairs <= MAX_EXACT_PAIRS:  # the first sign is fixed: flipping all signs changes no absolute value
        signs = np.array([(1, *rest) for rest in itertools.product((1, -1), repeat=pairs - 1)], float)
    else:
        signs = np.random.default_rng(0).choice([1.0, -1.0], (FLIPS, pairs))
        signs[0] = 1  # the observed signs are one of the possible ones, so p is never 0
    observed = np.abs(differences.sum(0))
    is_as_large = np.abs(signs @ differences) >= observed * (1 - 1e-12) - 1e-12
    p: np.ndarray = is_as_large.mean(0)
    return p


def least_sign_flip_p(pairs: int) -> float:
    """The smallest p-value that a sign-flip test of so many pairs can have: 0.0625 for 5 pairs, 0.03125 for 6."""
    return float(2.0 ** (1 - pairs))


def least_pairs() -> int:
    """The smallest number of pairs with which a sign-flip test can be significant."""
    return next(pairs for pairs in itertools.count(1) if least_sign_flip_p(pairs) <= 1 - LEVEL)


def seeds_needed(difference: float, *, sd: float, shared_sd: float, level: float = LEVEL) -> int | None:
    """The number of pairs of seeds that would settle a difference, if it and its spread are as estimated.

    With that number, the interval of the difference at this `level` excludes 0 with the probability `POWER` (Sokal and
    Rohlf, Biometry, 1995, section 9.8). It is at least the number that the sign-flip test needs, and None if it would
    exceed `MAX_SEEDS_NEEDED`, for example where `shared_sd`, the calibration noise, which more seeds don't reduce, is
    too large. `sd` is the standard deviation of the differences, including sampling noise.
    """
    most = (NORMAL.inv_cdf((1 + level) / 2) + NORMAL.inv_cdf(POWER)) ** 2  # by the normal distribution: a lower bound
    allowed = difference**2 / most - shared_sd**2
    if allowed <= 0 or sd**2 / allowed > MAX_SEEDS_NEEDED:
        return None
    for count in itertools.count(max(least_pairs(), math.floor(sd**2 / allowed))):
        own = sd**2 / count
        variance = own + shared_sd**2
        degrees = min((count - 1) * (variance / own) ** 2, MAX_DEGREES) if own else MAX_DEGREES
        factor = student_quantile(degrees, level=level) + student_quantile(degrees, level=2 * POWER - 1)
        if factor * math.sqrt(variance) <= abs(difference):
            break
    return count


def student_quantile(degrees: float, *, level: float = LEVEL) -> float:
    """The q for which |t| < q with the probability `level`, where t has a Student distribution; `degrees` >= 1."""
    angles, cumulative = _student_integral(degrees)
    angle = np.interp(level * cumulative[-1], cumulative, angles)
    return math.sqrt(degrees) * math.tan(angle)


def student_p(t: float, degrees: float) -> float:
    """The probability that the absolute value of a Student variable exceeds `t` >= 0."""
    angles, cumulative = _student_integral(degrees)
    below = np.interp(math.atan(t / math.sqrt(degrees)), angles, cumulative)
    return float(1 - below / cumulative[-1])


def _student_integral(degrees: float) -> tuple[np.ndarray, np.ndarray]:
    """Angles from 0, and the unnormalised integral of Student's density from 0 to t = sqrt(degrees) tan(angle).

    As a function of the angle the density is cos(angle) ** (degrees - 1), which is smooth.
    """
    end = min(math.pi / 2, 12 / math.sqrt(degrees))
    angles = np.linspace(0, end, GRID_POINTS)
    return angles, _cumulative(np.cos(angles) ** (degrees - 1), step=angles[1])


def chi_squared_quantiles(degrees: int) -> tuple[float, float]:
    """The upper and the lower end of the central interval of a chi-squared distribution that has the mass `LEVEL`."""
    roots, mode = np.linspace(1e-9, math.sqrt(degrees) + 8, GRID_POINTS), math.sqrt(max(degrees - 1, 1))
    density = np.exp(
        (degrees - 1) * np.log(roots / mode) - (roots**2 - mode**2) / 2
    )  # of the square root, which is smooth
    cumulative = _cumulative(density, step=roots[1])
    ends = np.interp(np.array([(1 + LEVEL) / 2, (1 - LEVEL) / 2]) * cumulative[-1], cumulative, roots) ** 2
    return float(ends[0]), float(ends[1])


def _cumulative(density: np.ndarray, *, step: float) -> np.ndarray:
    """The integral of a density up to each point of an evenly spaced grid, by the trapezoidal rule."""
    areas = (density[1:] + density[:-1]) / 2 * step
    return np.concatenate([[0.0], np.cumsum(areas)])
