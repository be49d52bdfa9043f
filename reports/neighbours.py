"""Which training image each sample is nearest to, so that a person sees what a generator has merely remembered."""

from pathlib import Path

import numpy as np
import polars as pl

from reports.embeddings import chunks, count, first

WORK = 2e10  # multiplications that a search may take: half a second on two cores
MOST, LEAST = 512, 8  # samples that are looked for
REAL = 64  # training images whose own nearest ones say what near is
COLUMNS = {
    **dict.fromkeys(("run", "source", "key", "nearest"), pl.String),
    "similarity": pl.Float64,
    "among": pl.Int64,
}


def find(out: Path, run: str) -> pl.DataFrame:
    """The training image nearest to each of a run's first samples, and of the first training images to each other.

    run, source (generated, train), key, nearest (a training image's key), similarity (the cosine of their embeddings),
    among (how many training images were searched, all that are labelled). No rows where either side has no embeddings.
    """
    ours, theirs = out / "runs" / run / "embeddings.parquet", out / "shards" / "embeddings.parquet"
    if not (ours.is_file() and theirs.is_file()):
        return pl.DataFrame(schema=COLUMNS)
    counts = [count(path) for path in (ours, theirs)]
    if not counts[0] or counts[1] < 2:
        return pl.DataFrame(schema=COLUMNS)
    (keys, asked), (names, real), among = first(ours), first(theirs), counts[1]
    if asked.shape[1] != real.shape[1]:
        return pl.DataFrame(schema=COLUMNS)
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
        best[nearer], nearest[nearer] = value[nearer], there.gather(at[nearer]).to_numpy()
    sides = ["generated"] * len(asked) + ["train"] * len(real)
    columns = {"run": run, "source": sides, "key": [*keys[: len(asked)], *names[: len(real)]], "nearest": list(nearest)}
    return pl.DataFrame(columns | {"similarity": best.astype(float), "among": among}, schema=COLUMNS)
