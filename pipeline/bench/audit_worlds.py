"""Simulated audits with a known truth, against which their intervals are checked (`fairface bench audit`, tests).

A generator produces faces of K classes, one of which may have a share of 1 %. A labeller labels all samples, with error
rates that differ from those on the photographs that its correction rests on. Raters label a few samples; each errs in
their own way. The true shares are those that raters see on average: without errors, those of the classes.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import polars as pl

from pipeline.audit.design import by_expected_error, choose, equal_sizes, stratify
from reports.estimation.audit.shares import AuditedFaces, estimate_audit
from reports.estimation.correction import Correction, correct_shares
from reports.estimation.stratified import CalibrationFaces, count_codes
from shards.audit import DESIGNS

SAMPLES, PHOTOGRAPHS = 5000, 3000
RARE = 0.01  # share of the rare class in every other world
RATER_ERRORS = (0.01, 0.08)  # error rates of raters
CONFIDENT = 0.5  # a labeller's errors are rarer by this part where it is confident, and more frequent elsewhere


@dataclass(frozen=True)
class AuditScenario:
    """One kind of world."""

    classes: int
    accuracy: float  # of the labeller, on generated faces; unknown for real faces
    labels: int  # faces that are labelled by humans
    raters: int = 1  # who make errors; 0: a single one who makes none
    design: str = "uniform"


@dataclass(frozen=True)
class AuditWorld:
    """A world's data and its truth."""

    truth: np.ndarray  # shares of the generator as raters see them, [K]
    shares: np.ndarray  # of the true classes, [K]
    faces: AuditedFaces
    correction: Correction  # of the labels of all samples by the error rates on photographs
    is_rare: bool = False  # whether the last class has a share of RARE


@dataclass(frozen=True)
class AuditCoverage:
    """How often 95 % intervals contain the truth, and their widths, by estimate: human, powered and corrected."""

    covered: dict[str, float]
    rare: dict[str, float]  # coverage of the class of 1 %
    width: dict[str, float]
    common_width: dict[str, float]  # in worlds without a class of 1 %
    wider: float  # share of the worlds in which PPI++ is more than 5 % wider than human labels alone
    classes_seen: float  # how often intervals by PPI++ contain the shares of the true classes


def error_rates(generator: np.random.Generator, classes: int, accuracy: float) -> np.ndarray:
    """A labeller's rates of labels by class, [K, K], with about this accuracy: errors go to some classes more often."""
    spread = min(accuracy, 1 - accuracy) / 2
    right = np.clip(accuracy + generator.uniform(-spread, spread, classes), 0.02, 0.995)
    wrong = generator.dirichlet(np.ones(classes), size=classes) * (1 - np.eye(classes))
    wrong /= wrong.sum(1, keepdims=True)
    return np.diag(right) + (1 - right)[:, None] * wrong


def world_generators(
    scenario: AuditScenario, *, seed: int, number: int
) -> tuple[np.random.Generator, np.random.Generator]:
    """The generators of a world's true shares, which all scenarios have in common, and of everything else."""
    options = (scenario.labels, scenario.raters, DESIGNS.index(scenario.design), round(100 * scenario.accuracy))
    return np.random.default_rng([seed, number]), np.random.default_rng([seed, number, *options])


def simulate_audit(
    generators: tuple[np.random.Generator, np.random.Generator], scenario: AuditScenario, *, is_rare: bool
) -> AuditWorld:
    """Simulate a generator, a labeller, photographs, a plan and raters."""
    of_shares, generator = generators
    classes = scenario.classes
    shares = of_shares.dirichlet(np.full(classes, 2.0))
    if is_rare:
        shares = np.append((1 - RARE) * of_shares.dirichlet(np.full(classes - 1, 2.0)), RARE)
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
    return AuditWorld(truth, shares, faces, correct_shares(counts, confusion, seed=0, replicates=300), is_rare)


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
    """The faces that `fairface audit plan` would choose, the probability of every face, and its stratum."""
    confidence = np.where(is_confident, 0.9, 0.6) + 0.1 * generator.random(len(labels))
    table = pl.DataFrame({"a": labels.astype(str), "p_a": confidence})
    strata = {
        "uniform": lambda: equal_sizes(len(labels)),
        "stratified": lambda: stratify(table, ["a"], count=scenario.labels),
        "active": lambda: by_expected_error(table, ["a"]),
    }[scenario.design]()
    choice = choose(strata, generator.random(len(labels)), [scenario.labels])
    return np.flatnonzero(choice.rounds >= 0), choice.probabilities, strata.index


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
    """Simulate this number of `worlds` of a scenario; every other one has a class of 1 %."""
    simulated = (
        simulate_audit(world_generators(scenario, seed=seed, number=number), scenario, is_rare=number % 2 == 1)
        for number in range(worlds)
    )
    return measure_worlds(simulated, replicates=replicates)


