"""Tables of labels: one row per image, with the class of every attribute and the probabilities of all classes."""

from pathlib import Path

import numpy as np
import polars as pl

from models import clip
from shards.atomic_io import write_parquet
from shards.documents import LabelsDocument

PROBABILITY_COLUMNS = [
    f"p_{'tone_' if attribute == 'skin_tone' else ''}{name}"
    for attribute, names in clip.CLASSES.items()
    for name in names
]


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


def write_label_table(
    path: Path, labels: pl.DataFrame, *, document: LabelsDocument, method: str, labeller: str
) -> pl.DataFrame:
    """Write a table of labels with columns that identify their source, and return it.

    `document` supplies the source (train, generated), the run and the size in pixels.
    """
    provenance = [
        pl.lit(document.source, pl.String).alias("source"),
        pl.lit(document.run, pl.String).alias("run"),
        pl.lit(method).alias("method"),
        pl.lit(labeller).alias("labeller"),
        pl.lit(document.size, pl.Int32).alias("size"),
    ]
    table = labels.select("key", *provenance, pl.exclude("key"))
    write_parquet(path, table)
    return table
