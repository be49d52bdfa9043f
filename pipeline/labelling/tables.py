"""What labellers said of images, as tables: one row an image, the class of every attribute and all probabilities."""

from pathlib import Path

import numpy as np
import polars as pl

from models import clip
from shards.atomic_io import write_parquet

PROBABILITY_COLUMNS = [
    f"p_{'tone_' if attribute == 'skin_tone' else ''}{name}"
    for attribute, names in clip.CLASSES.items()
    for name in names
]


def label_frame(keys: pl.Series, probabilities: np.ndarray) -> pl.DataFrame:
    """key, the most probable gender, age and skin_tone (null where nothing was asked), and probabilities [N, 17]."""
    columns, start = {}, 0
    for attribute, names in clip.CLASSES.items():
        part = probabilities[:, start : start + len(names)]
        start += len(names)
        best = pl.Series(part.argmax(1)).replace_strict(dict(enumerate(names)), return_dtype=pl.String)
        columns[attribute] = best.to_frame("x").select(pl.when(~pl.Series(np.isnan(part[:, 0]))).then("x")).to_series()
    table = pl.DataFrame({"key": keys, **columns}).with_columns(pl.col("skin_tone").cast(pl.Int8))
    return table.hstack(pl.DataFrame(probabilities, schema=dict.fromkeys(PROBABILITY_COLUMNS, pl.Float32)))


def write_label_table(path: Path, labels: pl.DataFrame, about: dict, method: str, labeller: str) -> pl.DataFrame:
    """Writes a table of labels with who made them; `about` holds source (train, generated), run and size in pixels."""
    constants = [
        pl.lit(about["source"], pl.String).alias("source"),
        pl.lit(about["run"], pl.String).alias("run"),
        pl.lit(method).alias("method"),
        pl.lit(labeller).alias("labeller"),
        pl.lit(about["size"], pl.Int32).alias("size"),
    ]
    table = labels.select("key", *constants, pl.exclude("key"))
    write_parquet(path, table)
    return table
