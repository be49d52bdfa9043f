"""Tables of labels: one row per image, with the class of every attribute and the probabilities of all classes."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import polars as pl

from models import clip
from shards.atomic_io import write_parquet
from shards.documents import Document, LabelsDocument, ProbeDocument
from shards.replacement import Writer, replace_described_files

PROBABILITY_COLUMNS = [
    f"p_{'tone_' if attribute == 'skin_tone' else ''}{name}"
    for attribute, names in clip.CLASSES.items()
    for name in names
]
LABEL_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {  # of the labels of one method
    "key": pl.String,
    "gender": pl.String,
    "age": pl.String,
    "skin_tone": pl.Int8,
    **dict.fromkeys(PROBABILITY_COLUMNS, pl.Float32),
}


def label_frame(keys: pl.Series, probabilities: np.ndarray) -> pl.DataFrame:
    """key, gender, age, skin_tone and the probabilities [N, 17] of their classes, in the order of CLASSES.

    The class of an attribute is the most probable one, or null where its probabilities are NaN.
    """
    columns, start = {}, 0
    for attribute, names in clip.CLASSES.items():
        part = probabilities[:, start : start + len(names)]
        start += len(names)
        best = pl.Series(part.argmax(1)).replace_strict(dict(enumerate(names)), return_dtype=pl.String)
        columns[attribute] = best.to_frame("x").select(pl.when(~pl.Series(np.isnan(part[:, 0]))).then("x")).to_series()
    table = pl.DataFrame({"key": keys, **columns}).with_columns(pl.col("skin_tone").cast(pl.Int8))
    return table.hstack(pl.DataFrame(probabilities, schema=dict.fromkeys(PROBABILITY_COLUMNS, pl.Float32)))


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
