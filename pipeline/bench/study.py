"""Benchmark of a study's statistics in simulated studies: coverage of intervals, false positives of tests."""

from collections.abc import Iterator

from pipeline.bench.context import BenchContext
from pipeline.bench.measure import Row
from reports.estimation.study.worlds import measure_study_coverage

SEEDS = (2, 3, 5, 10)
STUDIES = 1000  # of each number of seeds


def bench_study(context: BenchContext) -> Iterator[Row]:
    """Measure the intervals and tests over seeds next to those that a single run claims."""
    for seeds in SEEDS:
        measured = measure_study_coverage(seeds, STUDIES, seed=0)
        for title, coverage in (("mean shares", measured.means), ("mean distances", measured.distances)):
            yield Row(
                "study",
                f"{seeds} seeds: {title} in 95 % intervals, vs one run's",
                unit="%",
                value=100 * coverage["t"],
                baseline=100 * coverage["single"],
                ratio=coverage["t"] / coverage["single"],
                note=f"{STUDIES:,} simulated studies; hierarchical bootstrap: BCa {100 * coverage['bca']:.0f} %, "
                f"percentile-t {100 * coverage['percentile_t']:.0f} %",
            )
        found = measured.false_positives
        yield Row(
            "study",
            f"{seeds} seeds: differences found between equal arms, vs two single runs",
            unit="%",
            value=100 * found["t"],
            baseline=100 * found["single"],
            ratio=found["single"] / max(found["t"], 1 / STUDIES),
            note=f"exact sign-flip test {100 * found['sign_flip']:.1f} %; any group by Holm's procedure "
            f"{100 * measured.family_false_positives:.1f} % of the studies",
        )
