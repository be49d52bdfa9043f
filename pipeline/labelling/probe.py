"""Fits the probe to annotated training images, labels both sides with it, and evaluates the labellers.

The probe is fitted to half of the training images. The accuracy of every labeller is measured on the other half, which
alone represents the training side wherever the probe's labels are used.
"""

from pathlib import Path

import polars as pl
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from models.classifier import NAME as CLASSIFIER
from models.probe import VERSION, Probe
from pipeline.labelling import tables
from pipeline.labelling.accuracy import SCHEMA, accuracy_table, annotations_of
from shards.atomic_io import fingerprint, read_bytes, read_parquet, remove_files
from shards.attributes import AttributeTable
from shards.documents import (
    LabelsDocument,
    ProbeDocument,
    changed_files,
    load_shards_json,
    read_document,
    samples_images_hash,
    stale_labels,
    training_images_hash,
    write_document,
)
from shards.errors import FairfaceError
from shards.images_table import class_types, read_images
from shards.workspace import LabelFiles, RunFolder, ShardsFolder

MIN_CLASS_IMAGES = (
    50  # classes with fewer annotated images are not fitted: half of fewer is too small to measure accuracy
)
MAX_FIT_IMAGES = 50_000  # annotated images that the probe is fitted to, at most


def evaluate_labellers(
    shards: ShardsFolder, run: RunFolder, *, attributes: AttributeTable, force: bool = False
) -> pl.DataFrame | None:
    """Label the training images and a run's samples with the probe, and evaluate the labellers.

    The probe labels every annotated attribute with at least two classes of at least MIN_CLASS_IMAGES images each. There
    is no probe on the embeddings of the classifier, which is itself fitted to these annotations.

    Writes labellers.parquet and the probe's weights for the training side, and the probe's labels for both sides.
    Returns the rows of labellers.parquet: attribute, method, labeller, n, accuracy, balanced_accuracy, selected. If too
    few images are annotated, none of these files is written and the result is None. Raises FairfaceError for damaged
    labels, and for labels of other images than the present ones.
    """
    files, samples = shards.label_files, run.label_files
    packed, labels = load_shards_json(shards), load_labels_document(files, training_images_hash(shards))
    sample_labels = load_labels_document(samples, samples_images_hash(run))
    classes = [[name, *attribute.names] for name, attribute in attributes.labelled.items()]
    key = fingerprint([VERSION, *SCHEMA, labels.fingerprint, packed.manifest, classes])
    if labels.method == CLASSIFIER:
        if force or not is_evaluated(files, key):
            images = read_images(shards.images, sha256=packed.files.get(shards.images.name, "")).filter(status="packed")
            evaluate_classifier(files, images, attributes=attributes, labels=labels, key=key)
        for side, document in ((files, labels), (samples, sample_labels)):
            mark_evaluated(side, document)
        return read_accuracies(files)
    probe = None if force else load_current_probe(files, key)
    if probe is None:
        images = read_images(shards.images, sha256=packed.files.get(shards.images.name, "")).filter(status="packed")
        probe = fit(files, images, attributes=attributes, labels=labels, key=key)
        if probe is None:
            for side in (files, samples):
                remove_files([side.probe_document, side.probe_labels, side.probe_weights, side.labellers])
    if probe:
        label_samples(samples, probe, attributes=attributes, labels=sample_labels, force=force)
    for side, document in ((files, labels), (samples, sample_labels)):
        mark_evaluated(side, document)
    return read_accuracies(files) if probe else None


def read_accuracies(files: LabelFiles) -> pl.DataFrame:
    """Read labellers.parquet. Raises FairfaceError if it is damaged."""
    accuracies = read_parquet(files.labellers, SCHEMA | {"selected": pl.Boolean})
    if accuracies.null_count().sum_horizontal().sum():
        raise FairfaceError(f"{files.labellers} is not complete: {ProbeDocument.REDO}")
    return accuracies


