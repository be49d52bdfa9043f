"""Benchmark of the metrics of many evaluated faces: the time of each face must not grow with their number."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl

from pipeline.bench.context import BenchContext
from pipeline.bench.measure import Row, run_in_process
from shards.attributes import built_in_attributes
from shards.workspace import Workspace

DETECTOR = "evaluated"
QUESTIONS = ("utility", "fairness", "worst_groups", "operating_points", "calibration")  # over all predictions


def bench_metrics(context: BenchContext) -> Iterator[Row]:
    """Measure metrics, questions and the page of many evaluated faces next to those of a tenth as many."""
    counts = (context.sizes.evaluated_faces // 10, context.sizes.evaluated_faces)
    measured = [run_in_process(time_metrics, str(context.scratch(f"evaluated{count}")), count) for count in counts]
    (fewer, fewer_bytes), (more, more_bytes) = measured
    faces = f"of {counts[1]:,} evaluated faces, vs {counts[0]:,}"
    for name, seconds in more.items():
        yield Row(
            "detect",
            f"{name} {faces}",
            unit="s",
            value=seconds,
            baseline=fewer[name],
            ratio=seconds / fewer[name],
            note="one detector and the trivial ones, 4 attributes",
        )
    yield Row(
        "detect",
        f"peak memory of the metrics {faces}",
        unit="MB",
        value=more_bytes / 1e6,
        baseline=fewer_bytes / 1e6,
        ratio=more_bytes / fewer_bytes,
        note="questions and page included",
    )


def time_metrics(root: str, count: int) -> dict[str, float]:
    """Import `count` predictions with random groups; return the seconds of what is computed from them."""
    import sql
    from pipeline.detection.import_predictions import import_predictions
    from reports import page
    from reports.estimation.detection_metrics import update_metrics

    workspace, csv = Workspace(Path(root) / "out"), Path(root) / "predictions.csv"
    csv.parent.mkdir(parents=True)
    random_predictions(count).write_csv(csv)
    import_predictions(workspace, csv, name=DETECTOR)
    started = time.perf_counter()
    update_metrics(workspace, detector=DETECTOR)
    computed = time.perf_counter()
    connection = sql.connect(workspace)
    for question in QUESTIONS:
        sql.ask(connection, question)
    answered = time.perf_counter()
    page.build(workspace)
    return {
        "metrics with intervals and floors": computed - started,
        f"the questions {', '.join(QUESTIONS)}": answered - computed,
        "page": time.perf_counter() - answered,
    }


def random_predictions(count: int) -> pl.DataFrame:
    """Predictions of faces whose groups don't matter: target, logit and a class of each attribute."""
    rng = np.random.default_rng(0)
    is_fake = rng.random(count) < 0.5
    classes = {name: rng.choice(attribute.names, count) for name, attribute in built_in_attributes().labelled.items()}
    logits = rng.normal(size=count) + np.where(is_fake, 1, -1)
    return pl.DataFrame({"target": np.where(is_fake, "fake", "real"), "logit": logits} | classes)
