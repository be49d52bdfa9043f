"""An OUT folder with a million labels: as many made-up faces and samples, each labelled by three methods."""

import io
from collections.abc import Sequence

import numpy as np
import polars as pl
from PIL import Image

from models import skin
from pipeline.labelling import tables
from shards.annotations import derived_class
from shards.atomic_io import write_parquet
from shards.attributes import AttributeTable, workspace_attributes
from shards.documents import (
    DataSource,
    LabelsDocument,
    ProbeDocument,
    RunConfig,
    SamplesDocument,
    ShardsDocument,
    file_hashes,
    write_document,
)
from shards.images_table import class_types
from shards.tar import TarWriter
from shards.workspace import LabelFiles, Workspace

FACES = 166_667  # of either side; three methods label each: a million labels
RUN = "million"
MANIFEST, SAMPLES = "m", "s"  # identify the images and the samples
EMBEDDING_WIDTH = 512  # of ViT-B/32
IMAGES = 2000  # of either side that have an image in a tar
TAR = "a.tar"


def write_million_labels(workspace: Workspace) -> None:
    """Write all files that packing, sampling and labelling would write, for the workspace's attributes."""
    attributes = workspace_attributes(workspace)
    rng = np.random.default_rng(0)
    shards, run = workspace.shards, workspace.run(RUN)
    run.samples.mkdir(parents=True)
    shards.folder.mkdir(parents=True)
    data = DataSource(manifest=MANIFEST, images=FACES, synthetic=True, root="", annotated=FACES)
    write_document(run.config, RunConfig(name=RUN, status="finished", started="2026-01-01T00:00:00", data=data))
    metrics = {name: np.linspace(1, 0.5, 5000) for name in ("loss_d", "loss_g", "d_real", "d_fake", "data_wait")}
    write_parquet(run.steps, pl.DataFrame(metrics | {"step": np.arange(5000) * 20, "images": 1}))
    keys = pl.int_range(FACES, eager=True).cast(pl.String).str.zfill(9).alias("key")
    shard = pl.when(pl.int_range(pl.len()) < IMAGES).then(pl.lit(TAR)).alias("shard")
    image = _noise_jpeg()
    for folder in (shards.folder, run.samples):
        with TarWriter(folder / TAR) as writer:
            for key in keys[:IMAGES]:
                writer.add(key, "jpg", image)
    faces, numbers = _random_faces(rng, keys, attributes)
    columns = [
        shard,
        pl.lit("packed").alias("status"),
        *map(derived_class, attributes.derived),
        pl.lit("GANs").alias("family"),
    ]
    write_parquet(shards.images, faces.with_columns(columns))
    write_document(shards.document, _shards_document(file_hashes(shards.images)))
    _write_labels(shards.label_files, rng, attributes=attributes, faces=faces, numbers=numbers, run=None)
    faces, numbers = _random_faces(rng, keys, attributes)
    samples = keys.to_frame().with_columns(shard, run=pl.lit(RUN), checkpoint=pl.lit("c"), seed=pl.lit(0))
    write_parquet(run.samples_table, samples.with_columns(index=pl.int_range(pl.len())))
    write_document(run.samples_document, _samples_document(file_hashes(run.samples_table)))
    _write_labels(run.label_files, rng, attributes=attributes, faces=faces, numbers=numbers, run=RUN)


def _random_faces(
    rng: np.random.Generator, keys: pl.Series, attributes: AttributeTable
) -> tuple[pl.DataFrame, dict[str, np.ndarray]]:
    """Return faces with a class of each attribute, and the classes' numbers."""
    labelled = attributes.labelled
    numbers = {name: rng.integers(0, len(attribute.names), len(keys)) for name, attribute in labelled.items()}
    faces = keys.to_frame().with_columns(
        pl.Series(name, numbers[name]).replace_strict(dict(enumerate(attribute.names)), return_dtype=pl.String)
        for name, attribute in labelled.items()
    )
    return faces.cast(class_types(labelled)), numbers  # type: ignore[arg-type]


