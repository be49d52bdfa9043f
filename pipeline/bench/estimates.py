"""Benchmark of the estimates' quality in simulated studies: coverage of intervals, error of corrected shares and rates.

The studies run on all cores, in processes with one thread each.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import replace
from functools import partial
from itertools import product
from statistics import fmean
from typing import Any, TypeVar

from threadpoolctl import threadpool_limits

from pipeline.bench.context import BenchContext
from pipeline.bench.measure import Row
from pipeline.bench.rate_worlds import RateScenario, measure_rates
from reports.estimation import simulation, worlds
from reports.estimation.attribute_estimate import MAX_GROUPS
from reports.estimation.stratified import CalibrationFaces
from reports.estimation.worlds import Scenario
from shards.concurrency import available_cpus
from shards.processes import worker_pool

CLASSES = (2, 3, 5, 10, 14, MAX_GROUPS)
STUDIES = 400
WORLDS_PER_JOB = 10  # simulated by one call in a worker process
CALIBRATION_SIZES = (3000, 500, 10_000)  # images; the first gives the values of a row, the others are in its note
RATE_CLASSES = (2, 3, 5, 10)  # groups whose detection rates are estimated
RATE_SAMPLES, RATE_CALIBRATION_SIZES, RATE_ACCURACIES = (500, 2000), (500, 3000), (0.65, 0.8, 0.97)
ESTIMATES = {  # of detection rates, as in `measure_rates`
    "raw": "by the labels alone",
    "corrected": "by corrected labels",
    "unwidened": "without widening",
    "audited": "by people's labels",
}

R = TypeVar("R")
PendingRow = Callable[[], Row]  # waits for the jobs that the row is computed from
MeasuredRates = list["Future[list[dict[str, float]]]"]


def bench_estimates(context: BenchContext) -> Iterator[Row]:
    """Measure coverage and accuracy of corrected shares and detection rates next to those of the labels alone."""
    simulated, count = worlds.simulate_population(0), context.worlds.count
    with worker_pool(available_cpus(), preload=__name__) as pool:
        # all jobs are submitted before the first row is awaited, so that no core is idle
        rows = [*submit_studies(pool)]
        rows += submit_worlds(pool, simulated, scenarios=shift_scenarios(simulated, "gender"), count=count)
        for classes in RATE_CLASSES:
            jobs = submit_rates(pool, simulated_rates(classes), count=count)
            rows.append(partial(rates_row, "estimates", f"{classes} groups", jobs=jobs))
        if context.worlds.labelled_faces:
            real = worlds.read_population(context.worlds.labelled_faces)
            for attribute in real.classes:
                shifts = shift_scenarios(real, attribute) + independent_scenarios(real, attribute)
                rows += submit_worlds(pool, real, scenarios=shifts, count=count, faces="real faces")
                jobs = submit_rates(pool, real_rates(attribute), count=count, population=real)
                rows.append(partial(rates_row, "estimates", f"real faces, {attribute}", jobs=jobs))
        for row in rows:
            yield row()


def submit_studies(pool: Executor) -> Iterator[PendingRow]:
    """Submit the simulated studies of a single attribute."""
    for classes in CLASSES:
        yield partial(coverage_row, classes, submit(pool, simulation.interval_coverage, classes, STUDIES, seed=classes))
    study_errors = partial(submit, pool, simulation.estimate_errors)
    for classes in CLASSES:
        errors = study_errors(classes, STUDIES // 4, seed=classes)
        yield partial(error_row, classes, errors, note="20,000 samples, 5,000 calibrated")
    errors = study_errors(10, STUDIES // 4, seed=1, n=2000, calibration=500, accuracies=(0.95, 0.95))
    yield partial(error_row, 10, errors, note="2,000 samples, 500 calibrated, accuracy 0.95")


def submit(pool: Executor, function: Callable[..., R], *arguments: Any, **options: Any) -> "Future[R]":
    """Submit a call to the pool, in which it uses a single thread."""
    return pool.submit(call_single_threaded, partial(function, *arguments, **options))


def call_single_threaded(function: Callable[[], R]) -> R:
    """Call a function with one BLAS thread, because every core already runs a process."""
    with threadpool_limits(1):
        return function()


def shift_scenarios(population: CalibrationFaces, attribute: str) -> list[Scenario]:
    """Scenarios in which the attribute shifts alone, with each one of the others, and with all of the others."""
    others = [other for other in population.classes if other != attribute]
    return [
        Scenario(attribute, shifted) for shifted in dict.fromkeys([(), *((other,) for other in others), tuple(others)])
    ]


def independent_scenarios(population: CalibrationFaces, attribute: str) -> list[Scenario]:
    """Scenarios in which the attribute shifts with one of the others, and the two become independent."""
    return [Scenario(attribute, (other,), independent=True) for other in population.classes if other != attribute]


def submit_worlds(
    pool: Executor,
    population: CalibrationFaces,
    *,
    scenarios: Sequence[Scenario],
    count: int,
    faces: str = "simulated faces",
) -> Iterator[PendingRow]:
    """Submit `count` worlds of each scenario, for each number of calibration images."""
    for scenario in scenarios:
        jobs = {
            size: [
                submit(pool, worlds.simulate_worlds, population, replace(scenario, calibration=size), numbers)
                for numbers in batched_range(count)
            ]
            for size in CALIBRATION_SIZES
        }
        yield partial(world_row, faces, scenario, jobs)


def simulated_rates(classes: int) -> list[RateScenario]:
    """The scenarios of detection rates of simulated groups."""
    options = product(RATE_SAMPLES, RATE_CALIBRATION_SIZES, RATE_ACCURACIES)
    return [RateScenario(samples, calibration, classes, accuracy) for samples, calibration, accuracy in options]


def real_rates(attribute: str) -> list[RateScenario]:
    """The scenarios of detection rates of real faces."""
    return [
        RateScenario(samples, attribute=attribute, is_confounded=is_confounded)
        for samples, is_confounded in product(RATE_SAMPLES, (False, True))
    ]


def submit_rates(
    pool: Executor, scenarios: Sequence[RateScenario], *, count: int, population: CalibrationFaces | None = None
) -> dict[RateScenario, MeasuredRates]:
    """Submit `count` worlds of each scenario of detection rates."""
    return {
        scenario: [
            submit(pool, measure_rates, scenario, numbers, population=population) for numbers in batched_range(count)
        ]
        for scenario in scenarios
    }


def batched_range(count: int) -> list[range]:
    """The numbers from 0 to `count` - 1, in ranges of `WORLDS_PER_JOB`."""
    return [range(start, min(start + WORLDS_PER_JOB, count)) for start in range(0, count, WORLDS_PER_JOB)]


def world_row(faces: str, scenario: Scenario, jobs: dict[int, list["Future[list[tuple[float, ...]]]"]]) -> Row:
    """Return the coverage of stratified intervals in a scenario's worlds, next to those of one matrix."""
    values = {size: [world for job in futures for world in job.result()] for size, futures in jobs.items()}
    first, *rest = results = [worlds.mean_coverage(worlds_of_size) for worlds_of_size in values.values()]
    widths = ", ".join(f"{result.width / result.one_matrix_width:.2f}" for result in results)
    other_sizes = "; ".join(
        f"{size:,}: {100 * result.stratified:.0f} % vs {100 * result.one_matrix:.0f} %"
        for size, result in zip(CALIBRATION_SIZES[1:], rest, strict=True)
    )
    mix = f"other mix of {' and '.join(scenario.shifted)}" if scenario.shifted else "same mix"
    independent = ", which becomes independent" if scenario.independent else ""
    count = len(values[CALIBRATION_SIZES[0]])
    return Row(
        "estimates",
        f"{faces}, {scenario.attribute}, {mix}{independent}: true shares in 95 % intervals, vs one matrix",
        unit="%",
        value=100 * first.stratified,
        baseline=100 * first.one_matrix,
        ratio=first.stratified / first.one_matrix,
        note=f"{count} worlds, {CALIBRATION_SIZES[0]:,} calibrated; {other_sizes}; {widths} times as wide",
    )


