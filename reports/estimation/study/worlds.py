"""Simulated studies with a known truth, by which the intervals and tests over seeds are checked (`make bench`, tests).

Every seed shifts the logarithms of its arm's shares at random, as much as three seeds of this program's first recipe
for real faces did: their total variation in gender ranged from 0.05 to 0.18, which corresponds to a standard deviation
of a share of 0.05 to 0.06. A few seeds shift the shares more, as collapsed training runs do. All runs are labelled by
one labeller, whose error rates are measured on calibration images.
"""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from reports.estimation.correction import correct_shares
from reports.estimation.distances import total_variation
from reports.estimation.intervals import holm_significant
from reports.estimation.study.seeds import LEVEL, mean_over_seeds, sign_flip_p

SPREAD = 0.14  # standard deviation of a log share between seeds; 0.055 for a share of one half, with collapsed seeds
COLLAPSED, COLLAPSED_SPREAD = 0.1, 2.0  # share of collapsed seeds, and the factor by which they shift shares more
PAIRED = 0.5  # share of the variance of a seed's effect that both arms of a pair have in common
SAMPLES, CALIBRATION_SIZES, ACCURACIES = 2000, (500, 5000), (0.7, 0.97)
CLASSES = (2, 5)
TRUTH_SEEDS = 20_000  # seeds whose mean is taken as an arm's true mean
REPLICATES = 200
METHODS = ("t", "bca", "percentile_t", "single")
NORMAL = NormalDist()


@dataclass(frozen=True)
class StudyCoverage:
    """How often intervals of simulated studies contained the truth, and how often their tests were false positives."""

    means: dict[str, float]  # coverage of an arm's mean shares by method; `single` is the interval that one run claims
    distances: dict[str, float]  # coverage of an arm's mean distance from equal shares by method
    false_positives: dict[str, float]  # of differences of two equal arms, by test: t, sign_flip, single
    family_false_positives: float  # share of studies with at least one significant group by Holm's procedure


@dataclass(frozen=True)
class SimulatedArm:
    """One arm of a simulated study. Its K + 1 values are K shares and their distance from equal shares."""

    truth: np.ndarray  # means over all seeds, [K + 1]
    values: np.ndarray  # estimates, [seeds, K + 1]
    replicates: np.ndarray  # [R, seeds, K + 1]


def measure_study_coverage(seeds: int, studies: int, *, seed: int) -> StudyCoverage:
    """Simulate so many studies of two equal arms, with so many seeds for each arm."""
    covered: dict[str, list[np.ndarray]] = {name: [] for name in METHODS}
    positives: dict[str, list[float]] = {"t": [], "sign_flip": [], "single": []}
    families = []
    for number in range(studies):
        rng = np.random.default_rng([seed, seeds, number])
        first, second = simulate_pair(rng, CLASSES[number % len(CLASSES)], seeds=seeds)
        for name, (low, high) in intervals(rng, first).items():
            inside = (low <= first.truth) & (first.truth <= high)
            covered[name].append(np.array([inside[:-1].mean(), inside[-1]]))
        difference = second.values - first.values
        mean_difference = mean_over_seeds(difference, second.replicates - first.replicates)
        positives["t"].append(float((mean_difference.p <= 1 - LEVEL).mean()))
        positives["sign_flip"].append(float((sign_flip_p(difference) <= 1 - LEVEL).mean()))
        spread = np.sqrt(first.replicates[:, 0].var(0) + second.replicates[:, 0].var(0))
        positives["single"].append(float((np.abs(difference[0]) > NORMAL.inv_cdf((1 + LEVEL) / 2) * spread).mean()))
        families.append(bool(holm_significant(mean_difference.p[:-1]).any()))
    means, distances = (
        {name: float(np.mean([both[i] for both in ends])) for name, ends in covered.items()} for i in (0, 1)
    )
    return StudyCoverage(
        means, distances, {name: float(np.mean(rates)) for name, rates in positives.items()}, float(np.mean(families))
    )