def _write_labels(
    files: LabelFiles,
    rng: np.random.Generator,
    *,
    attributes: AttributeTable,
    faces: pl.DataFrame,
    numbers: dict[str, np.ndarray],
    run: str | None,
) -> None:
    """Write the labels of three methods, and random embeddings."""
    document = LabelsDocument(
        source="generated" if run else "train",
        run=run,
        labeller="clip",
        size=64,
        images=len(faces),
        images_hash=SAMPLES if run else MANIFEST,
        fingerprint="",
        files={},
        evaluated=True,
    )
    for method, path in (("clip", files.labels), ("probe", files.probe_labels)):
        probabilities = {
            name: _noisy_probabilities(rng, numbers[name], len(attribute.names))
            for name, attribute in attributes.labelled.items()
        }
        table = tables.label_frame(faces["key"], probabilities, attributes.labelled)
        tables.write_label_table(path, table, document=document, method=method, labeller=method)
    pixels = faces.select("key", skin.ATTRIBUTE, typology_angle=pl.lit(20.0, pl.Float32))
    tables.write_label_table(files.pixels, pixels, document=document, method="pixels", labeller="pixels")
    vectors = rng.standard_normal((len(faces), EMBEDDING_WIDTH), dtype=np.float32)
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    embedding = pl.Series("embedding", vectors, dtype=pl.Array(pl.Float16, EMBEDDING_WIDTH))
    write_parquet(files.embeddings, faces.select("key").with_columns(embedding), compress=False)
    document.files = file_hashes(files.labels, files.pixels, files.embeddings)
    write_document(files.document, document)
    probe_files = [files.probe_labels]
    if not run:
        _write_accuracies(files, attributes)
        probe_files.append(files.labellers)
    write_document(files.probe_document, ProbeDocument(fingerprint="", hash="", files=file_hashes(*probe_files)))


def _write_accuracies(files: LabelFiles, attributes: AttributeTable) -> None:
    """Write labellers.parquet, where the probe is selected for every attribute."""
    rows: Sequence[tuple] = [
        (attribute, method, method, FACES, 0.9, 0.9, method == "probe")
        for attribute in attributes
        for method in ("clip", "probe")
    ]
    names = ["attribute", "method", "labeller", "n", "accuracy", "balanced_accuracy", "selected"]
    write_parquet(files.labellers, pl.DataFrame(rows, schema=names, orient="row"))


def _noisy_probabilities(rng: np.random.Generator, numbers: np.ndarray, classes: int) -> np.ndarray:
    """Return probabilities float32 [N, classes] of a labeller that is right nine times in ten."""
    is_wrong = rng.random(len(numbers)) < 0.1
    labels = np.where(is_wrong, rng.integers(0, classes, len(numbers)), numbers)
    confidence = rng.uniform(0.6, 0.99, len(numbers))[:, None]
    is_label = np.eye(classes, dtype=bool)[labels]
    return np.where(is_label, confidence, (1 - confidence) / (classes - 1)).astype(np.float32)


def _noise_jpeg() -> bytes:
    """Return an image of 64x64."""
    data = io.BytesIO()
    Image.effect_noise((64, 64), 60).convert("RGB").save(data, "jpeg")
    return data.getvalue()


def _samples_document(files: dict[str, str]) -> SamplesDocument:
    return SamplesDocument(
        run=RUN,
        checkpoint="c",
        sha256="",
        seed=0,
        count=FACES,
        weights="ema",
        image_size=64,
        fingerprint=SAMPLES,
        step=1,
        manifest=MANIFEST,
        command="",
        shards=[],
        files=files,
    )


def _shards_document(files: dict[str, str]) -> ShardsDocument:
    return ShardsDocument(
        manifest=MANIFEST,
        files=files,
        fingerprint="",
        order="",
        synthetic=True,
        root="",
        options={},
        images_found=FACES,
        unreadable=[],
        tables=[],
        rows=FACES,
        rows_repeated=0,
        rows_disagreeing=0,
        rows_uncoded=0,
        matched=FACES,
        unmatched={},
        images=FACES,
        rejected={},
        annotated=FACES,
        bytes=0,
        shards=[],
        seconds=0.0,
        created="",
    )
