"""Readers of embedding files."""

import numpy as np
import polars as pl

from reports.estimation.embeddings import count_embeddings, iterate_chunks, read_embeddings


def test_requested_embeddings_are_read_from_any_row_group(tmp_path):
    path, vectors = tmp_path / "e.parquet", np.random.default_rng(0).normal(size=(100, 4)).astype(np.float16)
    column = pl.Series(vectors, dtype=pl.Array(pl.Float16, 4))
    pl.DataFrame({"key": [f"{i:03d}" for i in range(100)], "embedding": column}).write_parquet(path, row_group_size=10)
    table = read_embeddings(path, pl.Series(["099", "000", "045", "046", "nobody"]))
    assert table["key"].to_list() == ["000", "045", "046", "099"]
    assert np.array_equal(table["embedding"].to_numpy(), vectors[[0, 45, 46, 99]].astype(np.float32))
    assert sum(len(keys) for keys, _ in iterate_chunks(path)) == count_embeddings(path)
