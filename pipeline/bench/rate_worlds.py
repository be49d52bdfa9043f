"""Worlds in which a detector classifies a generator's samples, which test detection rates (`fairface bench`, tests).

A labeller labels the samples; its error rates are measured on calibration images. In every other world, the detector
calls all groups fake at the same rate. The true rates are the probabilities with which the groups' faces are called
fake.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from pipeline.bench.audit_worlds import AuditScenario, choose_faces, error_rates, label_faces
from reports.estimation.audit.shares import AuditedFaces
from reports.estimation.correction import MAX_CONDITION, Correction, correct_shares
from reports.estimation.detection_rates import RateEstimate, count_decisions, rates_by_audit, rates_by_labels
from reports.estimation.intervals import wilson
from reports.estimation.stratified import REPLICATES, CalibrationFaces
from reports.estimation.worlds import correct_world
from shards.audit import DESIGNS

LEVELS = (0.0, 2.0)  # mean logit of the groups' rates
DEPENDENT_ERRORS = 0.3  # of the faces that are called fake: in simulated audits, they are labelled as the first class


@dataclass(frozen=True)
class RateScenario:
    """One kind of world."""

    samples: int
    calibration: int = 3000  # images
    classes: int = 0  # of a simulated attribute
    accuracy: float = 0  # of the labeller of a simulated attribute
    attribute: str = ""  # of real faces
    is_confounded: bool = False  # whether decisions on real faces depend on the other attributes, as errors do
    labels: int = 0  # faces that people label; 0: no audit
    design: str = "uniform"

    def describe(self) -> str:
        """The scenario in the words of a row."""
        if self.labels:
            parts = [f"{self.labels} of {self.samples:,} samples", self.design]
        else:
            parts = [f"{self.samples:,} samples"]
        if self.attribute:
            return ", ".join([*parts, *["decisions by other attributes"] * self.is_confounded])
        return ", ".join([*parts, f"{self.calibration:,} calibrated", f"accuracy {self.accuracy}"])

    def generator(self, number: int) -> np.random.Generator:
        """The random numbers of a world."""
        options = (self.samples, self.calibration, self.classes, round(100 * self.accuracy), self.is_confounded)
        names = (self.labels, DESIGNS.index(self.design), *self.attribute.encode())
        return np.random.default_rng([number, *options, *names])


@dataclass(frozen=True)
class RateWorld:
    """The N samples of a world, and the truth."""

    rates: np.ndarray  # of the K groups, float64 [K]
    true: np.ndarray  # classes, int [N]
    labels: np.ndarray  # int [N]; K for unsure
    called_fake: np.ndarray  # bool [N]
    correction: Correction  # of the labels

    @property
    def counts(self) -> np.ndarray:
        """The samples by decision and label, [2, K + 1]."""
        return count_decisions(self.called_fake.astype(int), self.labels, classes=len(self.rates))


def simulate_rates(scenario: RateScenario, number: int, *, generator: np.random.Generator) -> RateWorld:
    """A world of a single attribute, with random shares, rates and error rates."""
    classes = scenario.classes
    shares, rates = generator.dirichlet(np.full(classes, 2.0)), random_rates(generator, classes, number)
    matrix = error_rates(generator, classes, scenario.accuracy)
    true = generator.choice(classes, scenario.samples, p=shares)
    annotated = np.append(generator.choice(classes, scenario.calibration), np.arange(classes))
    (labels, _), (labelled, _) = (label_faces(generator, faces, matrix) for faces in (true, annotated))
    called_fake = generator.random(scenario.samples) < rates[true]
    if scenario.labels:
        labels = add_dependent_errors(generator, labels, called_fake)
    confusion = np.zeros((classes, classes), int)
    np.add.at(confusion, (annotated, labelled), 1)
    counts = np.bincount(labels, minlength=classes)
    return RateWorld(
        rates, true, labels, called_fake, correct_shares(counts, confusion, seed=number, replicates=REPLICATES)
    )


def resample_rates(
    population: CalibrationFaces, scenario: RateScenario, number: int, *, generator: np.random.Generator
) -> RateWorld:
    """A world whose samples are real faces, with weights that are products of random shares of all attributes."""
    true, classes = population.annotated[scenario.attribute], population.classes[scenario.attribute]
    rates = random_rates(generator, classes, number)
    weights, logits = np.ones(len(true)), np.zeros(len(true))
    for name, codes in population.annotated.items():
        weights *= generator.dirichlet(np.ones(population.classes[name]))[codes]
        if scenario.is_confounded and name != scenario.attribute:
            logits += generator.normal(size=population.classes[name])[codes]
    weights /= weights.sum()
    probabilities = with_means(1 / (1 + np.exp(-logits)), true, weights=weights, means=rates)
    images = generator.integers(0, len(true), scenario.calibration)
    samples = generator.choice(len(true), scenario.samples, p=weights)
    called_fake = generator.random(scenario.samples) < probabilities[samples]
    labels = population.labelled[scenario.attribute][samples]
    correction, _ = correct_world(population, scenario.attribute, images=images, samples=samples)
    return RateWorld(rates, true[samples], labels, called_fake, correction)


def random_rates(generator: np.random.Generator, classes: int, number: int) -> np.ndarray:
    """The rates of a world's groups, [K]; in odd worlds, they are all the same."""
    spread = 0 if number % 2 else 1
    rates: np.ndarray = 1 / (1 + np.exp(-LEVELS[number // 2 % 2] - spread * generator.normal(size=classes)))
    return rates


def with_means(probabilities: np.ndarray, true: np.ndarray, *, weights: np.ndarray, means: np.ndarray) -> np.ndarray:
    """Faces' probabilities, [N], scaled towards 0 or 1 so that the weighted means of the classes are `means`, [K]."""
    present = np.bincount(true, weights * probabilities, len(means)) / np.bincount(true, weights, len(means))
    lower = (means / present)[true] * probabilities
    higher = 1 - ((1 - means) / (1 - present))[true] * (1 - probabilities)
    scaled: np.ndarray = np.where((means < present)[true], lower, higher)
    return scaled


def add_dependent_errors(generator: np.random.Generator, labels: np.ndarray, called_fake: np.ndarray) -> np.ndarray:
    """Labels of which a part depends on the decisions, so that no error rates of photographs can correct them."""
    return np.where(called_fake & (generator.random(len(labels)) < DEPENDENT_ERRORS), 0, labels)


def measure_rates(
    scenario: RateScenario, numbers: Iterable[int], *, population: CalibrationFaces | None = None
) -> list[dict[str, float]]:
    """The coverage of true rates by 95 % intervals in some worlds of a scenario, by estimate.

    The estimates are raw (Wilson's intervals), corrected, unwidened (corrected, without the factor WIDENING) and
    audited. Labels that a report would not correct have only the first. In worlds of equal rates, `exceeds` is 1 if the
    gap exceeds its floor, otherwise 0.
    """
    results = []
    for number in numbers:
        generator = scenario.generator(number)
        if population:
            world = resample_rates(population, scenario, number, generator=generator)
        else:
            world = simulate_rates(scenario, number, generator=generator)
        counts, estimate = world.counts, None
        intervals = {"raw": wilson(counts[1, :-1], counts[:, :-1].sum(0))}
        if world.correction.condition <= MAX_CONDITION:
            used = counts if counts[:, -1].any() else counts[:, :-1]
            estimate = rates_by_labels(used, world.correction)
            intervals["corrected"] = estimate.interval()
            intervals["unwidened"] = rates_by_labels(used, world.correction, widening=1).interval()
        if scenario.labels:
            estimate = audit_rates(world, scenario, generator=generator)
            intervals["audited"] = estimate.interval()
        measured = {
            name: float(((low <= world.rates) & (world.rates <= high)).mean())
            for name, (low, high) in intervals.items()
        }
        if number % 2 and estimate:
            gap = estimate.gap()
            if gap["value"] is not None and gap["floor"] is not None:
                measured["exceeds"] = float(gap["value"] > gap["floor"])
        results.append(measured)
    return results


def audit_rates(world: RateWorld, scenario: RateScenario, *, generator: np.random.Generator) -> RateEstimate:
    """The rates by the labels of people, who make no errors."""
    audit = AuditScenario(len(world.rates), scenario.accuracy, scenario.labels, raters=0, design=scenario.design)
    is_confident = generator.random(len(world.labels)) < 0.5
    chosen, probability, strata = choose_faces(generator, audit, labels=world.labels, is_confident=is_confident)
    faces = AuditedFaces(
        world.true[chosen][:, None],
        world.labels[chosen],
        strata[chosen],
        probability=probability[chosen],
        label_counts=world.counts.sum(0),
    )
    return rates_by_audit(faces, world.called_fake[chosen], counts=world.counts)
