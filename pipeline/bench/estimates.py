"""Benchmark of the estimates' quality in simulated studies: coverage of intervals, error of corrected shares."""

from collections.abc import Iterator, Sequence

from pipeline.bench.context import BenchContext
from pipeline.bench.measure import Row
from reports.estimation import simulation, worlds
from reports.estimation.attribute_estimate import MAX_GROUPS
from reports.estimation.stratified import CalibrationFaces

CLASSES = (2, 3, 5, 10, 14, MAX_GROUPS)
STUDIES = 400
WORLDS = 30
CALIBRATION_SIZES = (3000, 500, 10_000)  # of the worlds, the first of them in the column


def bench_estimates(context: BenchContext) -> Iterator[Row]:
    """Measure coverage and accuracy of the corrected shares next to those of the labels alone."""
    for classes in CLASSES:
        corrected, raw = simulation.interval_coverage(classes, STUDIES, seed=classes)
        yield Row(
            "estimates",
            f"{classes} classes: true shares in 95 % intervals, vs intervals of the labels alone",
            unit="%",
            value=100 * corrected,
            baseline=100 * raw,
            ratio=corrected / raw,
            note=f"{STUDIES} simulated studies",
        )
    for classes in CLASSES:
        errors = simulation.estimate_errors(classes, STUDIES // 4, seed=classes)
        yield error_row(classes, errors, note="20,000 samples, 5,000 calibrated")
    errors = simulation.estimate_errors(10, STUDIES // 4, seed=1, n=2000, calibration=500, accuracies=(0.95, 0.95))
    yield error_row(10, errors, note="2,000 samples, 500 calibrated, accuracy 0.95")
    yield from bench_worlds(worlds.simulate_population(0), "simulated faces", attributes=["gender"])
    if context.labelled_faces:
        population = worlds.read_population(context.labelled_faces)
        yield from bench_worlds(population, "real faces", attributes=[*population.classes])


def bench_worlds(population: CalibrationFaces, name: str, *, attributes: Sequence[str]) -> Iterator[Row]:
    """Measure the coverage of stratified intervals next to those of one matrix, while other attributes shift."""
    for attribute in attributes:
        others = [other for other in population.classes if other != attribute]
        for shifted in dict.fromkeys([(), *((other,) for other in others), tuple(others)]):
            results = {
                size: worlds.measure_coverage(population, attribute, shifted=shifted, calibration=size, worlds=WORLDS)
                for size in CALIBRATION_SIZES
            }
            first, *rest = results.values()
            widths = ", ".join(f"{result.width / result.one_matrix_width:.2f}" for result in results.values())
            also = "; ".join(
                f"{size:,}: {100 * result.stratified:.0f} % vs {100 * result.one_matrix:.0f} %"
                for size, result in zip(CALIBRATION_SIZES[1:], rest, strict=True)
            )
            mix = f"other mix of {' and '.join(shifted)}" if shifted else "same mix"
            yield Row(
                "estimates",
                f"{name}, {attribute}, {mix}: true shares in 95 % intervals, vs one matrix",
                unit="%",
                value=100 * first.stratified,
                baseline=100 * first.one_matrix,
                ratio=first.stratified / first.one_matrix,
                note=f"{WORLDS} worlds, {CALIBRATION_SIZES[0]:,} calibrated; {also}; {widths} times as wide",
            )


def error_row(classes: int, errors: dict[str, float], *, note: str) -> Row:
    """Return the mean total variation from the truth of corrected shares, next to that of uncorrected ones."""
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
