"""Whether a labeller is as confident on the samples as on photographs that it was not fitted to.

Its error rates are measured on held-out photographs. If its probabilities are distributed differently on the samples,
its error rates may differ as well. A labeller is surer of some classes than of others, so photographs are weighted to
have the samples' shares of labels: a different mix of classes alone is no shift.
"""

import math
from collections.abc import Mapping

import duckdb
import numpy as np
import polars as pl

import sql
from shards.attributes import PROBABILITY_PREFIX, AttributeTable
from sql.definitions import labelled_parts

IMAGES = 20_000  # of either side whose probabilities are compared, at most
MIN_IMAGES = 20  # of either side; below it there is no row
LEVEL = 0.05  # how often photographs alone exceed the floor, at most
SMALLEST_FLOOR = 0.05  # with many images, smaller distances are significant, but hardly matter
LARGEST_WEIGHT = 10.0  # of a photograph, relative to the mean, so that a few with a rare label do not decide
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
    distance of the two distributions, 0-1), floor (which photographs alone exceed in at most LEVEL of cases), and
    unsure_held_out and unsure_generated (shares of the images). The values of photographs are weighted by label. Only
    attributes with one of FITTED_METHODS have rows.
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
                weights = label_weights(held_out[f"{name} label"].to_numpy(), generated[f"{name} label"].to_numpy())
                floor = ks_floor(1 / (weights**2).sum(), len(b))  # Kish's effective number of images
                unsure = weights @ held_out[f"{name} unsure"].to_numpy(), generated[f"{name} unsure"].mean()
                values = (weights @ a, b.mean(), ks_distance(a, b, weights=weights), floor, *unsure)
                rows.append((run, name, method, len(a), len(b), *values))
    return pl.DataFrame(rows, schema=SHIFT_SCHEMA, orient="row")


def read_confidence(
    connection: duckdb.DuckDBPyConnection, run: str, *, names: list[str], method: str, source: str
) -> pl.DataFrame:
    """For each attribute, the confidence of the first IMAGES images by key, the number of their label, and `unsure`.

    The columns are `<name>`, `<name> label` and `<name> unsure`.
    """
    columns = ", ".join(
        f"""list_max({probabilities})::double as {sql.identifier(name)},
        list_position({probabilities}, list_max({probabilities})) as {sql.identifier(f"{name} label")},
        {sql.identifier(name)} is null as {sql.identifier(f"{name} unsure")}"""
        for name, probabilities in ((name, sql.identifier(PROBABILITY_PREFIX + name)) for name in names)
    )
    text = f"""select {columns} from (from label_rows
        where method = $method and source = $source and (source = 'train' or run = $run) order by key limit {IMAGES})"""
    return sql.select(connection, text, {"method": method, "source": source, "run": run})


def label_weights(held_out: np.ndarray, generated: np.ndarray) -> np.ndarray:
    """Weights of photographs, [N], with which their labels have the shares of the samples' labels; their sum is 1.

    Labels, [N] and [M], are numbers. The weights of rare labels are limited to LARGEST_WEIGHT / N; if the sides have no
    label in common, all photographs have the same weight.
    """
    size = max(held_out.max(), generated.max()) + 1
    before, after = (np.bincount(side, minlength=size) for side in (held_out, generated))
    weights = (after / np.maximum(before, 1))[held_out]
    weights = np.minimum(weights, LARGEST_WEIGHT * weights.mean())
    return weights / weights.sum() if weights.any() else np.full(len(held_out), 1 / len(held_out))


def ks_distance(a: np.ndarray, b: np.ndarray, *, weights: np.ndarray) -> float:
    """The largest difference between the distribution functions of a [N], with `weights`, and b [M] (Smirnov 1939)."""
    values, order = np.concatenate([a, b]), np.argsort(a)
    cumulated = np.append(0, weights[order].cumsum())
    below_a = cumulated[np.searchsorted(a[order], values, side="right")]
    below_b = np.searchsorted(np.sort(b), values, side="right") / len(b)
    return float(np.abs(below_a - below_b).max())


def ks_floor(n: float, m: float) -> float:
    """The distance that two samples of n and m of the same distribution exceed in at most LEVEL of cases.

    From the first term of Kolmogorov's series, whatever the distribution; ties make it conservative. At least
    SMALLEST_FLOOR.
    """
    return min(max(math.sqrt(-math.log(LEVEL / 2) / 2 * (n + m) / (n * m)), SMALLEST_FLOOR), 1.0)


def shifted_attributes(shifts: pl.DataFrame, attributes: AttributeTable) -> set[tuple[str, str]]:
    """The attributes and methods whose confidence has shifted beyond the floor, from rows of `confidence_shift`.

    A derived attribute or a cross has shifted if an attribute that it is made of has.
    """
    rows = shifts.filter(pl.col("statistic") > pl.col("floor")).select("attribute", "method").rows()
    return {
        (item.name, method)
        for item in attributes.values()
        for name, method in rows
        if name in labelled_parts(item, attributes)
    }
