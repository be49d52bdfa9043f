"""Readers of embedding files."""

import numpy as np
import polars as pl
import pytest

from reports.estimation.embeddings import count_embeddings, iterate_chunks, read_embeddings
from shards.errors import FairfaceError

VECTORS = pl.Series("embedding", [[1.0, 0.0]], dtype=pl.Array(pl.Float16, 2))


@pytest.mark.parametrize(
    "table",
    [
        {"key": ["a"]},
        {"embedding": VECTORS},
        {"key": [1], "embedding": VECTORS},
        {"key": [None], "embedding": VECTORS},
        {"key": ["a"], "embedding": [1.0]},
        {"key": ["a"], "embedding": [[1.0]]},
        {"key": ["a"], "embedding": ["x"]},
        {"key": ["a"], "embedding": pl.Series([None], dtype=pl.Array(pl.Float16, 2))},
        {"key": ["a"], "embedding": pl.Series([[1, 2]], dtype=pl.Array(pl.Int8, 2))},
    ],
)
def test_a_table_of_another_shape_is_refused_in_one_line(tmp_path, table):
    path = tmp_path / "embeddings.parquet"
    pl.DataFrame(table).write_parquet(path)
    for read in (lambda: list(iterate_chunks(path)), lambda: read_embeddings(path, pl.Series(["a"]))):
        with pytest.raises(FairfaceError, match=r"embeddings\.parquet .*: `fairface label --force`"):
            read()


def test_requested_embeddings_are_read_from_any_row_group(tmp_path):
    path, vectors = tmp_path / "e.parquet", np.random.default_rng(0).normal(size=(100, 4)).astype(np.float16)
    column = pl.Series(vectors, dtype=pl.Array(pl.Float16, 4))
    pl.DataFrame({"key": [f"{i:03d}" for i in range(100)], "embedding": column}).write_parquet(path, row_group_size=10)
    table = read_embeddings(path, pl.Series(["099", "000", "045", "046", "nobody"]))
    assert table["key"].to_list() == ["000", "045", "046", "099"]
    assert np.array_equal(table["embedding"].to_numpy(), vectors[[0, 45, 46, 99]].astype(np.float32))
    assert sum(len(keys) for keys, _ in iterate_chunks(path)) == count_embeddings(path)
