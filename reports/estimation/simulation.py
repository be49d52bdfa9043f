"""Simulated studies with a known truth, which test the estimates (`make bench`, tests).

A face is a point: its class's direction, somewhat similar to the neighbouring classes', plus noise. The labeller knows
the directions, but is biased towards some classes, and its probabilities may be overconfident. Its accuracy is set by
the distance between the classes.
"""

from dataclasses import dataclass

import numpy as np

from reports.estimation.correction import correct_shares, raw_is_better, solve_shares

ACCURACIES = (0.6, 0.97)
CALIBRATION_SIZES, SAMPLES = (500, 5000), 2000


@dataclass(frozen=True)
class SimulatedStudy:
    """The data of a simulated study, and the true shares."""

    truth: np.ndarray  # shares of the generated faces, [K]
    counts: np.ndarray  # their labels, [K]
    confusion: np.ndarray  # of the calibration images, annotated by labelled, [K, K]
    mean_probabilities: np.ndarray  # of the generated faces, [K]
    mean_probabilities_by_class: np.ndarray  # of the calibration images of each class, [K, K]
    em_shares: np.ndarray  # of the generated faces, by expectation maximisation, [K]


@dataclass(frozen=True)
class SimulatedLabeller:
    """A labeller of points around class means."""

    means: np.ndarray  # [K, K]
    bias: np.ndarray  # towards each class, [K]
    confidence: float  # 1 is calibrated, more is overconfident

    def probabilities(self, rng: np.random.Generator, truth: np.ndarray, *, distance: float) -> np.ndarray:
        """Class probabilities, [N, K], of faces of the classes `truth`, [N], that are `distance` apart."""
        classes = len(self.means)
        points = distance * self.means[truth] + rng.normal(size=(len(truth), classes))
        scores = self.confidence * (
            distance * points @ self.means.T - (distance * self.means) ** 2 @ np.ones(classes) / 2 + self.bias
        )
        scores = np.exp(scores - scores.max(1, keepdims=True))
        return scores / scores.sum(1, keepdims=True)


def simulate_study(
    rng: np.random.Generator, classes: int, *, accuracy: float, n: int, calibration: int
) -> SimulatedStudy:
    """Simulate a study of `n` generated and `calibration` annotated faces, whose shares are sampled independently."""
    steps = np.abs(np.subtract.outer(np.arange(classes), np.arange(classes)))
    means = np.eye(classes) + (0.3 * np.exp(-steps) if classes > 2 else 0)
    labeller = SimulatedLabeller(means, rng.normal(0, 0.5, classes), rng.choice([1.0, 3.0]))
    distance = distance_for_accuracy(rng, labeller, accuracy=accuracy)
    truth, annotated_shares = rng.dirichlet(np.ones(classes)), rng.dirichlet(np.ones(classes))
    annotated = rng.choice(classes, calibration, p=annotated_shares)
    # at least one calibration image per class: without any nothing is corrected, which is tested elsewhere
    annotated[:classes] = np.arange(classes)
    calibrated = labeller.probabilities(rng, annotated, distance=distance)
    generated = labeller.probabilities(rng, rng.choice(classes, n, p=truth), distance=distance)
    confusion = np.zeros((classes, classes), int)
    np.add.at(confusion, (annotated, calibrated.argmax(1)), 1)
    by_class = np.stack([calibrated[annotated == i].mean(0) for i in range(classes)])
    prior = np.bincount(annotated, minlength=classes) / calibration
    counts = np.bincount(generated.argmax(1), minlength=classes)
    em_shares = expectation_maximisation(generated, prior)
    return SimulatedStudy(truth, counts, confusion, generated.mean(0), by_class, em_shares)


def distance_for_accuracy(rng: np.random.Generator, labeller: SimulatedLabeller, *, accuracy: float) -> float:
    """The distance between the classes at which the labeller has this accuracy, by 12 bisections."""
    near, far, balanced = 0.05, 8.0, np.arange(4000) % len(labeller.means)
    for _ in range(12):
        middle = (near + far) / 2
        is_correct = labeller.probabilities(rng, balanced, distance=middle).argmax(1) == balanced
        near, far = (middle, far) if is_correct.mean() < accuracy else (near, middle)
    return far


def expectation_maximisation(probabilities: np.ndarray, prior: np.ndarray, *, steps: int = 50) -> np.ndarray:
    """Shares by expectation maximisation: Saerens, Latinne and Decaestecker, Neural Comput. 14 (2002) 21-41."""
    shares = prior
    for _ in range(steps):
        weighted = probabilities * (shares / prior)
        shares = (weighted / weighted.sum(1, keepdims=True)).mean(0)
    return shares


def interval_coverage(classes: int, studies: int, *, seed: int, replicates: int = 300) -> tuple[float, float]:
    """How often a 95 % interval covers a true share, averaged over the classes: corrected, and of the raw labels."""
    rng, covered = np.random.default_rng(seed), []
    for number in range(studies):
        study = simulate_study(
            rng,
            classes,
            accuracy=rng.uniform(*ACCURACIES),
            n=SAMPLES,
            calibration=CALIBRATION_SIZES[number % len(CALIBRATION_SIZES)],
        )
        low, high = correct_shares(study.counts, study.confusion, seed=number, replicates=replicates).interval()
        raw = study.counts / SAMPLES
        half_width = 1.96 * np.sqrt(raw * (1 - raw) / SAMPLES)
        raw_covered = np.abs(raw - study.truth) <= half_width
        covered.append((((low <= study.truth) & (study.truth <= high)).mean(), raw_covered.mean()))
    corrected_coverage, raw_coverage = np.mean(covered, axis=0)
    return float(corrected_coverage), float(raw_coverage)


def estimate_errors(
    classes: int,
    studies: int,
    *,
    seed: int,
    n: int = 20_000,
    calibration: int = 5000,
    accuracies: tuple[float, float] = ACCURACIES,
) -> dict[str, float]:
    """Mean total variation from the truth of raw shares and of several ways to correct them.

    Keys: raw, corrected, best (the better of these two by `raw_is_better`), probabilistic (from mean probabilities),
    maximisation (expectation maximisation).
    """
    rng, errors = np.random.default_rng(seed), []
    for number in range(studies):
        study = simulate_study(rng, classes, accuracy=rng.uniform(*accuracies), n=n, calibration=calibration)
        correction, raw = correct_shares(study.counts, study.confusion, seed=number, replicates=200), study.counts / n
        shares = {
            "raw": raw,
            "corrected": correction.shares,
            "best": raw if raw_is_better(study.counts, correction) else correction.shares,
            "probabilistic": solve_shares(study.mean_probabilities_by_class, study.mean_probabilities),
            "maximisation": study.em_shares,
        }
        errors.append({name: np.abs(value - study.truth).sum() / 2 for name, value in shares.items()})
    return {name: float(np.mean([error[name] for error in errors])) for name in errors[0]}
