"""Simulated worlds with a known truth, in which the estimates are put to the test (`make bench`, tests).

A face is a point: one direction a class, neighbours a little alike, and noise. The labeller knows the directions but
is biased towards some classes, and too sure of itself or not. Its accuracy follows from how far apart the classes are.
"""

from dataclasses import dataclass

import numpy as np

from reports.correct import corrected, raw_is_better, solve

ACCURACIES = (0.6, 0.97)
CALIBRATIONS, SAMPLES = (500, 5000), 2000


@dataclass
class World:
    """What a study would see, and what is true."""

    truth: np.ndarray  # shares of the generated faces, [K]
    counts: np.ndarray  # their labels, [K]
    confusion: np.ndarray  # of the calibration images, annotated by labelled, [K, K]
    soft: np.ndarray  # mean class probabilities of the generated faces, [K]
    soft_confusion: np.ndarray  # of the calibration images of each class, [K, K]
    maximised: np.ndarray  # shares by expectation maximisation over the probabilities, [K]


def world(rng: np.random.Generator, classes: int, accuracy: float, n: int, calibration: int) -> World:
    """One world: `n` generated faces and `calibration` annotated ones, their shares drawn apart from each other."""
    steps = np.abs(np.subtract.outer(np.arange(classes), np.arange(classes)))
    means = np.eye(classes) + (0.3 * np.exp(-steps) if classes > 2 else 0)
    bias, sureness = rng.normal(0, 0.5, classes), rng.choice([1.0, 3.0])

    def labelled(truth: np.ndarray, distance: float) -> np.ndarray:
        """Class probabilities [N, K] of faces of the classes `truth` [N]."""
        points = distance * means[truth] + rng.normal(size=(len(truth), classes))
        scores = sureness * (distance * points @ means.T - (distance * means) ** 2 @ np.ones(classes) / 2 + bias)
        scores = np.exp(scores - scores.max(1, keepdims=True))
        return scores / scores.sum(1, keepdims=True)

    near, far, even = 0.05, 8.0, np.arange(4000) % classes
    for _ in range(12):  # halvings
        middle = (near + far) / 2
        hits = (labelled(even, middle).argmax(1) == even).mean()
        near, far = (middle, far) if hits < accuracy else (near, middle)
    truth, shown = rng.dirichlet(np.ones(classes)), rng.dirichlet(np.ones(classes))
    annotated = rng.choice(classes, calibration, p=shown)
    # a class is calibrated by one image at least: without any, nothing is corrected, which is tested elsewhere
    annotated[:classes] = np.arange(classes)
    known = labelled(annotated, far)
    generated = labelled(rng.choice(classes, n, p=truth), far)
    confusion = np.zeros((classes, classes), int)
    np.add.at(confusion, (annotated, known.argmax(1)), 1)
    soft = np.stack([known[annotated == i].mean(0) for i in range(classes)])
    prior = np.bincount(annotated, minlength=classes) / calibration
    counts = np.bincount(generated.argmax(1), minlength=classes)
    return World(truth, counts, confusion, generated.mean(0), soft, maximised(generated, prior))


def maximised(probabilities: np.ndarray, prior: np.ndarray, steps: int = 50) -> np.ndarray:
    """Shares by expectation maximisation: Saerens, Latinne and Decaestecker, Neural Comput. 14 (2002) 21-41."""
    shares = prior
    for _ in range(steps):
        weighted = probabilities * (shares / prior)
        shares = (weighted / weighted.sum(1, keepdims=True)).mean(0)
    return shares


def coverage(classes: int, worlds: int, seed: int, draws: int = 300) -> tuple[float, float]:
    """How often a 95 % interval holds a true share, averaged over the classes: ours, and that of the labels alone."""
    rng, held = np.random.default_rng(seed), []
    for number in range(worlds):
        made = world(rng, classes, rng.uniform(*ACCURACIES), SAMPLES, CALIBRATIONS[number % len(CALIBRATIONS)])
        low, high = corrected(made.counts, made.confusion, number, draws).interval()
        raw = made.counts / SAMPLES
        half = 1.96 * np.sqrt(raw * (1 - raw) / SAMPLES)
        naive = np.abs(raw - made.truth) <= half
        held.append((((low <= made.truth) & (made.truth <= high)).mean(), naive.mean()))
    ours, theirs = np.mean(held, axis=0)
    return float(ours), float(theirs)


def accuracy(
    classes: int,
    worlds: int,
    seed: int,
    n: int = 20_000,
    calibration: int = 5000,
    accuracies: tuple[float, float] = ACCURACIES,
) -> dict[str, float]:
    """Mean total variation from the truth of the raw shares, of each way of correcting them, and of the best one."""
    rng, errors = np.random.default_rng(seed), []
    for number in range(worlds):
        made = world(rng, classes, rng.uniform(*accuracies), n, calibration)
        found, raw = corrected(made.counts, made.confusion, number, 200), made.counts / n
        shares = {
            "raw": raw,
            "corrected": found.shares,
            "best": raw if raw_is_better(made.counts, found) else found.shares,
            "probabilistic": solve(made.soft_confusion, made.soft),
            "maximisation": made.maximised,
        }
        errors.append({name: np.abs(value - made.truth).sum() / 2 for name, value in shares.items()})
    return {name: float(np.mean([error[name] for error in errors])) for name in errors[0]}
