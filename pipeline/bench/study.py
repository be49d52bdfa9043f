"""Benchmarks of studies: their time and, in simulated studies, the coverage of intervals and false positives."""

import subprocess
import sys
import time
from collections.abc import Iterator

from pipeline.bench.context import BenchContext
from pipeline.bench.measure import Row
from reports.estimation.study.worlds import measure_study_coverage
from shards.documents import read_document
from shards.study import StudyDocument

SEEDS = (2, 3, 5, 10)
STUDIES = 1000  # simulated, for each number of seeds
TIMED_SEEDS, TIMED_ARMS = (0, 1), ("natural", "uniform")  # of the study that is timed
TIMED_OPTIONS = {"train": {"preset": "sketch", "steps": 300}, "sample": {}, "label": {}}


def bench_study(context: BenchContext) -> Iterator[Row]:
    """Measure a study's time, and its intervals and tests over seeds, next to those that single runs claim."""
    yield time_study(context)
    yield from simulate_studies()


def time_study(context: BenchContext) -> Row:
    """Measure the seconds of a small study, next to a loop that calls a command for each of its stages."""
    context.shards()
    options = {stage: {**values, "device": str(context.device)} for stage, values in TIMED_OPTIONS.items()}
    tables = [
        f"[{stage}]\n" + "".join(f"{name} = {value!r}\n" for name, value in values.items())
        for stage, values in options.items()
    ]
    arms = [f"[arms.{arm}.train]\nbalance = {arm!r}\n" for arm in TIMED_ARMS]
    file = context.scratch("timed.toml")
    file.write_text("\n".join([f"seeds = {list(TIMED_SEEDS)}\n", *tables, *arms]))
    seconds = run_command(context, "study", str(file))
    document = read_document(context.workspace.study("timed").document, StudyDocument)
    stages = sum(sum(run.seconds.values()) for run in document.runs) if document else 0.0

    words = {stage: [f"--{name}={value}" for name, value in values.items()] for stage, values in options.items()}
    loop, runs = 0.0, [(arm, seed, f"loop-{arm}-{seed}") for seed in TIMED_SEEDS for arm in TIMED_ARMS]
    for arm, seed, run in runs:
        of_run = ["--run", run, "--seed", str(seed)]
        loop += run_command(context, "train", *of_run, "--balance", arm, *words["train"])
        loop += run_command(context, "sample", *of_run, *words["sample"])
        loop += run_command(context, "label", "--run", run, *words["label"])
    loop += run_command(context, "report", *(word for *_, run in runs for word in ("--run", run)))
    return Row(
        "study",
        f"{len(runs)} runs of {TIMED_OPTIONS['train']['steps']} steps and their report, vs a loop of commands",
        unit="s",
        value=seconds,
        baseline=loop,
        ratio=loop / seconds,
        note=f"the stages of the runs take {stages:.0f} s of it",
    )


def run_command(context: BenchContext, command: str, *words: str) -> float:
    """Run a `fairface` command on the benchmarks' OUT folder in a new process, and return its seconds."""
    start = time.perf_counter()
    arguments = [sys.executable, "-m", "pipeline.cli", command, *words, "--out", str(context.workspace.root)]
    subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def simulate_studies() -> Iterator[Row]:
    """Measure the intervals and tests over seeds in simulated studies, next to those that single runs claim."""
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
