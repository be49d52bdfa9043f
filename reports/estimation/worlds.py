"""Worlds in which the mix of several attributes shifts at once, which test the coverage of the corrected shares.

The faces of a population have classes and labels of several attributes. Calibration images are chosen from it at
random. The samples of a world are chosen with weights, each the product of random shares (Dirichlet) of the classes of
the shifted attributes. This keeps the population's associations between attributes; a scenario may also remove them,
which is a strong interaction.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from reports.estimation.correction import Correction, correct_shares
from reports.estimation.stratified import (
    REPLICATES,
    CalibrationFaces,
    choose_strata,
    correct_stratified,
    count_codes,
    stratify,
)
from shards.errors import FairfaceError

SAMPLES = 2000
LABELLED_PREFIX = "labelled_"
SIMULATED_FACES = 20_000
SIMULATED_CLASSES = {"gender": 2, "age": 4, "race": 3}


@dataclass(frozen=True)
class Scenario:
    """How the samples differ from the population, and the number of calibration images."""

    attribute: str  # the attribute that is estimated; its shares shift
    shifted: tuple[str, ...] = ()  # other attributes whose shares shift
    independent: bool = False  # whether all attributes that shift are independent of each other among the samples
    calibration: int = 3000  # images


@dataclass(frozen=True)
class WorldCoverage:
    """How often 95 % intervals cover true shares, averaged over the classes, and their mean width."""

    stratified: float
    one_matrix: float
    width: float  # of the stratified intervals
    one_matrix_width: float


def read_population(path: Path) -> CalibrationFaces:
    """Read a CSV with a column for each attribute's class, and one with the prefix `labelled_` for its label.

    Faces without a class are left out; a label that is missing or is not one of the classes counts as unsure. Raises
    FairfaceError if the file can't be read, or has no such pair of columns, or no faces.
    """
    try:
        table = pl.read_csv(path, infer_schema=False, glob=False)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, UnicodeError) as error:
        raise FairfaceError(f"{path} can't be read as CSV ({(str(error).splitlines() or [''])[0][:200]})") from error
    names = [name for name in table.columns if LABELLED_PREFIX + name in table.columns]
    if not names:
        raise FairfaceError(f"{path} has no attribute with its labels: columns such as gender and labelled_gender")
    table = table.drop_nulls(names)
    if table.is_empty():
        raise FairfaceError(f"{path} has no face with a class of {' and '.join(names)}")
    groups = {name: sorted(table[name].unique()) for name in names}

    def codes(column: str, name: str) -> np.ndarray:
        index = {group: code for code, group in enumerate(groups[name])}
        return table[column].replace_strict(index, default=len(index), return_dtype=pl.Int64).to_numpy()

    return CalibrationFaces(
        {name: codes(name, name) for name in names},
        {name: codes(LABELLED_PREFIX + name, name) for name in names},
        {name: len(groups[name]) for name in names},
    )


def simulate_population(seed: int) -> CalibrationFaces:
    """Faces whose labeller's error rates depend on the other attributes: on age most of all."""
    rng = np.random.default_rng(seed)
    names = list(SIMULATED_CLASSES)
    codes = {
        name: rng.choice(size, SIMULATED_FACES, p=rng.dirichlet(np.full(size, 5)))
        for name, size in SIMULATED_CLASSES.items()
    }
    labels = {}
    for name in names:
        size = SIMULATED_CLASSES[name]
        error = 0.05 + 0.3 * (codes["age"] == 0) if name != "age" else 0.1 + 0.25 * (codes["race"] == 0)
        other = (codes[name] + rng.integers(1, size, SIMULATED_FACES)) % size
        labels[name] = np.where(rng.random(SIMULATED_FACES) < error, other, codes[name])
    return CalibrationFaces(codes, labels, dict(SIMULATED_CLASSES))


def measure_coverage(population: CalibrationFaces, scenario: Scenario, *, worlds: int) -> WorldCoverage:
    """Coverage of the attribute's corrected shares, on average over a number of worlds."""
    return mean_coverage(simulate_worlds(population, scenario, range(worlds)))


def mean_coverage(worlds: Sequence[tuple[float, ...]]) -> WorldCoverage:
    """The mean over worlds of what `simulate_worlds` returns for each."""
    return WorldCoverage(*np.mean(worlds, 0).tolist())


def simulate_worlds(
    population: CalibrationFaces, scenario: Scenario, numbers: Sequence[int]
) -> list[tuple[float, ...]]:
    """The fields of `WorldCoverage` for each of some worlds; a world is a function of its number."""
    results = []
    for number in numbers:
        rng = np.random.default_rng([number, scenario.calibration, len(scenario.shifted)])
        truth, corrections = simulate_world(rng, population, scenario)
        ends = [correction.interval() for correction in corrections]
        covered = [float(((low <= truth) & (truth <= high)).mean()) for low, high in ends]
        results.append((*covered, *(float((high - low).mean()) for low, high in ends)))
    return results


def simulate_world(
    rng: np.random.Generator, population: CalibrationFaces, scenario: Scenario
) -> tuple[np.ndarray, tuple[Correction, Correction]]:
    """The true shares of a world's samples, and their correction: stratified, and by one matrix."""
    names = (scenario.attribute, *scenario.shifted)
    codes, sizes = [population.annotated[name] for name in names], [population.classes[name] for name in names]
    weights = np.ones(len(codes[0]))
    for code, size in zip(codes, sizes, strict=True):
        weights *= rng.dirichlet(np.ones(size))[code]
    if scenario.independent:
        weights /= count_codes(codes, sizes)[tuple(codes)]
    weights /= weights.sum()
    images = rng.integers(0, len(weights), scenario.calibration)
    samples = rng.choice(len(weights), SAMPLES, p=weights)
    truth = np.bincount(codes[0], weights, minlength=sizes[0])
    return truth, correct_world(population, scenario.attribute, images=images, samples=samples)


def correct_world(
    population: CalibrationFaces, attribute: str, *, images: np.ndarray, samples: np.ndarray
) -> tuple[Correction, Correction]:
    """The corrections of the labels of `samples` by the calibration `images`: stratified, and by one matrix."""
    faces = CalibrationFaces(
        {name: codes[images] for name, codes in population.annotated.items()},
        {name: codes[images] for name, codes in population.labelled.items()},
        population.classes,
    )
    confusion = faces.table([attribute], attribute)
    labels = np.bincount(population.labelled[attribute][samples], minlength=confusion.shape[1])
    classes = len(confusion)
    one_matrix = correct_shares(labels[:classes], confusion, seed=0, replicates=REPLICATES)
    candidates = {name: {name} for name in faces.classes if name != attribute}
    strata = choose_strata(faces, attribute, candidates=candidates)
    if not strata:
        return one_matrix, one_matrix
    names = (attribute, *strata)
    counts = count_codes(
        [population.labelled[name][samples] for name in names], [faces.classes[name] + 1 for name in names]
    )
    return correct_stratified(stratify(faces, names, labels=counts), seed=0), one_matrix
