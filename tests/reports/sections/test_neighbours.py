"""The samples that are closest to a training image."""

import json

import numpy as np
import polars as pl
import pytest

import sql
from shards.errors import FairfaceError
from shards.workspace import Workspace
from tests.reports.fake_workspace import build


def unit_vectors(generator, n):
    vectors = generator.normal(size=(n, 16))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def write_embeddings(path, vectors):
    keys = [f"{i:09d}" for i in range(len(vectors))]
    overrides = {"embedding": pl.Array(pl.Float16, 16)}
    pl.DataFrame({"key": keys, "embedding": vectors.tolist()}, schema_overrides=overrides).write_parquet(path)


@pytest.fixture
def memorised(world):
    """An OUT folder whose sample 7 reproduces training image 40, and the training embeddings."""
    out, generator = world(), np.random.default_rng(0)
    real = unit_vectors(generator, 300)
    samples = generator.normal(size=(60, 16))
    samples[7] = real[40] + 0.001
    samples /= np.linalg.norm(samples, axis=1, keepdims=True)
    write_embeddings(out / "shards" / "embeddings.parquet", real)
    write_embeddings(out / "runs" / "first" / "embeddings.parquet", samples)
    build(out)
    return out, real


def test_a_reproduced_training_image_is_found(memorised):
    out, real = memorised
    connection = sql.connect(Workspace(out))
    found = sql.ask(connection, "neighbours")
    assert found.row(0)[:2] == ("000000007", "000000040")
    assert found["similarity"][0] > 0.999
    assert found["similarity"][1] < 0.95
    assert found["neighbours_found"][0] == 60
    training = sql.ask(connection, "neighbours", source="train")
    assert training["similarity"][0] < 0.999  # no image is its own neighbour
    rounded = real.astype(np.float16).astype(np.float32)
    similarity = rounded @ rounded.T - 2 * np.eye(300)
    best = {f"{i:09d}": f"{similarity[i].argmax():09d}" for i in range(64)}
    assert dict(training.select("key", "nearest").iter_rows()) == best
    report = json.loads((out / "report" / "report.json").read_text())
    assert report["neighbours"][0]["key"] == "000000007"


def test_damaged_embeddings_are_refused_and_mended_ones_are_shown(memorised):
    out, _ = memorised
    path = out / "shards" / "embeddings.parquet"
    content = path.read_bytes()
    for damaged in (content[:-50], b"", content[:200] + bytes(400) + content[600:]):
        path.write_bytes(damaged)
        with pytest.raises(FairfaceError, match=r"embeddings\.parquet can't be read"):
            build(out, force=True)
    path.write_bytes(content)
    assert "Does the generator reproduce training images?" in build(out).page.read_text()
