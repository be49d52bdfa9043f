"""The columns of images.parquet, with one row per image, and quantities computed from them."""

import hashlib

import polars as pl

from shards.tar import BLOCK, END

SCHEMA: dict[str, type[pl.DataType]] = {
    "key": pl.String,
    "shard": pl.String,  # null for a rejected image
    "path": pl.String,
    "family": pl.String,
    "subset": pl.String,
    "split": pl.String,
    "width": pl.Int32,
    "height": pl.Int32,
    "orientation": pl.Int8,
    "bytes": pl.Int64,
    "sha256": pl.String,
    "gender": pl.String,
    "age": pl.String,
    "skin_tone": pl.Int8,
    "skin_group": pl.String,
    "race": pl.String,
    "target": pl.String,
    "status": pl.String,  # packed, rejected
    "reason": pl.String,  # null for a packed image
}


def tar_size() -> pl.Expr:
    """Bytes of a tar whose members have the sizes in the column `bytes`."""
    blocks = (pl.col("bytes") + (BLOCK - 1)) // BLOCK + 1  # one for the header
    return blocks.sum() * BLOCK + len(END)


def manifest_hash(packed: pl.DataFrame) -> str:
    """A hash of everything that training and report depend on: each packed image's place, bytes and labels."""
    digest = hashlib.sha256()
    for rows in packed.drop("path", "status", "reason").iter_slices(10_000):
        digest.update(rows.write_csv(include_header=False).encode())
    return digest.hexdigest()