def simulate_pair(rng: np.random.Generator, classes: int, *, seeds: int) -> tuple[SimulatedArm, SimulatedArm]:
    """Two arms with the same true means, whose runs are paired by their seeds and labelled by one labeller."""
    base = np.log(rng.dirichlet(np.full(classes, 3)))
    calibration, accuracy = int(rng.choice(CALIBRATION_SIZES)), rng.uniform(*ACCURACIES)
    rates = accuracy * np.eye(classes) + (1 - accuracy) * rng.dirichlet(np.ones(classes), size=classes)
    images = np.maximum(rng.multinomial(calibration, rng.dirichlet(np.full(classes, 5))), 1)
    confusion = np.stack([rng.multinomial(n, row) for n, row in zip(images, rates, strict=True)])
    truth = with_distance(softmax(base + effects(rng, TRUTH_SEEDS, classes))).mean(0)
    common = np.sqrt(PAIRED) * effects(rng, seeds, classes)
    arms = []
    for arm in range(2):
        shares = softmax(base + common + np.sqrt(1 - PAIRED) * effects(rng, seeds, classes))
        corrections = [
            correct_shares(rng.multinomial(SAMPLES, row @ rates), confusion, seed=1, replicates=REPLICATES, side=side)
            for side, row in enumerate(shares, 10 + arm * seeds)
        ]
        values = with_distance(np.stack([correction.shares for correction in corrections]))
        replicates = with_distance(np.stack([correction.bootstrap_shares for correction in corrections], 1))
        arms.append(SimulatedArm(truth, values, replicates))
    return arms[0], arms[1]


def effects(rng: np.random.Generator, seeds: int, classes: int) -> np.ndarray:
    """The random shifts of the logarithms of shares by seeds, [seeds, K]."""
    scale = np.where(rng.random((seeds, 1)) < COLLAPSED, COLLAPSED_SPREAD, 1)
    return SPREAD * scale * rng.standard_normal((seeds, classes))


def intervals(rng: np.random.Generator, arm: SimulatedArm) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The interval of an arm's means by each of `METHODS`, [K + 1] each."""
    t = mean_over_seeds(arm.values, arm.replicates)
    single = np.quantile(arm.replicates[:, 0], [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return {
        "t": (t.low, t.high),
        **bootstrap_intervals(rng, arm.values, arm.replicates),
        "single": (single[0], single[1]),
    }


def bootstrap_intervals(
    rng: np.random.Generator, values: np.ndarray, replicates: np.ndarray
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """BCa and percentile-t intervals of the mean of `values`, [seeds, G], by a hierarchical bootstrap.

    Seeds are resampled; the value of a resampled seed is one of its `replicates`, [R, seeds, G], which vary with the
    samples and the calibration.
    """
    size, count = replicates.shape[:2]
    chosen = rng.integers(count, size=(size, count))
    resampled = replicates[np.arange(size)[:, None], chosen]
    means, mean = resampled.mean(1), values.mean(0)
    # jackknife means, each of which leaves out one seed
    jackknife = (values.sum(0) - values) / (count - 1)
    centred = jackknife.mean(0) - jackknife
    acceleration = (centred**3).sum(0) / np.maximum(6 * (centred**2).sum(0) ** 1.5, 1e-300)
    below = ((means < mean).sum(0) + 0.5) / (size + 1)
    bca = np.empty((2, values.shape[1]))
    for group in range(values.shape[1]):
        bias = NORMAL.inv_cdf(float(below[group]))
        for end, level in enumerate(((1 - LEVEL) / 2, (1 + LEVEL) / 2)):
            z = bias + NORMAL.inv_cdf(level)
            shifted = NORMAL.cdf(bias + z / (1 - acceleration[group] * z))
            bca[end, group] = np.quantile(means[:, group], shifted)
    errors, error = (np.sqrt(np.maximum(side.var(-2, ddof=1) / count, 1e-12)) for side in (resampled, values))
    t = np.quantile((means - mean) / errors, [(1 + LEVEL) / 2, (1 - LEVEL) / 2], axis=0)
    return {"bca": (bca[0], bca[1]), "percentile_t": (mean - t[0] * error, mean - t[1] * error)}


def with_distance(shares: np.ndarray) -> np.ndarray:
    """Shares [..., K] with their total variation from equal shares, [..., K + 1]."""
    distance = total_variation(shares, np.full(shares.shape[-1], 1 / shares.shape[-1]))
    return np.concatenate([shares, distance[..., None]], -1)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Shares from their logarithms, [..., K]."""
    values = np.exp(logits - logits.max(-1, keepdims=True))
    shares: np.ndarray = values / values.sum(-1, keepdims=True)
    return shares
