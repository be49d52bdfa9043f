"""Whether a labeller is as confident on the samples as on photographs that it was not fitted to.

Its error rates are measured on held-out photographs. If its probabilities are distributed differently on the samples,
its error rates may differ as well.
"""

import math
from collections.abc import Mapping

import duckdb
import numpy as np
import polars as pl

import sql
from shards.attributes import PROBABILITY_PREFIX, AttributeTable

IMAGES = 20_000  # of either side whose probabilities are compared, at most
MIN_IMAGES = 20  # of either side; below it there is no row
LEVEL = 0.05  # how often photographs alone exceed the floor
FITTED_METHODS = ("classifier", "probe")  # fitted to training images
SHIFT_SCHEMA = {
    **dict.fromkeys(("run", "attribute", "method"), pl.String),
    **dict.fromkeys(("held_out", "generated"), pl.Int64),
    **dict.fromkeys(("confidence_held_out", "confidence_generated"), pl.Float64),
    **dict.fromkeys(("statistic", "floor", "unsure_held_out", "unsure_generated"), pl.Float64),
}


def confidence_shift(
    connection: duckdb.DuckDBPyConnection, run: str, *, attributes: AttributeTable, selected: Mapping[str, str]
) -> pl.DataFrame:
    """Compare the labellers' confidence, the probability of the most probable class, on samples and on photographs.

    `selected` is the selected method of each attribute. Columns: run, attribute, method, held_out and generated
    (numbers of images), confidence_held_out and confidence_generated (means), statistic (the Kolmogorov-Smirnov
    distance of the two distributions, 0-1), floor (which photographs alone exceed in LEVEL of cases), and
    unsure_held_out and unsure_generated (shares of the images). Only attributes with one of FITTED_METHODS have rows.
    """
    rows = []
    for method in FITTED_METHODS:
        names = [name for name in attributes.labelled if selected.get(name) == method]
        if not names:
            continue
        sides = {
            source: read_confidence(connection, run, names=names, method=method, source=source)
            for source in ("train", "generated")
        }
        for name in names:
            held_out, generated = (side.drop_nulls(name) for side in sides.values())
            if min(len(held_out), len(generated)) >= MIN_IMAGES:
                a, b = held_out[name].to_numpy(), generated[name].to_numpy()
                unsure = held_out[f"{name} unsure"].mean(), generated[f"{name} unsure"].mean()
                values = (a.mean(), b.mean(), ks_distance(a, b), ks_floor(len(a), len(b)), *unsure)
                rows.append((run, name, method, len(a), len(b), *values))
    return pl.DataFrame(rows, schema=SHIFT_SCHEMA, orient="row")


def read_confidence(
    connection: duckdb.DuckDBPyConnection, run: str, *, names: list[str], method: str, source: str
) -> pl.DataFrame:
    """For each attribute, a column with the confidence of the first IMAGES images by key, and `<name> unsure`."""
    columns = ", ".join(
        f"""list_max({sql.identifier(PROBABILITY_PREFIX + name)})::double as {sql.identifier(name)},
        {sql.identifier(name)} is null as {sql.identifier(f"{name} unsure")}"""
        for name in names
    )
    text = f"""select {columns} from (from label_rows
        where method = $method and source = $source and (source = 'train' or run = $run) order by key limit {IMAGES})"""
    return sql.select(connection, text, {"method": method, "source": source, "run": run})


def ks_distance(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference between the empirical distribution functions of a [N] and b [M] (Smirnov 1939)."""
    values = np.concatenate([a, b])
    below = (np.searchsorted(np.sort(side), values, side="right") / len(side) for side in (a, b))
    return float(np.abs(next(below) - next(below)).max())


def ks_floor(n: int, m: int) -> float:
    """The distance that two samples of n and m of the same distribution exceed in LEVEL of cases.

    From the first term of Kolmogorov's series, whatever the distribution; ties make it conservative.
    """
    return min(math.sqrt(-math.log(LEVEL / 2) / 2 * (n + m) / (n * m)), 1.0)
