"""Finds the nearest training image of each sample, which shows whether a generator copies training images."""

import numpy as np
import polars as pl

from reports.estimation.embeddings import count_embeddings, iterate_chunks, read_first_chunk
from shards.workspace import Workspace

MULTIPLICATIONS = 2e10  # that a search may take: half a second on two cores
MAX_SAMPLES, MIN_SAMPLES = 512, 8  # samples whose neighbours are searched
REAL_IMAGES = 64  # training images whose own neighbours serve as the baseline
NEIGHBOUR_SCHEMA = {
    **dict.fromkeys(("run", "source", "key", "nearest"), pl.String),
    "similarity": pl.Float64,
    "images_searched": pl.Int64,
}


def find_nearest(workspace: Workspace, run: str) -> pl.DataFrame:
    """The nearest training image of a run's first samples, and of the first training images among each other.

    Columns: run, source (generated, train), key, nearest (key of a training image), similarity (cosine of the
    embeddings), images_searched (number of training images searched: all that are labelled). No rows if either side has
    no embeddings.
    """
    samples, training = workspace.run(run).label_files.embeddings, workspace.shards.label_files.embeddings
    if not (samples.is_file() and training.is_file()):
        return pl.DataFrame(schema=NEIGHBOUR_SCHEMA)
    images_searched = count_embeddings(training)
    if not count_embeddings(samples) or images_searched < 2:
        return pl.DataFrame(schema=NEIGHBOUR_SCHEMA)
    (sample_keys, queries), (real_keys, real) = read_first_chunk(samples), read_first_chunk(training)
    if queries.shape[1] != real.shape[1]:
        return pl.DataFrame(schema=NEIGHBOUR_SCHEMA)
    affordable = int(MULTIPLICATIONS / (real.shape[1] * images_searched))
    queries, real = queries[: max(MIN_SAMPLES, min(MAX_SAMPLES, affordable))], real[:REAL_IMAGES]
    count = len(queries) + len(real)
    similarity, nearest = np.full(count, -np.inf, np.float32), np.zeros(count, object)
    for number, (keys, vectors) in enumerate(iterate_chunks(training)):
        similarities = np.concatenate([queries, real]) @ vectors.T
        if not number:  # `real` are the first images searched, and an image is not its own neighbour
            similarities[np.arange(len(queries), count), np.arange(len(real))] = -np.inf
        at = similarities.argmax(1)
        value = similarities[np.arange(count), at]
        is_nearer = value > similarity
        similarity[is_nearer], nearest[is_nearer] = value[is_nearer], keys.gather(at[is_nearer]).to_numpy()
    columns = {
        "run": run,
        "source": ["generated"] * len(queries) + ["train"] * len(real),
        "key": [*sample_keys[: len(queries)], *real_keys[: len(real)]],
        "nearest": list(nearest),
        "similarity": similarity.astype(float),
        "images_searched": images_searched,
    }
    return pl.DataFrame(columns, schema=NEIGHBOUR_SCHEMA)
