"""Reads files of embeddings, which may be a gigabyte: in pieces, and only those that are wanted."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from shards.concurrency import map_in_order
from shards.errors import FairfaceError


@contextmanager
def opened(path: Path) -> Iterator[pq.ParquetFile]:
    """The file, for reading. FairfaceError where it is damaged."""
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0][:200]
        raise FairfaceError(f"{path} can't be read ({reason}): `fairface label --force` writes it again") from error


def chunks(path: Path) -> Iterator[tuple[pl.Series, np.ndarray]]:
    """Keys and embeddings of length 1, float32 [N, D], of every row group; the next one is read meanwhile."""
    with opened(path) as file, ThreadPoolExecutor(1) as pool:
        groups = ((file, number) for number in range(file.num_row_groups))
        for _, (keys, vectors) in map_in_order(pool, group, groups, 2):
            yield keys, vectors.astype(np.float32)


def count(path: Path) -> int:
    """How many embeddings there are."""
    with opened(path) as file:
        return file.metadata.num_rows


def first(path: Path) -> tuple[pl.Series, np.ndarray]:
    """The same of the first row group alone."""
    with opened(path) as file:
        keys, vectors = group(file, 0)
    return keys, vectors.astype(np.float32)


def group(file: pq.ParquetFile, number: int) -> tuple[pl.Series, np.ndarray]:
    """Keys and float16 [N, D] of one row group."""
    table = file.read_row_group(number, columns=["key", "embedding"])
    column = table.column("embedding")
    flat = np.concatenate([part.flatten().to_numpy(zero_copy_only=False) for part in column.chunks])
    return pl.Series(table.column("key")), flat.reshape(-1, column.type.list_size)


def of(path: Path, keys: pl.Series) -> pl.DataFrame:
    """key and embedding (float32) of those `keys` that the file has; row groups that hold none of them are not read."""
    wanted, found = keys.unique().sort(), []
    with opened(path) as file:
        for number in range(file.num_row_groups):
            known = file.metadata.row_group(number).column(0).statistics
            if known and known.has_min_max and not wanted.is_between(str(known.min), str(known.max)).any():
                continue
            names, vectors = group(file, number)
            kept = names.is_in(wanted.implode())
            if kept.any():
                rows = vectors[kept.to_numpy()].astype(np.float32)
                kind = pl.Array(pl.Float32, rows.shape[1])
                found.append(pl.DataFrame({"key": names.filter(kept), "embedding": pl.Series(rows, dtype=kind)}))
    empty = pl.DataFrame(schema={"key": pl.String, "embedding": pl.Array(pl.Float32, 1)})
    return pl.concat(found) if found else empty
