"""Intervals of the difference of two runs."""

import duckdb
import numpy as np
import polars as pl

import sql
from reports.estimation.attribute_estimate import AttributeCounts, estimate_attribute
from reports.estimation.estimate_rows import estimate_rows
from reports.estimation.estimates import ESTIMATE_SCHEMA


def test_intervals_of_a_difference_cover_it():
    """Two generators labelled with one confusion matrix, whose errors they share."""
    rng, covered = np.random.default_rng(1), []
    for _ in range(60):
        bias = rng.dirichlet([2, 2, 2], 3)
        matrix, truth = 0.75 * np.eye(3) + 0.25 * bias, rng.dirichlet([3, 3, 3], 2)
        confusion = np.stack([rng.multinomial(500, row) for row in matrix])
        tables = []
        for shares in truth:
            counts = AttributeCounts(
                attribute="x",
                method="clip",
                groups=list("abc"),
                count=rng.multinomial(2000, shares @ matrix).astype(float),
                reference=confusion.sum(0).astype(float),
                annotated=confusion.sum(1).astype(float),
                confusion=confusion,
            )
            rows = estimate_rows(estimate_attribute(counts), "r")
            tables.append(pl.DataFrame(rows, schema=ESTIMATE_SCHEMA))
        covered += list(is_covered(tables, truth[1] - truth[0]))
    assert np.mean(covered) >= 0.93


def is_covered(tables, difference):
    """Whether the question's interval covers the true difference, group by group."""
    connection = duckdb.connect()
    runs = [table.with_columns(run=pl.lit(name)) for table, name in zip(tables, "ab", strict=True)]
    connection.register("rows", pl.concat(runs, how="vertical_relaxed").to_arrow())
    connection.execute(
        "create table estimates as from rows; create table vocabulary as "
        "select 'x' as attribute, unnest(['a', 'b', 'c']) as \"group\", 1 as rank; "
        "create macro resolve_run(name) as name; create macro attribute_rank(name) as 1"
    )
    text = sql.questions()["difference"].sql
    rows = connection.sql(text, params={"run": "a", "other": "b", "attribute": "all"}).pl().sort("group")
    low, high = rows["difference_low"].to_numpy(), rows["difference_high"].to_numpy()
    return (low <= difference) & (difference <= high)
