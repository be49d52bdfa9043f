"""Tables of labels: one row per image, with the class of every attribute and the probabilities of all classes."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import polars as pl

from shards.atomic_io import write_parquet
from shards.attributes import PROBABILITY_PREFIX, Attribute
from shards.documents import Document, LabelsDocument, ProbeDocument
from shards.images_table import Types, class_types
from shards.replacement import Writer, replace_described_files


def label_schema(attributes: Mapping[str, Attribute]) -> Types:
    """The columns of the labels of one method: key, each attribute's class, and the list of its probabilities."""
    lists: Types = dict.fromkeys(map(probabilities_column, attributes), pl.List(pl.Float32))
    return {"key": pl.String, **class_types(attributes), **lists}


def probabilities_column(attribute: str) -> str:
    """The column with the probabilities of all classes of an attribute, in their order."""
    return f"{PROBABILITY_PREFIX}{attribute}"


def label_frame(
    keys: pl.Series,
    probabilities: Mapping[str, np.ndarray],
    attributes: Mapping[str, Attribute],
    *,
    thresholds: Mapping[str, float] | None = None,
) -> pl.DataFrame:
    """The columns of `label_schema`, from the probabilities [N, K] of every attribute's classes.

    The class is the most probable one; null, meaning unsure, if its probability is below the attribute's threshold.
    """
    classes, lists = [], []
    for name, attribute in attributes.items():
        values = np.ascontiguousarray(probabilities[name], np.float32)
        is_sure = values.max(1) >= (thresholds or {}).get(name, 0.0)
        best = pl.Series(name, np.where(is_sure, values.argmax(1), -1))
        classes.append(best.replace_strict(dict(enumerate(attribute.names)), default=None, return_dtype=pl.String))
        kind = pl.Array(pl.Float32, len(attribute.names))
        lists.append(pl.Series(probabilities_column(name), values, dtype=kind))
    return pl.DataFrame([keys.alias("key"), *classes, *lists]).cast(label_schema(attributes))  # type: ignore[arg-type]


def most_probable(labels: pl.DataFrame, attributes: Mapping[str, Attribute]) -> pl.DataFrame:
    """`labels` with the most probable class in place of unsure ones."""
    classes = []
    for name, attribute in attributes.items():
        if probabilities_column(name) in labels.columns:
            best = pl.col(probabilities_column(name)).list.arg_max()
            names = dict(enumerate(attribute.names))
            likely = best.replace_strict(names, default=None, return_dtype=pl.String)
            classes.append(pl.col(name).fill_null(likely.cast(labels.schema[name])))
    return labels.with_columns(classes)


def flat_probabilities(labels: pl.DataFrame, attributes: Mapping[str, Attribute]) -> pl.DataFrame:
    """`labels` with a column `p_<attribute>_<class>` for every class instead of lists of probabilities."""
    flat = [
        pl.col(probabilities_column(attribute.name)).list.get(index).alias(name)
        for attribute in attributes.values()
        for index, name in enumerate(flat_columns(attribute))
    ]
    return labels.with_columns(flat).drop(map(probabilities_column, attributes))


def flat_columns(attribute: Attribute) -> list[str]:
    """The columns of `flat_probabilities` of one attribute."""
    return [f"{probabilities_column(attribute.name)}_{name}" for name in attribute.names]


def label_table(labels: pl.DataFrame, *, document: LabelsDocument, method: str, labeller: str) -> pl.DataFrame:
    """A table of labels with columns that identify their source.

    `document` supplies the source (train, generated), the run and the size in pixels.
    """
    provenance = [
        pl.lit(document.source, pl.String).alias("source"),
        pl.lit(document.run, pl.String).alias("run"),
        pl.lit(method).alias("method"),
        pl.lit(labeller).alias("labeller"),
        pl.lit(document.size, pl.Int32).alias("size"),
    ]
    return labels.select("key", *provenance, pl.exclude("key"))


def write_label_table(
    path: Path, labels: pl.DataFrame, *, document: LabelsDocument, method: str, labeller: str
) -> pl.DataFrame:
    """Write a table of labels with columns that identify their source, and return it."""
    table = label_table(labels, document=document, method=method, labeller=labeller)
    write_parquet(path, table)
    return table


def replace_tables(
    document_path: Path,
    tables: Mapping[Path, pl.DataFrame],
    document: LabelsDocument | ProbeDocument,
    *,
    others: Mapping[Path, bytes] | None = None,
    obsolete: Sequence[Path] = (),
) -> None:
    """Replace tables, other files and the `document` that describes them, which gets their SHA-256.

    The files `obsolete` are removed. Embeddings are not compressed: their bits are nearly random.
    """

    def describe(files: dict[str, str]) -> Document:
        document.files = files
        return document

    def write_table(path: Path, file: BinaryIO) -> None:
        write_parquet(path, tables[path], compress="embedding" not in tables[path].columns, output=file)

    contents: dict[Path, Writer] = {path: partial(write_table, path) for path in tables}
    for path, content in (others or {}).items():
        contents[path] = partial(_write, content)
    replace_described_files(document_path, contents, describe=describe, obsolete=obsolete)


def _write(content: bytes, file: BinaryIO) -> None:
    file.write(content)
