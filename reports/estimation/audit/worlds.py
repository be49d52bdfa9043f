"""Simulated audits with a known truth, by which their intervals are checked (`fairface bench audit`, tests).

A generator produces faces of K classes, one of which may have a share of 1 %. A labeller labels all samples, with error
rates that differ from those on the photographs that its correction rests on. Raters label a few samples; each errs in
their own way. The true shares are those that raters see on average: without errors, those of the classes.
"""

from dataclasses import dataclass

import numpy as np

from reports.estimation.audit.shares import AuditedFaces, AuditEstimate, estimate_audit
from reports.estimation.correction import Correction, correct_shares

SAMPLES, PHOTOGRAPHS = 5000, 3000
RARE = 0.01  # share of the rare class in every other world
RATER_ERRORS = (0.01, 0.08)  # error rates of raters
CONFIDENT = 0.5  # how much rarer a labeller's errors are among the half that it is more confident of
FLOOR = 5  # labels of each stratum, at least, in a stratified plan
DESIGNS = ("uniform", "stratified", "active")


@dataclass(frozen=True)
class AuditScenario:
    """One kind of world."""

    classes: int
    accuracy: float  # of the labeller, on generated faces
    labels: int  # faces that are labelled by humans
    raters: int = 1  # with errors, unless 0: then one without
    design: str = "uniform"


@dataclass(frozen=True)
class AuditWorld:
    """A world's data and its truth."""

    truth: np.ndarray  # shares of the generator as raters see them, [K]
    faces: AuditedFaces
    correction: Correction  # of the labels of all samples by the error rates on photographs


@dataclass(frozen=True)
class AuditCoverage:
    """How often 95 % intervals contain the truth, and their widths, by estimate: human, powered and corrected."""

    covered: dict[str, float]
    rare: dict[str, float]  # coverage of the class of 1 %
    width: dict[str, float]
    variance: dict[str, float]  # mean squared error of the shares, summed over the classes
    wider: float  # share of the worlds in which PPI++ is more than 5 % wider than human labels alone


def error_rates(generator: np.random.Generator, classes: int, accuracy: float) -> np.ndarray:
    """A labeller's rates of labels by class, [K, K], with about this accuracy: errors go to some classes more often."""
    spread = min(accuracy, 1 - accuracy) / 2
    right = np.clip(accuracy + generator.uniform(-spread, spread, classes), 0.02, 0.995)
    wrong = generator.dirichlet(np.ones(classes), size=classes) * (1 - np.eye(classes))
    wrong /= wrong.sum(1, keepdims=True)
    return np.diag(right) + (1 - right)[:, None] * wrong


def simulate_audit(generator: np.random.Generator, scenario: AuditScenario, *, is_rare: bool) -> AuditWorld:
    """Simulate a generator, a labeller, photographs, a plan and raters."""
    classes = scenario.classes
    shares = generator.dirichlet(np.full(classes, 2.0))
    if is_rare:
        shares = np.append((1 - RARE) * generator.dirichlet(np.full(classes - 1, 2.0)), RARE)
    rates, photo_rates = (error_rates(generator, classes, scenario.accuracy) for _ in range(2))
    true = generator.choice(classes, SAMPLES, p=shares)
    labels, is_confident = label_faces(generator, true, rates)
    annotated = np.append(generator.choice(classes, PHOTOGRAPHS), np.arange(classes))
    labelled, _ = label_faces(generator, annotated, photo_rates)
    confusion = np.zeros((classes, classes), int)
    np.add.at(confusion, (annotated, labelled), 1)
    counts = np.bincount(labels, minlength=classes)
    chosen, probability, strata = choose_faces(generator, scenario, labels=labels, is_confident=is_confident)
    truth, ratings = rate_faces(generator, true[chosen], shares=shares, raters=scenario.raters)
    faces = AuditedFaces(
        ratings, labels[chosen], strata[chosen], probability=probability[chosen], label_counts=np.append(counts, 0)
    )
    return AuditWorld(truth, faces, correct_shares(counts, confusion, seed=0, replicates=300))


