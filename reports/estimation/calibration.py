"""Calibration images and labels as codes of every attribute's classes, for the stratified correction."""

import math
from collections.abc import Collection, Sequence

import duckdb
import numpy as np
import polars as pl

import sql
from reports.estimation import group_counts
from reports.estimation.stratified import CalibrationFaces
from reports.estimation.unsure import label_text
from shards.attributes import UNSURE, AttributeTable
from sql.definitions import labelled_parts

# Annotated images, the first by key, that strata are chosen and error rates in them measured with: a random sample, as
# packing shuffles. Their number bounds the time.
CALIBRATION_FACES = 30_000


def read_calibration(
    connection: duckdb.DuckDBPyConnection, attributes: AttributeTable, *, unsure: Collection[str]
) -> dict[str, CalibrationFaces]:
    """The calibration images of every method: those with labels among `CALIBRATION_FACES` annotated ones."""
    names = {name: sql.identifier(name) for name in attributes.labelled}
    annotated = ", ".join(f"a.{column} as {sql.identifier(name + '_a')}" for name, column in names.items())
    labelled = ", ".join(
        f"{label_text(name, unsure=unsure, table='l')} as {sql.identifier(name + '_l')}" for name in names
    )
    is_annotated = " or ".join(f"{column} is not null" for column in names.values())
    text = f"""
        with a as (
            select key, {", ".join(f"{column}::varchar as {column}" for column in names.values())} from image_rows
            where status = 'packed' and ({is_annotated}) order by key limit {CALIBRATION_FACES}
        )
        select method, {annotated}, {labelled} from label_rows as l join a using (key)
        where source = 'train' order by method, key"""
    table = sql.select(connection, text)
    return {
        str(method): CalibrationFaces(
            class_codes(faces, attributes, suffix="_a"),
            class_codes(faces, attributes, suffix="_l"),
            {name: len(item.names) for name, item in attributes.items()},
        )
        for (method,), faces in table.group_by("method", maintain_order=True)
    }


def count_cross(
    connection: duckdb.DuckDBPyConnection,
    names: Sequence[str],
    *,
    source: tuple[str, str, str],
    column: str | None,
    weights: dict[str, float] | None,
    attributes: AttributeTable,
) -> np.ndarray:
    """Labelled faces in the cross of the attributes `names`, float64 [K+1..], the last place of each for `UNSURE`.

    `source` is train or generated, the run, and the method. Training faces count by the `weights` of their class in
    `column`, if there are any.
    """
    side, run, method = source
    parts = sorted(set[str]().union(*(labelled_parts(attributes[name], attributes) for name in names)))
    texts = ", ".join(f"{label_text(name, unsure=parts)} as {sql.identifier(name)}" for name in parts)
    columns = ", ".join(map(sql.identifier, parts))
    text = f"""select {columns}, {group_counts.stratum(column)}, count(*) as n
        from (select key, {texts} from label_rows
            where source = $side and method = $method and ($side = 'train' or run = $run))
            {group_counts.join_strata(column)}
        group by all order by all"""
    table = sql.select(connection, text, {"side": side, "method": method, "run": run})
    n = table["n"].to_numpy().astype(float)
    if weights is not None and side == "train":
        n = n * [weights.get(str(name), 0.0) for name in table["stratum"]]
    codes = class_codes(table, attributes)
    counts = np.zeros([len(attributes[name].names) + 1 for name in names])
    is_known = np.logical_and.reduce([codes[name] >= 0 for name in names])
    np.add.at(counts, tuple(codes[name][is_known] for name in names), n[is_known])
    return counts


def class_codes(table: pl.DataFrame, attributes: AttributeTable, *, suffix: str = "") -> dict[str, np.ndarray]:
    """The codes of all attributes that follow from a table's columns of labelled ones, whose names end with `suffix`.

    A code is the class's number, the number of classes for `UNSURE`, or -1; int64 [N].
    """
    codes: dict[str, np.ndarray] = {}
    for name in attributes.labelled:
        if name + suffix in table.columns:
            kind = pl.Enum([*attributes[name].names, UNSURE])
            column = table[name + suffix].cast(kind, strict=False).to_physical()
            codes[name] = column.cast(pl.Int64).fill_null(-1).to_numpy()
    for item in attributes.derived:
        if item.parent in codes:
            owner = {text: code for code, each in enumerate(item.classes) for text in each.of}
            parent = attributes[item.parent].names
            codes[item.name] = np.array([*(owner.get(text, -1) for text in parent), len(item.names), -1])[
                codes[item.parent]
            ]
    for item in attributes.crosses:
        if all(name in codes for name in item.cross):
            sizes = [len(attributes[name].names) for name in item.cross]
            codes[item.name] = cross_codes([codes[name] for name in item.cross], sizes)
    return codes


def cross_codes(codes: Sequence[np.ndarray], sizes: Sequence[int]) -> np.ndarray:
    """The codes of a cross, the last of whose attributes varies fastest."""
    sizes_column = np.array(sizes)[:, None]
    stacked = np.stack(codes)
    flat = np.ravel_multi_index(tuple(np.clip(stacked, 0, sizes_column - 1)), tuple(sizes))
    flat = np.where((stacked == sizes_column).any(0), math.prod(sizes), flat)
    return np.where((stacked < 0).any(0), -1, flat)