def measure_labelled_faces(
    population: CalibrationFaces, scenario: AuditScenario, worlds: int, *, attribute: str
) -> AuditCoverage:
    """Measure audits of an attribute in this number of `worlds`, resampled from labelled real faces."""
    simulated = (resample_audit(population, scenario, attribute=attribute, number=number) for number in range(worlds))
    return measure_worlds(simulated)


def resample_audit(population: CalibrationFaces, scenario: AuditScenario, *, attribute: str, number: int) -> AuditWorld:
    """A world whose samples are real faces, with weights that are products of random shares of all attributes.

    The labeller's errors on the samples thus differ from those on the photographs, which are chosen at random.
    """
    generator = np.random.default_rng([number, scenario.labels])
    true, labels, classes = (getattr(population, name)[attribute] for name in ("annotated", "labelled", "classes"))
    weights = np.ones(len(true))
    for name, codes in population.annotated.items():
        weights *= generator.dirichlet(np.full(population.classes[name], 2.0))[codes]
    weights /= weights.sum()
    samples = generator.choice(len(true), SAMPLES, p=weights)
    photographs = generator.integers(0, len(true), PHOTOGRAPHS)
    confusion = count_codes([true[photographs], np.minimum(labels[photographs], classes)], [classes, classes + 1])
    shares = np.bincount(true, weights, minlength=classes)
    is_confident = generator.random(SAMPLES) < 0.5  # the labeller's confidence is unknown
    chosen, probability, strata = choose_faces(generator, scenario, labels=labels[samples], is_confident=is_confident)
    counts = np.bincount(labels[samples], minlength=classes + 1)
    faces = AuditedFaces(
        true[samples][chosen][:, None], labels[samples][chosen], strata[chosen], probability[chosen], counts
    )
    columns = classes + bool(confusion[:, -1].any() or counts[-1])
    correction = correct_shares(counts[:columns], confusion[:, :columns], seed=0, replicates=300)
    return AuditWorld(shares, shares, faces, correction)


def measure_worlds(worlds: Iterable[AuditWorld], *, replicates: int = 400) -> AuditCoverage:
    """The coverage and width of 95 % intervals, on average over worlds and classes."""
    names = ("human", "powered", "corrected")
    covered, rare, width, common_width = ({name: list[float]() for name in names} for _ in range(4))
    wider, seen = [], []
    for number, world in enumerate(worlds):
        estimate = estimate_audit(world.faces, seed=number, replicates=replicates)
        low, high = estimate.powered.interval()
        seen.append(((low <= world.shares) & (world.shares <= high)).mean())
        intervals = (estimate.human.interval(), estimate.powered.interval(), world.correction.interval())
        for name, (low, high) in zip(names, intervals, strict=True):
            inside = (low <= world.truth) & (world.truth <= high)
            covered[name].append(inside.mean())
            width[name].append((high - low).mean())
            if world.is_rare:
                rare[name].append(inside[-1])
            else:
                common_width[name].append(width[name][-1])
        wider.append(width["powered"][-1] > 1.05 * width["human"][-1])
    means = [
        {name: float(np.mean(values)) if values else np.nan for name, values in measure.items()}
        for measure in (covered, rare, width, common_width)
    ]
    return AuditCoverage(
        means[0], means[1], means[2], means[3], wider=float(np.mean(wider)), classes_seen=float(np.mean(seen))
    )
