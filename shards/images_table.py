"""The columns of images.parquet, with one row per image, and quantities computed from them."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from shards.atomic_io import read_parquet
from shards.documents import ShardsDocument
from shards.errors import FairfaceError
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


def read_images(path: Path, columns: Sequence[str] = tuple(SCHEMA), *, sha256: str | None) -> pl.DataFrame:
    """Read `columns` of an images.parquet; its SHA-256 is in shards.json, `files`.

    Raises FairfaceError for another table, a damaged one, and one whose packed images lack a place in a tar.
    """
    types = {name: SCHEMA[name] for name in columns}
    images = read_parquet(path, types, sha256=sha256)
    packed = images.filter(status="packed") if "status" in types else images.clear()
    placed = packed.select(name for name in ("key", "shard", "bytes", "sha256") if name in types)
    if any(column.null_count() for column in placed) or ("bytes" in types and (packed["bytes"] < 0).any()):
        raise FairfaceError(f"{path} does not describe packed images: {ShardsDocument.REDO}")
    return images


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
