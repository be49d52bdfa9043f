"""Fits the probe to annotated training images, labels both sides with it, and evaluates the labellers.

The probe is fitted to half of the training images. The accuracy of every labeller is measured on the other half, which
alone represents the training side wherever the probe's labels are used.
"""

import polars as pl
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from models import clip
from models.probe import VERSION, Probe
from pipeline.labelling import tables
from pipeline.labelling.accuracy import accuracy_table, annotations_of
from shards.atomic_io import atomic_write, fingerprint, is_complete_parquet, read_parquet, write_parquet
from shards.documents import LabelsDocument, ProbeDocument, read_document, write_document
from shards.errors import FairfaceError
from shards.workspace import LabelFiles, ShardsFolder

MAX_FIT_IMAGES = 50_000  # annotated images that the probe is fitted to, at most


def evaluate_labellers(shards: ShardsFolder, samples: LabelFiles, *, force: bool = False) -> pl.DataFrame | None:
    """Label the training images and a run's samples with the probe, and evaluate the labellers.

    Writes labellers.parquet and the probe's weights for the training side, and the probe's labels for both sides.
    Returns the rows of labellers.parquet: attribute, method, labeller, n, accuracy, balanced_accuracy, selected. If too
    few images are annotated, none of these files is written and the result is None.
    """
    files = shards.label_files
    labels = load_labels_document(files)
    key = fingerprint([VERSION, labels.fingerprint])
    probe = None if force else load_current_probe(files, key)
    if probe is None:
        for path in (files.probe_document, files.probe_weights, files.probe_labels, files.labellers):
            path.unlink(missing_ok=True)
        probe = fit(shards, labels)
        if probe is None:
            samples.probe_labels.unlink(missing_ok=True)
            samples.probe_document.unlink(missing_ok=True)
        else:
            write_document(files.probe_document, ProbeDocument(fingerprint=key, hash=probe.hash))
    if probe:
        label_samples(samples, probe, force=force)
    for side in (files, samples):
        mark_evaluated(side)
    return read_parquet(files.labellers) if probe else None


def load_labels_document(files: LabelFiles) -> LabelsDocument:
    """Read labels.json of labelled images. Raises FairfaceError if there is none."""
    document = read_document(files.document, LabelsDocument)
    if document is None:
        raise FairfaceError(f"{files.document} is missing: run `fairface label`")
    return document


def mark_evaluated(files: LabelFiles) -> None:
    """Record in labels.json that the evaluation is complete, so that an interrupted one does not count as complete."""
    document = load_labels_document(files)
    if not document.evaluated:
        document.evaluated = True
        write_document(files.document, document)


def load_current_probe(files: LabelFiles, key: str) -> Probe | None:
    """Load the probe of the training side; None unless it was fitted to the same labels and its files are complete."""
    document = read_document(files.probe_document, ProbeDocument)
    complete = is_complete_parquet(files.probe_labels) and is_complete_parquet(files.labellers)
    if document is None or document.fingerprint != key or not complete:
        return None
    try:
        probe = Probe(load_file(files.probe_weights))
    except (SafetensorError, OSError):
        return None
    return probe if probe.hash == document.hash else None


def fit(shards: ShardsFolder, labels: LabelsDocument) -> Probe | None:
    """Fit and save the probe, label the images that it was not fitted to, and evaluate all labellers on them.

    Returns None, and saves nothing, if too few images are annotated.
    """
    files = shards.label_files
    images = read_parquet(shards.images).filter(status="packed")
    embeddings = read_parquet(files.embeddings)
    truth = annotations_of(images, embeddings["key"])
    classes = class_indices(truth)
    annotated = torch.stack(list(classes.values())).ge(0).any(0)
    if not annotated.any():
        return None
    in_fit_half = choose_fit_half(annotated)
    fitted_to = in_fit_half & annotated
    vectors = embedding_tensor(embeddings)
    probe = Probe.fit(vectors[fitted_to], {name: values[fitted_to] for name, values in classes.items()})
    if not probe.attributes:
        return None
    with atomic_write(files.probe_weights) as file:
        file.write(save(probe.state))
    held_out = pl.Series((~in_fit_half).numpy())
    methods = {
        "clip": read_parquet(files.labels).filter(held_out),
        "probe": write_probe_labels(
            files, embeddings["key"].filter(held_out), vectors=vectors[~in_fit_half], probe=probe, labels=labels
        ),
        "pixels": read_parquet(files.pixels).filter(held_out),
    }
    write_parquet(files.labellers, accuracy_table(truth.filter(held_out), methods))
    return probe


def class_indices(truth: pl.DataFrame) -> dict[str, Tensor]:
    """Each attribute's class indices in CLASSES, int64 [N], -1 where an image is not annotated."""
    return {
        name: torch.from_numpy(
            truth[name]
            .replace_strict(dict(zip(names, range(len(names)), strict=True)), default=-1, return_dtype=pl.Int64)
            .fill_null(-1)
            .to_numpy()
            .copy()
        )
        for name, names in clip.CLASSES.items()
    }


def choose_fit_half(annotated: Tensor) -> Tensor:
    """Mask of the images set aside for the fit, bool [N]; the annotated ones among them are fitted to.

    Every second image is set aside, annotated or not, so that the others represent all images, whichever are
    annotated; and only as many as needed for MAX_FIT_IMAGES annotated ones.
    """
    in_fit_half = torch.arange(len(annotated)) % 2 == 0
    return in_fit_half & ((in_fit_half & annotated).cumsum(0) <= MAX_FIT_IMAGES)


def embedding_tensor(embeddings: pl.DataFrame) -> Tensor:
    """The column `embedding` as a float16 tensor [N, D]."""
    return torch.from_numpy(embeddings["embedding"].to_numpy().copy())


def write_probe_labels(
    files: LabelFiles, keys: pl.Series, *, vectors: Tensor, probe: Probe, labels: LabelsDocument
) -> pl.DataFrame:
    """Label embeddings [N, D] with the probe, write probe.parquet and return it."""
    probabilities = probe.probabilities(vectors)
    table = tables.label_frame(keys, torch.cat([probabilities[name] for name in clip.CLASSES], 1).numpy())
    labeller = f"probe-{probe.hash} of {labels.labeller}"
    return tables.write_label_table(files.probe_labels, table, document=labels, method="probe", labeller=labeller)


def label_samples(samples: LabelFiles, probe: Probe, *, force: bool) -> None:
    """Label a run's samples with the probe, unless that was done."""
    labels = load_labels_document(samples)
    key = fingerprint([probe.hash, labels.fingerprint])
    old = None if force else read_document(samples.probe_document, ProbeDocument)
    if old and old.fingerprint == key and is_complete_parquet(samples.probe_labels):
        return
    embeddings = read_parquet(samples.embeddings)
    vectors = embedding_tensor(embeddings)
    write_probe_labels(samples, embeddings["key"], vectors=vectors, probe=probe, labels=labels)
    write_document(samples.probe_document, ProbeDocument(fingerprint=key, hash=probe.hash))
