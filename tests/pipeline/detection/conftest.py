"""Faces that detectors are trained on: synthetic ones with samples of two runs, and ones annotated as real and fake."""

import shutil

import numpy as np
import polars as pl
import pytest

from models.detectors import registry
from pipeline.gan.options import GanOptions
from pipeline.gan.sample import SampleConfig, sample
from pipeline.gan.train import TrainConfig, train
from shards.documents import (
    LabelsDocument,
    file_hashes,
    samples_images_hash,
    training_images_hash,
    write_document,
)
from shards.pack import pack
from shards.plan import PackConfig
from shards.workspace import LabelFiles, Workspace
from tests.pipeline.detection.helpers import small_xception

TINY = GanOptions(image_size=32, latent_dim=16, width_g=8, width_d=8, batch_size=16, precision="fp32", compile=False)


def write_random_labels(
    files: LabelFiles, keys: pl.Series, *, source: str, run: str | None, images_hash: str | None
) -> None:
    """Labels as `fairface label` writes them, at random."""
    rng = np.random.default_rng(len(keys))
    table = {"key": keys, "gender": rng.choice(["female", "male"], len(keys)), "age": "adult"}
    tones = rng.choice(np.array([2, 5, 9], np.int8), len(keys))
    provenance = {"source": source, "run": run, "method": "clip", "labeller": "x@1"}
    pl.DataFrame(table).with_columns(
        skin_tone=tones, **{name: pl.lit(value, pl.String) for name, value in provenance.items()}
    ).write_parquet(files.labels)
    document = LabelsDocument(
        source=source,
        run=run,
        labeller="x@1",
        size=32,
        images=len(keys),
        fingerprint="",
        files=file_hashes(files.labels),
        images_hash=images_hash,
        evaluated=True,
    )
    write_document(files.document, document)


@pytest.fixture(autouse=True)
def small_network(request, monkeypatch) -> None:
    """Replace Xception by a network that trains in milliseconds, except in tests with the fixture `full_xception`."""

    if "full_xception" not in request.fixturenames:
        monkeypatch.setattr(registry, "xception", small_xception)


@pytest.fixture
def full_xception() -> None:
    """Train the full Xception."""


@pytest.fixture(scope="session")
def sampled(packed, tmp_path_factory) -> Workspace:
    """Synthetic faces in shards, and two runs of 40 and 90 samples; all labelled."""
    workspace = Workspace(tmp_path_factory.mktemp("sampled"))
    shutil.copytree(Workspace(packed).shards.folder, workspace.shards.folder)
    for name, count in (("early", 40), ("mine", 90)):
        train(workspace, TrainConfig(TINY, "sketch", steps=2, run=name, progress=False))
        sample(workspace, SampleConfig(run=name, count=count, device="cpu", progress=False))
        run = workspace.run(name)
        keys = pl.read_parquet(run.samples_table)["key"]
        samples = samples_images_hash(run)
        write_random_labels(run.label_files, keys, source="generated", run=name, images_hash=samples)
    keys = pl.read_parquet(workspace.shards.images)["key"]
    manifest = training_images_hash(workspace.shards)
    write_random_labels(workspace.shards.label_files, keys, source="train", run=None, images_hash=manifest)
    return workspace


@pytest.fixture
def workspace(sampled, tmp_path) -> Workspace:
    """A copy of `sampled`."""
    shutil.copytree(sampled.root, tmp_path, dirs_exist_ok=True)
    return Workspace(tmp_path)


@pytest.fixture(scope="session")
def annotated(synthetic_root, tmp_path_factory) -> Workspace:
    """150 real and fake faces of two families with a split; by their pixels all are synthetic."""
    root = tmp_path_factory.mktemp("aiface")
    lines = (synthetic_root / "train.csv").read_text().splitlines()
    tables = {"train": [lines[0]], "test": [lines[0]]}
    for number, line in enumerate(lines[1:151]):
        folder, target = [("Real/FFHQ", 0), ("GANs/ProGAN", 1), ("DMs/Palette", 1)][number % 3]
        values = line.split(",")
        copy = root / folder / f"{number}.jpg"
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(synthetic_root / values[0].removeprefix("AI_Face_imagesV2/"), copy)
        row = [f"AI_Face_imagesV2/{folder}/{number}.jpg", *values[1:4], str(target), *values[5:]]
        tables["test" if number % 5 == 0 else "train"].append(",".join(row))
    for name, rows in tables.items():
        (root / f"{name}.csv").write_text("\n".join(rows) + "\n")
    workspace = Workspace(tmp_path_factory.mktemp("annotated"))
    pack(root, workspace.shards, PackConfig(shard_images=40), progress=False)
    return workspace
