"""What the estimates are worth: intervals and corrections in simulated worlds."""

from collections.abc import Iterator

from pipeline.bench.measure import Row
from reports import worlds

CLASSES = (2, 3, 5, 10)
WORLDS = 400


def bench_estimates() -> Iterator[Row]:
    """Coverage and accuracy of corrected shares beside those of the labels alone."""
    for classes in CLASSES:
        ours, naive = worlds.coverage(classes, WORLDS, seed=classes)
        figure = f"{classes} classes: truths that 95 % intervals hold, against the labels' own"
        yield Row("estimates", figure, "%", 100 * ours, 100 * naive, ours / naive, f"{WORLDS} worlds")
    for classes in CLASSES:
        yield errors(classes, "20,000 samples, 5,000 calibrated", worlds.accuracy(classes, WORLDS // 4, classes))
    few = worlds.accuracy(10, WORLDS // 4, 1, n=2000, calibration=500, accuracies=(0.95, 0.95))
    yield errors(10, "2,000 samples, 500 calibrated, accuracy 0.95", few)


def errors(classes: int, where: str, found: dict[str, float]) -> Row:
    """Mean total variation from the truth: of the corrected shares, beside that of the raw ones."""
    other = ", ".join(f"{name} {1000 * found[name]:.0f}" for name in ("best", "probabilistic", "maximisation"))
    figure, left = f"{classes} classes: error of corrected shares, against raw", found["corrected"]
    return Row(
        "estimates", figure, "permille", 1000 * left, 1000 * found["raw"], found["raw"] / left, f"{where}; {other}"
    )