def rates_row(
    stage: str,
    groups: str,
    *,
    jobs: dict[RateScenario, MeasuredRates],
    names: tuple[str, str, str] = ("corrected", "raw", "unwidened"),
) -> Row:
    """Return the coverage of true detection rates by the first two of the named estimates; the third is in the note."""
    worlds_of = {scenario: [world for job in futures for world in job.result()] for scenario, futures in jobs.items()}
    measured = [world for worlds in worlds_of.values() for world in worlds]

    def percent(name: str, worlds: Sequence[dict[str, float]] = measured) -> float:
        values = [world[name] for world in worlds if name in world]
        return 100 * fmean(values) if values else math.nan

    def lowest(name: str) -> str:
        scenario = min(worlds_of, key=lambda scenario: percent(name, worlds_of[scenario]))
        return f"lowest {percent(name, worlds_of[scenario]):.0f} % ({scenario.describe()})"

    ours, baseline, other = names
    uncorrected = sum("corrected" not in world for world in measured)
    return Row(
        stage,
        f"detection rates, {groups}: true rates in 95 % intervals {ESTIMATES[ours]}, vs {ESTIMATES[baseline]}",
        unit="%",
        value=percent(ours),
        baseline=percent(baseline),
        ratio=percent(ours) / percent(baseline),
        note=f"{len(measured):,} worlds; {lowest(ours)}; {ESTIMATES[other]} {percent(other):.0f} %, {lowest(other)}; "
        f"{percent('exceeds'):.1f} % of the gaps between equal rates exceed the floor"
        + (f"; the labels of {uncorrected} worlds are not corrected" if uncorrected else ""),
    )


def coverage_row(classes: int, coverage: "Future[tuple[float, float]]") -> Row:
    """Return how often the intervals of corrected shares contain the true ones, next to those of the labels alone."""
    corrected, raw = coverage.result()
    return Row(
        "estimates",
        f"{classes} classes: true shares in 95 % intervals, vs intervals of the labels alone",
        unit="%",
        value=100 * corrected,
        baseline=100 * raw,
        ratio=corrected / raw,
        note=f"{STUDIES} simulated studies",
    )


def error_row(classes: int, job: "Future[dict[str, float]]", *, note: str) -> Row:
    """Return the mean total variation from the truth of corrected shares, next to that of uncorrected ones."""
    errors = job.result()
    others = ", ".join(f"{name} {1000 * errors[name]:.0f}" for name in ("best", "probabilistic", "maximisation"))
    return Row(
        "estimates",
        f"{classes} classes: error of corrected shares, vs uncorrected",
        unit="permille",
        value=1000 * errors["corrected"],
        baseline=1000 * errors["raw"],
        ratio=errors["raw"] / errors["corrected"],
        note=f"{note}; {others}",
    )
