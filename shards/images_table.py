"""The columns of images.parquet, with one row per image, and quantities computed from them."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from shards.annotations import derived_class
from shards.atomic_io import read_parquet
from shards.attributes import Attribute, AttributeTable
from shards.documents import ShardsDocument
from shards.errors import FairfaceError
from shards.tar import BLOCK, END

Types = dict[str, pl.DataType | type[pl.DataType]]
SCHEMA: Types = {  # of the columns that any table has
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
    "target": pl.String,
    "status": pl.String,  # packed, rejected
    "reason": pl.String,  # null for a packed image
}


def image_schema(attributes: AttributeTable) -> Types:
    """All columns of images.parquet: those of SCHEMA, and before `target` one for each stored attribute."""
    names, schema = list(SCHEMA), SCHEMA | class_types(attributes.stored)
    place = names.index("target")
    return {name: schema[name] for name in (*names[:place], *attributes.stored, *names[place:])}


def class_types(attributes: Mapping[str, Attribute]) -> Types:
    """The type of each attribute's column of classes."""
    return {name: pl.Int8 if attribute.is_numbered else pl.String for name, attribute in attributes.items()}


def read_images(path: Path, columns: Sequence[str] | None = None, *, sha256: str | None) -> pl.DataFrame:
    """Read `columns`, by default all, of an images.parquet; its SHA-256 is in shards.json, `files`.

    Raises FairfaceError for another table, a damaged one, and one whose packed images lack a place in a tar.
    """
    images = read_parquet(path, columns, sha256=sha256)
    types = images.schema
    for name in SCHEMA if columns is None else columns:
        if name not in types or types[name] != SCHEMA.get(name, types[name]):
            raise FairfaceError(f"{path} has no valid column {name}: {ShardsDocument.REDO}")
    if odd := [name for name, kind in types.items() if name not in SCHEMA and kind not in (pl.String, pl.Int8)]:
        raise FairfaceError(f"{path}: the column {odd[0]} holds no classes: {ShardsDocument.REDO}")
    packed = images.filter(status="packed") if "status" in types else images.clear()
    placed = packed.select(name for name in ("key", "shard", "bytes", "sha256") if name in types)
    if any(column.null_count() for column in placed) or ("bytes" in types and (packed["bytes"] < 0).any()):
        raise FairfaceError(f"{path} does not describe packed images: {ShardsDocument.REDO}")
    return images


def with_crosses(images: pl.DataFrame, attributes: AttributeTable) -> pl.DataFrame:
    """The images with a column for every attribute, crosses included; null where the table lacks it."""
    missing = {name: kind for name, kind in class_types(attributes.stored).items() if name not in images.columns}
    images = images.with_columns(pl.lit(None, kind).alias(name) for name, kind in missing.items())
    images = images.with_columns(map(derived_class, attributes.derived))  # they may be newer than the table
    return images.with_columns(map(derived_class, attributes.crosses))


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
