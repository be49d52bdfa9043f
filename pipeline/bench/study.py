"""Benchmark of a study's statistics in simulated studies: coverage of intervals, false positives of tests."""

from collections.abc import Iterator

from pipeline.bench.context import BenchContext
from pipeline.bench.measure import Row
from reports.estimation.study.worlds import measure_study_coverage

SEEDS = (2, 3, 5, 10)
STUDIES = 1000  # simulated, for each number of seeds


def bench_study(context: BenchContext) -> Iterator[Row]:
    """Measure the intervals and tests over seeds, next to those that single runs claim."""
    for seeds in SEEDS:
        coverage = measure_study_coverage(seeds, STUDIES, seed=0)
        for title, rates in (("mean shares", coverage.means), ("mean distances", coverage.distances)):
            yield Row(
                "study",
                f"{seeds} seeds: {title} in 95 % intervals, vs one run's",
                unit="%",
                value=100 * rates["t"],
                baseline=100 * rates["single"],
                ratio=rates["t"] / rates["single"],
                note=f"{STUDIES:,} simulated studies; hierarchical bootstrap: BCa {100 * rates['bca']:.0f} %, "
                f"percentile-t {100 * rates['percentile_t']:.0f} %",
            )
        false_positives = coverage.false_positives
        yield Row(
            "study",
            f"{seeds} seeds: differences found between equal arms, vs two single runs",
            unit="%",
            value=100 * false_positives["t"],
            baseline=100 * false_positives["single"],
            ratio=false_positives["single"] / max(false_positives["t"], 1 / STUDIES),
            note=f"exact sign-flip test {100 * false_positives['sign_flip']:.1f} %; any group by Holm's procedure "
            f"{100 * coverage.family_false_positives:.1f} % of the studies",
        )
