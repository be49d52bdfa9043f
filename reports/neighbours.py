"""Which training image each sample is nearest to, so that a person sees what a generator has merely remembered."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq

WORK = 5e10  # multiplications that a search may take: a second on two cores
MOST, LEAST = 512, 8  # samples that are looked for
REAL = 64  # training images whose own nearest ones say what near is
CHUNK = 65_536  # embeddings that are held at a time
COLUMNS = {
    **dict.fromkeys(("run", "source", "key", "nearest"), pl.String),
    "similarity": pl.Float64,
    "among": pl.Int64,
}


def find(out: Path, run: str) -> pl.DataFrame:
    """The training image nearest to each of a run's first samples, and of the first training images to each other.

    run, source (generated, train), key, nearest (a training image's key), similarity (the cosine of their embeddings),
    among (how many training images were searched, all that are labelled). No rows where either side has no embeddings,
    or the two are of different models.
    """
    ours, theirs = out / "runs" / run / "embeddings.parquet", out / "shards" / "embeddings.parquet"
    if not (ours.is_file() and theirs.is_file()):
        return pl.DataFrame(schema=COLUMNS)
    (keys, asked), (names, real) = next(chunks(ours)), next(chunks(theirs))
    if asked.shape[1] != real.shape[1] or not len(asked) or len(real) < 2:
        return pl.DataFrame(schema=COLUMNS)
    among = pq.read_metadata(theirs).num_rows
    asked, real = asked[: max(LEAST, min(MOST, int(WORK / (real.shape[1] * among))))], real[:REAL]
    best = np.full(len(asked) + len(real), -np.inf, np.float32)
    nearest = np.zeros(len(best), object)
    for number, (there, vectors) in enumerate(chunks(theirs)):
        similar = np.concatenate([asked, real]) @ vectors.T
        if not number:  # an image is not its own neighbour
            similar[np.arange(len(asked), len(best)), np.arange(len(real))] = -np.inf
        at = similar.argmax(1)
        value = similar[np.arange(len(best)), at]
        nearer = value > best
        best[nearer], nearest[nearer] = value[nearer], np.array(there, object)[at[nearer]]
    sides = ["generated"] * len(asked) + ["train"] * len(real)
    columns = {"run": run, "source": sides, "key": keys[: len(asked)] + names[: len(real)], "nearest": list(nearest)}
    return pl.DataFrame(columns | {"similarity": best.astype(float), "among": among}, schema=COLUMNS)


def chunks(path: Path) -> Iterator[tuple[list[str], np.ndarray]]:
    """Keys and embeddings of length 1, float32 [<= CHUNK, D], of a file of embeddings; empty ones of an empty file."""
    with pq.ParquetFile(path) as file:
        size = file.schema_arrow.field("embedding").type.list_size
        for batch in file.iter_batches(CHUNK, columns=["key", "embedding"]):
            flat = batch.column("embedding").flatten().to_numpy(zero_copy_only=False)
            yield batch.column("key").to_pylist(), flat.reshape(-1, size).astype(np.float32)
        if not file.metadata.num_rows:
            yield [], np.empty((0, size), np.float32)
