"""Benchmark of the results: every question and the page over a million labels, next to the same tables in pandas."""

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial

import duckdb

import sql
from models import skin
from pipeline.bench.context import BenchContext
from pipeline.bench.many_attributes import write_many_attributes
from pipeline.bench.measure import ROUNDS, Row
from pipeline.bench.million import FACES, RUN, write_million_labels
from reports import page
from reports.estimation import estimates
from shards.attributes import workspace_attributes
from shards.errors import FairfaceError
from shards.workspace import Workspace

NOTE = f"a million labels: {2 * FACES:,} faces, three methods"


def bench_report(context: BenchContext) -> Iterator[Row]:
    """Measure tables, estimates, the page and every question over a million labels."""
    try:
        import pandas  # noqa: F401 - checks that it is installed
    except ImportError as error:
        raise FairfaceError("the report's baseline needs pandas: pip install pandas, or `make setup`") from error
    yield from bench_questions(Workspace(context.scratch(RUN)))
    many = Workspace(context.scratch("many"))
    write_many_attributes(many.attributes)
    yield from bench_questions(many)


def bench_questions(workspace: Workspace) -> Iterator[Row]:
    """Measure a workspace with a million labels of its attributes."""
    write_million_labels(workspace)
    connection, names = sql.connect(workspace), list(workspace_attributes(workspace).labelled)
    with_names = f"{len(names)} attributes"
    yield compare_times(
        f"{with_names}, derived ones and crosses counted on every side, vs {with_names} in pandas",
        ours=lambda: sql.ask(connection, "side_by_side", attribute="all"),
        baseline=partial(count_with_pandas, workspace),
    )
    yield compare_times(
        f"{with_names}, derived ones and crosses: confusion of all methods, vs {with_names} in pandas",
        ours=lambda: estimates.confusion_table(connection, workspace_attributes(workspace)),
        baseline=partial(confusion_with_pandas, workspace),
    )
    yield time_row(
        f"{with_names}: estimates", lambda: estimates.write_estimates(workspace, sql.connect(workspace), run=RUN)
    )
    yield time_row(f"{with_names}: page, with estimates and pictures", lambda: page.build(workspace, force=True))
    yield slowest_question(sql.connect(workspace), with_names)


def count_with_pandas(workspace: Workspace) -> None:
    """Count each side's classes, as the original FairFace Generator does."""
    import pandas

    labels = (workspace.shards.label_files.labels, workspace.run(RUN).label_files.labels)
    names = list(workspace_attributes(workspace).labelled)
    for path in (*labels, workspace.shards.images):
        table = pandas.read_parquet(path, columns=names)
        for attribute in names:
            table[attribute].value_counts(normalize=True)


def confusion_with_pandas(workspace: Workspace) -> None:
    """Tabulate annotations and labels, attribute by attribute and method by method."""
    import pandas

    columns, files = ["key", *workspace_attributes(workspace).labelled], workspace.shards.label_files
    images = pandas.read_parquet(workspace.shards.images, columns=columns)
    for path in (files.labels, files.probe_labels, files.pixels):
        labelled = columns if path != files.pixels else ["key", skin.ATTRIBUTE]
        both = images.merge(pandas.read_parquet(path, columns=labelled), on="key")
        for attribute in labelled[1:]:
            pandas.crosstab(both[f"{attribute}_x"], both[f"{attribute}_y"])


def slowest_question(connection: duckdb.DuckDBPyConnection, with_names: str) -> Row:
    """Return the time of the question that takes longest."""
    times = {}
    text = """select "group" from vocabulary where attribute = 'gender' order by rank limit 1"""
    group = sql.select(connection, text).item()
    for name, question in sql.questions().items():
        required = [key for key, parameter in question.params.items() if parameter.default is None]
        values = {key: RUN if key == "other" else group for key in required}
        times[name] = statistics.median(
            milliseconds(partial(sql.ask, connection, name, **values)) for _ in range(ROUNDS)
        )
    slowest = max(times, key=lambda name: times[name])
    title = f"{with_names}: slowest of {len(times)} questions"
    return Row("report", title, unit="ms", value=times[slowest], note=f"{slowest}; {NOTE}")


def compare_times(title: str, *, ours: Callable[[], object], baseline: Callable[[], object]) -> Row:
    """Time ours and the baseline alternately."""
    rounds = [(milliseconds(ours), milliseconds(baseline)) for _ in range(ROUNDS)]
    value, plain = (statistics.median(side) for side in zip(*rounds, strict=True))
    ratio = statistics.median(theirs / our for our, theirs in rounds)
    return Row("report", title, "ms", value, plain, ratio, NOTE)


def time_row(title: str, work: Callable[[], object]) -> Row:
    """Time something that has no baseline."""
    return Row("report", title, unit="ms", value=milliseconds(work), note=NOTE)


def milliseconds(work: Callable[[], object]) -> float:
    """Return how long `work` takes."""
    started = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - started)
