"""Reads embedding files, which may be a gigabyte large: by row group, and only the rows that are needed."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from shards.atomic_io import check_regular
from shards.concurrency import generator_threads, map_in_order
from shards.errors import FairfaceError


@contextmanager
def open_embeddings(path: Path) -> Iterator[pq.ParquetFile]:
    """Open the file for reading. Raises FairfaceError if it is damaged or has other columns."""
    try:
        check_regular(path)
        with pq.ParquetFile(path) as file:
            check_columns(path, file.schema_arrow)
            yield file
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0][:200]
        raise FairfaceError(f"{path} can't be read ({reason}): `fairface label --force` writes it again") from error


def check_columns(path: Path, schema: pa.Schema) -> None:
    """Raise FairfaceError unless a file has keys and vectors of equal length."""
    types = {field.name: field.type for field in schema}
    key, embedding = types.get("key"), types.get("embedding")
    is_text = key is not None and (pa.types.is_string(key) or pa.types.is_large_string(key))
    is_vector = isinstance(embedding, pa.FixedSizeListType) and pa.types.is_floating(embedding.value_type)
    if not (is_text and is_vector):
        raise FairfaceError(f"{path} has other columns than embeddings: `fairface label --force` writes it again")


def iterate_chunks(path: Path) -> Iterator[tuple[pl.Series, np.ndarray]]:
    """Keys and embeddings of length 1, float32 [N, D], of every row group; the next one is read ahead."""
    with open_embeddings(path) as file, generator_threads(1) as pool:
        groups = ((file, number) for number in range(file.num_row_groups))
        for _, (keys, vectors) in map_in_order(pool, read_row_group, groups, ahead=2):
            yield keys, vectors.astype(np.float32)


def count_embeddings(path: Path) -> int:
    """The number of embeddings."""
    with open_embeddings(path) as file:
        return int(file.metadata.num_rows)


def read_first_chunk(path: Path) -> tuple[pl.Series, np.ndarray]:
    """Keys and embeddings, float32 [N, D], of the first row group."""
    with open_embeddings(path) as file:
        if not file.num_row_groups:
            raise pa.ArrowInvalid("there are no rows")
        keys, vectors = read_row_group(file, 0)
    return keys, vectors.astype(np.float32)


def read_row_group(file: pq.ParquetFile, number: int) -> tuple[pl.Series, np.ndarray]:
    """Keys and embeddings, float16 [N, D], of a row group."""
    table = file.read_row_group(number, columns=["key", "embedding"])
    column = table.column("embedding")
    if table.column("key").null_count or column.null_count:
        raise pa.ArrowInvalid("a key or an embedding is missing")
    flat = np.concatenate([part.flatten().to_numpy(zero_copy_only=False) for part in column.chunks])
    return pl.Series(table.column("key")), flat.reshape(-1, column.type.list_size)


def read_embeddings(path: Path, keys: pl.Series) -> pl.DataFrame:
    """key and embedding (float32) of the `keys` that the file contains.

    Row groups whose statistics rule out all of the keys are not read.
    """
    keys, tables = keys.unique().sort(), []
    with open_embeddings(path) as file:
        for number in range(file.num_row_groups):
            statistics = file.metadata.row_group(number).column(0).statistics
            if (
                statistics
                and statistics.has_min_max
                and not keys.is_between(str(statistics.min), str(statistics.max)).any()
            ):
                continue
            names, vectors = read_row_group(file, number)
            is_needed = names.is_in(keys.implode())
            if is_needed.any():
                rows = vectors[is_needed.to_numpy()].astype(np.float32)
                column = pl.Series(rows, dtype=pl.Array(pl.Float32, rows.shape[1]))
                tables.append(pl.DataFrame({"key": names.filter(is_needed), "embedding": column}))
    empty = pl.DataFrame(schema={"key": pl.String, "embedding": pl.Array(pl.Float32, 1)})
    return pl.concat(tables) if tables else empty
