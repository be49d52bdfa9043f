"""Benchmark of the estimates' quality in simulated studies: coverage of intervals, error of corrected shares."""

from collections.abc import Iterator

from pipeline.bench.context import BenchContext
from pipeline.bench.measure import Row
from reports.estimation import simulation
from reports.estimation.attribute_estimate import MAX_GROUPS

CLASSES = (2, 3, 5, 10, 14, MAX_GROUPS)
STUDIES = 400


def bench_estimates(_: BenchContext) -> Iterator[Row]:
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
