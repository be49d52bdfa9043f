"""The classifier that is fitted to half of the annotated training images, and cached next to their labels."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import click
import numpy as np
import polars as pl
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor
from tqdm import tqdm

from models import classifier as network
from models.classifier import ClassifierLabeller, FaceClassifier
from pipeline.data.decoder import decode_all
from pipeline.data.shard_set import ShardSet
from pipeline.labelling import classifier_fit
from pipeline.labelling.accuracy import annotations_of
from pipeline.labelling.classifier_fit import FitConfig, FitImages
from pipeline.labelling.probe import MIN_CLASS_IMAGES, choose_fit_half, class_indices
from pipeline.runtime import check_memory
from shards.atomic_io import fingerprint, read_bytes, remove_tree
from shards.attributes import AttributeTable
from shards.documents import ClassifierDocument, ShardsDocument, changed_files, read_document
from shards.errors import FairfaceError
from shards.images_table import read_images
from shards.replacement import replace_described_files
from shards.workspace import LabelFiles, ShardsFolder

REVISION = 1  # bumped when the fit changes, so that weights of an older version are not used
HELD_OUT = 10_000  # annotated images that the thresholds are set on, at most
UNSURE_SHARE = 0.1  # largest share of held-out images whose labels may be unsure
UNSURE_ACCURACY = 0.75  # upper limit of the accuracy that the unsure labels would have together
BATCH_SIZE = 256  # images that are decoded or labelled at a time


@dataclass(frozen=True)
class ClassifierData:
    """The packed images that a classifier may be fitted to, and the size at which it will label."""

    shards: ShardsFolder
    packed: ShardsDocument
    tars: ShardSet
    attributes: AttributeTable
    image_size: int  # pixels, of the generator
    fit: FitConfig = field(default_factory=FitConfig)

    @property
    def fingerprint(self) -> str:
        """A hash of everything that determines the classifier."""
        classes = [[name, *attribute.names] for name, attribute in self.attributes.labelled.items()]
        size = [self.image_size, network.INPUT_SIZE, *network.WIDTHS]
        recipe = [*classifier_fit.RECIPE, self.fit.seed, self.fit.epochs, MIN_CLASS_IMAGES, UNSURE_SHARE]
        return fingerprint([REVISION, self.packed.manifest, classes, size, recipe, UNSURE_ACCURACY])


@dataclass(frozen=True)
class FittedClassifier:
    """A classifier, and the training images that it was fitted to and therefore does not label."""

    labeller: ClassifierLabeller
    fit_keys: pl.Series  # of the half that it was fitted to


@dataclass(frozen=True)
class AnnotatedImages:
    """The annotations that a classifier is fitted to, for all packed images in tar order."""

    keys: pl.Series
    classes: dict[str, Tensor]  # by fitted attribute, int64 [N], an index into `names`; -1: not annotated, or too rare
    names: dict[str, list[str]]  # of the fitted classes
    left_out: list[str]  # annotated attributes with fewer than two classes that could be fitted
    is_annotated: Tensor  # bool [N]
    in_fit_half: Tensor  # bool [N]


def load_classifier(data: ClassifierData, device: torch.device, *, progress: bool) -> FittedClassifier | None:
    """Load the classifier of the packed images, which is fitted on first use.

    It labels every annotated attribute with at least two classes of at least MIN_CLASS_IMAGES images each; if there is
    none, one line says so and the result is None. An interrupted fit continues. Raises FairfaceError for damaged
    weights.
    """
    annotated = read_annotations(data)
    if not annotated.names:
        click.echo(
            f"No classifier is fitted: no attribute has two classes with at least {MIN_CLASS_IMAGES} annotated images "
            "each.",
            err=True,
        )
        return None
    files = data.shards.label_files
    if not is_current(files, data.fingerprint):
        fit(data, annotated, device, progress=progress)
    document = read_classifier(files)
    model = FaceClassifier({name: len(names) for name, names in annotated.names.items()})
    try:
        model.load_state_dict(load(read_bytes(files.classifier_weights)))
    except (SafetensorError, RuntimeError) as error:
        raise FairfaceError(f"{files.classifier_weights} is damaged: {ClassifierDocument.REDO}") from error
    labeller = make_labeller(model, data, annotated, thresholds=document.thresholds, device=device)
    return FittedClassifier(labeller, annotated.keys.filter(pl.Series(annotated.in_fit_half.numpy())))


def read_classifier(files: LabelFiles) -> ClassifierDocument:
    """Read the document of a fitted classifier."""
    document = read_document(files.classifier_document, ClassifierDocument)
    if document is None:
        raise FileNotFoundError(files.classifier_document)
    return document


def make_labeller(
    model: FaceClassifier,
    data: ClassifierData,
    annotated: AnnotatedImages,
    *,
    thresholds: Mapping[str, float],
    device: torch.device,
) -> ClassifierLabeller:
    """The labeller of a fitted model."""
    attributes = data.attributes.labelled
    return ClassifierLabeller(model, attributes, fitted_classes=annotated.names, thresholds=thresholds, device=device)


def read_annotations(data: ClassifierData) -> AnnotatedImages:
    """The annotations of the packed images, and the half of the images that the classifier is fitted to."""
    path = data.shards.images
    images = read_images(path, sha256=data.packed.files.get(path.name, "")).filter(status="packed")
    truth = annotations_of(images, images["key"], data.attributes)
    found, names = {}, {}
    for name, indices in class_indices(truth, data.attributes).items():
        fitted = indices[indices >= 0].unique()  # sorted
        if len(fitted) >= 2:
            found[name] = torch.where(indices >= 0, torch.searchsorted(fitted, indices), -1)
            names[name] = [data.attributes[name].names[index] for index in fitted.tolist()]
    left_out = [name for name in data.attributes.labelled if name not in names and truth[name].count()]
    is_annotated = torch.zeros(len(images), dtype=torch.bool)
    for indices in found.values():
        is_annotated |= indices >= 0
    return AnnotatedImages(images["key"], found, names, left_out, is_annotated, choose_fit_half(is_annotated))


def is_current(files: LabelFiles, key: str) -> bool:
    """Whether a classifier with this fingerprint exists, and its weights are those that its document describes."""
    try:
        document = read_document(files.classifier_document, ClassifierDocument)
    except FairfaceError:
        return False
    needed = {files.classifier_weights.name}
    return (
        document is not None
        and document.fingerprint == key
        and document.files.keys() == needed
        and not changed_files(files.folder, document.files)
    )


def fit(data: ClassifierData, annotated: AnnotatedImages, device: torch.device, *, progress: bool) -> None:
    """Fit a classifier to the annotated images of the fit half, set its thresholds on others, and save it."""
    start, files = time.monotonic(), data.shards.label_files
    if annotated.left_out:
        click.echo(
            f"The classifier is not fitted to {', '.join(annotated.left_out)}: fewer than two classes have at "
            f"least {MIN_CLASS_IMAGES} annotated images each.",
            err=True,
        )
    fit_rows = (annotated.in_fit_half & annotated.is_annotated).nonzero()[:, 0]
    held_out_rows = (~annotated.in_fit_half & annotated.is_annotated).nonzero()[:HELD_OUT, 0]
    rows = torch.cat([fit_rows, held_out_rows])
    images = decode_rows(data.tars, rows, data.image_size, device=device, progress=progress)
    classes = {name: indices[fit_rows].to(device) for name, indices in annotated.classes.items()}
    counts = {name: len(names) for name, names in annotated.names.items()}
    folder = files.classifier_checkpoints / data.fingerprint
    model = classifier_fit.fit_classifier(
        FitImages(images[: len(fit_rows)], classes, counts), replace(data.fit, checkpoints=folder, progress=progress)
    )
    labeller = make_labeller(model, data, annotated, thresholds={}, device=device)
    held_out = images[len(fit_rows) :]
    probabilities = [labeller.label(batch)[0] for batch in held_out.split(BATCH_SIZE)]
    thresholds = {}
    for name, indices in annotated.classes.items():
        values = torch.cat([batch[name] for batch in probabilities]).cpu()[:, labeller.columns[name].cpu()]
        truth = indices[held_out_rows]
        confidence, predicted = values[truth >= 0].max(1)
        thresholds[name] = choose_threshold(confidence.numpy(), (predicted == truth[truth >= 0]).numpy())
    weights = save({key: value.contiguous().cpu() for key, value in model.state_dict().items()})
    replace_described_files(
        files.classifier_document,
        {files.classifier_weights: lambda file: file.write(weights)},
        describe=lambda hashes: ClassifierDocument(
            fingerprint=data.fingerprint,
            images=len(fit_rows),
            held_out=len(held_out_rows),
            thresholds=thresholds,
            classes=annotated.names,
            seed=data.fit.seed,
            epochs=data.fit.count_epochs(len(fit_rows)),
            seconds=round(time.monotonic() - start, 1),
            files=hashes,
        ),
    )
    remove_tree(files.classifier_checkpoints)


def choose_threshold(confidence: np.ndarray, is_correct: np.ndarray) -> float:
    """The confidence below which a label is unsure, from confidences [N] and correctness [N] of held-out labels.

    It is the highest threshold with at most UNSURE_SHARE of the images below it, whose labels have an accuracy of less
    than UNSURE_ACCURACY; 0 if there is none. An accurate classifier is therefore rarely unsure.
    """
    order = np.argsort(confidence, kind="stable")
    candidates = int(UNSURE_SHARE * len(order))
    accuracy = is_correct[order][:candidates].cumsum() / np.arange(1, candidates + 1)
    unsure = np.flatnonzero(accuracy < UNSURE_ACCURACY)
    return float(confidence[order[unsure[-1] + 1]]) if len(unsure) else 0.0


def decode_rows(tars: ShardSet, rows: Tensor, size: int, *, device: torch.device, progress: bool) -> Tensor:
    """Decode the images `rows`, int64 [N] in tar order, at `size` pixels, and downscale them to the classifier's input.

    Returns uint8 [N, 3, S, S] on `device`. Raises FairfaceError if they don't fit into its memory.
    """
    edge = min(size, network.INPUT_SIZE)
    check_memory(3 * len(rows) * edge**2, device, purpose="the decoded images", remedy="use --no-classifier")
    images = torch.empty(len(rows), 3, edge, edge, dtype=torch.uint8, device=device)
    positions = torch.full((int(rows.max()) + 1,), -1)
    positions[rows] = torch.arange(len(rows))
    subset, first = tars.covering(range(int(rows.min()), len(positions)))
    with tqdm(total=len(rows), unit="img", desc="decoding", disable=not progress, leave=False) as bar:
        for batch in decode_all(subset, size, device=device, batch_size=BATCH_SIZE):
            wanted = positions[first : first + len(batch)]
            kept = (wanted >= 0).nonzero()[:, 0]
            reduced = network.downscale_images(batch[kept.to(device)].permute(0, 3, 1, 2))
            images[wanted[kept].to(device)] = reduced.round().clamp(0, 255).byte()
            first += len(batch)
            bar.update(len(kept))
    return images