def load_labels_document(files: LabelFiles, images_hash: str | None) -> LabelsDocument:
    """Read labels.json of labelled images. Raises FairfaceError if there is none, or if it is of other images."""
    document = read_document(files.document, LabelsDocument)
    if document is None:
        raise FairfaceError(f"{files.document} is missing: run `fairface label`")
    if stale := stale_labels(files, images_hash=images_hash):
        raise FairfaceError(stale)
    return document


def mark_evaluated(files: LabelFiles, document: LabelsDocument) -> None:
    """Record in labels.json that the evaluation is complete, so that an interrupted one does not count as complete."""
    if not document.evaluated:
        document.evaluated = True
        write_document(files.document, document)


def load_current_probe(files: LabelFiles, key: str) -> Probe | None:
    """Load the probe of the training side; None unless it was fitted to the same labels and its files are intact."""
    document = read_document(files.probe_document, ProbeDocument)
    needed = {path.name for path in (files.probe_weights, files.probe_labels, files.labellers)}
    if document is None or document.fingerprint != key or document.files.keys() != needed:
        return None
    if changed_files(files.folder, document.files):
        return None
    try:
        probe = Probe(load(read_bytes(files.probe_weights)))
    except SafetensorError:
        return None
    return probe if probe.hash == document.hash else None


def is_evaluated(files: LabelFiles, key: str) -> bool:
    """Whether labellers.parquet alone was written for these labels, and is intact."""
    document = read_document(files.probe_document, ProbeDocument)
    return (
        document is not None
        and document.fingerprint == key
        and document.files.keys() == {files.labellers.name}
        and not changed_files(files.folder, document.files)
    )


def evaluate_classifier(
    files: LabelFiles, images: pl.DataFrame, *, attributes: AttributeTable, labels: LabelsDocument, key: str
) -> None:
    """Write labellers.parquet: the accuracy of a classifier that labels alone, and of the pixels."""
    classified = read_labels(files.labels, labels, attributes)
    pixels = read_labels(files.pixels, labels, attributes).join(classified, on="key", how="semi", maintain_order="left")
    truth = annotations_of(images, classified["key"], attributes)
    accuracies = accuracy_table(truth, {CLASSIFIER: classified, "pixels": pixels}, attributes)
    tables.replace_tables(
        files.probe_document, {files.labellers: accuracies}, ProbeDocument(fingerprint=key, hash="", files={})
    )


def fit(
    files: LabelFiles, images: pl.DataFrame, *, attributes: AttributeTable, labels: LabelsDocument, key: str
) -> Probe | None:
    """Fit and save the probe, label the images that it was not fitted to, and evaluate all labellers on them.

    `images` are the packed ones, with their annotations. Returns None, and saves nothing, if too few are annotated.
    """
    embeddings = read_embeddings(files, labels)
    truth = annotations_of(images, embeddings["key"], attributes)
    classes = class_indices(truth, attributes)
    annotated = torch.stack(list(classes.values())).ge(0).any(0)
    if not annotated.any():
        return None
    in_fit_half = choose_fit_half(annotated)
    fitted_to = in_fit_half & annotated
    vectors = embedding_tensor(embeddings)
    probe = Probe.fit(
        vectors[fitted_to],
        {name: values[fitted_to] for name, values in classes.items()},
        sizes={name: len(attribute.names) for name, attribute in attributes.labelled.items()},
    )
    if not probe.attributes:
        return None
    held_out = pl.Series((~in_fit_half).numpy())
    methods = {
        "clip": read_labels(files.labels, labels, attributes).filter(held_out),
        "probe": probe_labels(
            embeddings["key"].filter(held_out),
            vectors=vectors[~in_fit_half],
            probe=probe,
            attributes=attributes,
            labels=labels,
        ),
        "pixels": read_labels(files.pixels, labels, attributes).filter(held_out),
    }
    if files.classifier_labels.name in labels.files:
        methods[CLASSIFIER] = read_labels(files.classifier_labels, labels, attributes)
    tables.replace_tables(
        files.probe_document,
        {
            files.probe_labels: methods["probe"],
            files.labellers: accuracy_table(truth.filter(held_out), methods, attributes),
        },
        ProbeDocument(fingerprint=key, hash=probe.hash, files={}),
        others={files.probe_weights: save(probe.state)},
    )
    return probe


