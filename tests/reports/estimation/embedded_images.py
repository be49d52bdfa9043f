"""Random embeddings for tests."""

import numpy as np


def unit_rows(rows, dtype=np.float32):
    """Rows scaled to length 1."""
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(dtype)


def random_embeddings(generator, n, shift=0.0, *, dimensions=8, dtype=np.float32):
    """`n` rows around a mean that is moved by `shift` in one direction."""
    rows = generator.normal(size=(n, dimensions)) / np.arange(1, dimensions + 1) ** 0.5
    rows[:, :2] += 1.5, shift
    return unit_rows(rows, dtype)