def label_faces(generator: np.random.Generator, true: np.ndarray, rates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels of faces of the classes `true`, and whether the labeller is confident of each: errors are rarer there."""
    is_confident = generator.random(len(true)) < 0.5
    error = (1 - rates[np.arange(len(rates)), np.arange(len(rates))])[true]
    error = np.clip(error * np.where(is_confident, 1 - CONFIDENT, 1 + CONFIDENT), 0, 1)
    wrong = rates * (1 - np.eye(len(rates)))
    cumulative = (wrong / np.maximum(wrong.sum(1, keepdims=True), 1e-12)).cumsum(1)[true]
    other = (generator.random((len(true), 1)) > cumulative[:, :-1]).sum(1)
    return np.where(generator.random(len(true)) < error, other, true), is_confident


def choose_faces(
    generator: np.random.Generator, scenario: AuditScenario, *, labels: np.ndarray, is_confident: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The chosen faces, the probability of every face, and its stratum."""
    n, size = scenario.labels, len(labels)
    if scenario.design == "active":
        error = np.where(is_confident, 1 - CONFIDENT, 1 + CONFIDENT)
        probability = np.minimum(n * error / error.sum(), 1)
        chosen = np.argsort(generator.random(size) / probability)[:n]
        return chosen, probability, np.zeros(size, int)
    strata = np.unique(2 * labels + is_confident, return_inverse=True)[1]
    if scenario.design == "uniform":
        strata = np.zeros(size, int)
    sizes = np.bincount(strata)
    planned = np.minimum(np.maximum(np.floor(n * sizes / size), min(FLOOR, n // len(sizes))), sizes).astype(int)
    while planned.sum() > n:
        planned[np.argmax(planned)] -= 1
    order = np.lexsort([generator.random(size), strata])
    rank = np.empty(size, int)
    rank[order] = np.arange(size) - (sizes.cumsum() - sizes)[strata[order]]
    return np.flatnonzero(rank < planned[strata]), (planned / sizes)[strata], strata


def rate_faces(
    generator: np.random.Generator, true: np.ndarray, *, shares: np.ndarray, raters: int
) -> tuple[np.ndarray, np.ndarray]:
    """The shares that raters see, and the ratings of faces of the classes `true`, [n, R].

    With several raters the shares are those that raters see on average; with one, those that this rater sees.
    """
    classes = len(shares)
    if not raters:
        return shares, true[:, None]
    ratings, seen = [], []
    for _ in range(raters):
        # which classes a rater mistakes for which differs between raters
        rates = rater_rates(generator, classes)
        cumulative = rates.cumsum(1)[true]
        ratings.append((generator.random((len(true), 1)) > cumulative[:, :-1]).sum(1))
        seen.append(shares @ rates)
    if raters == 1:
        return seen[0], np.stack(ratings, 1)
    error = np.mean(RATER_ERRORS)
    return shares * (1 - error) + (1 - shares) * error / max(classes - 1, 1), np.stack(ratings, 1)


def rater_rates(generator: np.random.Generator, classes: int) -> np.ndarray:
    """A rater's rates of answers by class, [K, K]. The mean over raters has the same errors for all classes."""
    wrong = 1 - np.eye(classes)
    off = wrong * generator.gamma(2.0, size=(classes, classes))
    off /= off.sum(1, keepdims=True)
    errors = generator.uniform(*RATER_ERRORS, size=(classes, 1))
    return np.eye(classes) * (1 - errors) + errors * off


def measure_audits(scenario: AuditScenario, worlds: int, *, seed: int, replicates: int = 400) -> AuditCoverage:
    """Simulate so many worlds of a scenario; every other one has a class of 1 %."""
    names = ("human", "powered", "corrected")
    covered, rare, width, error = ({name: list[float]() for name in names} for _ in range(4))
    wider = []
    for number in range(worlds):
        generator = np.random.default_rng([seed, scenario.classes, scenario.labels, number])
        is_rare = number % 2 == 1
        world = simulate_audit(generator, scenario, is_rare=is_rare)
        estimate = estimate_audit(world.faces, seed=number, replicates=replicates)
        for name, shares, (low, high) in zip(names, *_estimates(estimate, world), strict=True):
            inside = (low <= world.truth) & (world.truth <= high)
            covered[name].append(inside.mean())
            if is_rare:
                rare[name].append(inside[-1])
            width[name].append((high - low).mean())
            error[name].append(((shares - world.truth) ** 2).sum())
        wider.append(width["powered"][-1] > 1.05 * width["human"][-1])
    means = [{name: float(np.mean(values[name])) for name in names} for values in (covered, rare, width, error)]
    return AuditCoverage(means[0], means[1], means[2], means[3], float(np.mean(wider)))


def _estimates(
    estimate: AuditEstimate, world: AuditWorld
) -> tuple[list[np.ndarray], list[tuple[np.ndarray, np.ndarray]]]:
    """The shares and intervals of the human labels alone, of PPI++, and of the correction."""
    every = (estimate.human, estimate.powered, world.correction)
    return [item.shares for item in every], [item.interval() for item in every]