def read_embeddings(files: LabelFiles, labels: LabelsDocument) -> pl.DataFrame:
    """Read key and embedding of labelled images. Raises FairfaceError if they are damaged."""
    path = files.embeddings
    embeddings = read_parquet(path, ("key", "embedding"), sha256=labels.files.get(path.name, ""))
    kind = embeddings.schema["embedding"]
    if not isinstance(kind, pl.Array) or kind.inner != pl.Float16 or len(kind.shape) != 1:
        raise FairfaceError(f"{path}: column embedding is {kind} instead of arrays of Float16: {labels.REDO}")
    if embeddings.null_count().sum_horizontal().item() or len(embeddings) != labels.images:
        raise FairfaceError(f"{path} lacks embeddings: {labels.REDO}")
    return embeddings


def read_labels(path: Path, labels: LabelsDocument, attributes: AttributeTable) -> pl.DataFrame:
    """Read the labels of one method. Raises FairfaceError if they are damaged."""
    table = read_parquet(path, sha256=labels.files.get(path.name, ""))
    types = {"key": pl.String, "method": pl.String, "labeller": pl.String} | {
        name: kind for name, kind in class_types(attributes.labelled).items() if name in table.columns
    }
    if wrong := [name for name, kind in types.items() if table.schema.get(name) != kind]:
        raise FairfaceError(f"{path} has no valid column {wrong[0]}: {labels.REDO}")
    if len(table) != labels.images and table["method"].unique().to_list() != [CLASSIFIER]:
        raise FairfaceError(f"{path} has {len(table):,} labels of {labels.images:,} images: {labels.REDO}")
    return table


def class_indices(truth: pl.DataFrame, attributes: AttributeTable) -> dict[str, Tensor]:
    """The indices of each attribute's annotated classes, int64 [N]; -1 without an annotation, and for rare classes."""
    indices = {}
    for name, attribute in attributes.labelled.items():
        counts = dict(truth[name].value_counts().iter_rows())
        common = {item: i for i, item in enumerate(attribute.names) if counts.get(item, 0) >= MIN_CLASS_IMAGES}
        column = truth[name].replace_strict(common, default=-1, return_dtype=pl.Int64).fill_null(-1)
        indices[name] = torch.from_numpy(column.to_numpy().copy())
    return indices


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


def probe_labels(
    keys: pl.Series, *, vectors: Tensor, probe: Probe, attributes: AttributeTable, labels: LabelsDocument
) -> pl.DataFrame:
    """The probe's labels of embeddings [N, D]: the rows of probe.parquet."""
    probabilities = {name: values.numpy() for name, values in probe.probabilities(vectors).items()}
    # the order of columns is not the probe's, because safetensors loads tensors in a random order
    fitted = {name: attribute for name, attribute in attributes.items() if name in probabilities}
    table = tables.label_frame(keys, probabilities, fitted)
    labeller = f"probe-{probe.hash} of {labels.labeller}"
    return tables.label_table(table, document=labels, method="probe", labeller=labeller)


def label_samples(
    samples: LabelFiles, probe: Probe, *, attributes: AttributeTable, labels: LabelsDocument, force: bool
) -> None:
    """Label a run's samples with the probe, unless that was done."""
    key = fingerprint([probe.hash, labels.fingerprint])
    old = None if force else read_document(samples.probe_document, ProbeDocument)
    expected = {samples.probe_labels.name}
    if old and old.fingerprint == key and old.files.keys() == expected and not changed_files(samples.folder, old.files):
        return
    embeddings = read_embeddings(samples, labels)
    vectors = embedding_tensor(embeddings)
    if vectors.shape[1:] != probe.state["mean"].shape:
        raise FairfaceError(f"{samples.embeddings} has embeddings of another labeller: {labels.REDO}")
    table = probe_labels(embeddings["key"], vectors=vectors, probe=probe, attributes=attributes, labels=labels)
    tables.replace_tables(
        samples.probe_document,
        {samples.probe_labels: table},
        ProbeDocument(fingerprint=key, hash=probe.hash, files={}),
    )
