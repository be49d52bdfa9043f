"""Labels training images and samples with the same labeller, so that its errors are the same on both sides."""

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import torch

from models import skin
from models.clip import MAX_INPUT_PIXELS
from pipeline.data.shard_set import ShardSet
from pipeline.labelling import probe
from pipeline.labelling.classifier import ClassifierData
from pipeline.labelling.labeller_choice import LabelConfig, check_overwrite, choose_labeller, choose_same_labellers
from pipeline.labelling.side import LabelKinds, Side, SideResult, label_images, new_document
from pipeline.labelling.tables import flat_probabilities
from pipeline.runtime import resolve_device
from pipeline.threads import using_threads
from pipeline.training import run_directory
from shards import distributed, pack, tar
from shards.atomic_io import open_output, read_parquet
from shards.attributes import workspace_attributes
from shards.csv_output import escape_formulas
from shards.documents import SamplesDocument, ShardsDocument, load_shards_json, read_document
from shards.errors import FairfaceError
from shards.images_table import read_images
from shards.locks import exclusive_lock, shared_lock
from shards.workspace import RunFolder, ShardsFolder, Workspace


@dataclass
class LabelResult:
    """The labels of the training images and of the samples."""

    sides: list[SideResult]
    accuracies: pl.DataFrame | None  # rows of labellers.parquet; None for too few annotated images, and on ranks > 0


@dataclass
class FolderResult:
    """The labels of a plain folder."""

    images: int
    rejected: dict[str, int]  # images that cannot be decoded, by reason
    labeller: str


def label(workspace: Workspace, config: LabelConfig | None = None) -> LabelResult:
    """Label the training images and a run's samples in the same way, at the run's image size, and evaluate the labels.

    The methods are CLIP with prompts; if images are annotated, a probe on CLIP's embeddings and a classifier; and the
    colour of skin pixels. Without CLIP's weights, the classifier takes CLIP's place. With `limit`, only the first
    training images are labelled, which are a random sample because packing shuffles them. If nothing is packed,
    imported samples are labelled alone. Several processes (torchrun) share the shards. Raises FairfaceError if samples
    are missing, if the labels of another labeller would be replaced, or if another process is using these labels or
    replacing the images.
    """
    config, shards = config or LabelConfig(), workspace.shards
    with distributed.process_group(), using_threads(config.threads), ExitStack() as stack:
        device = resolve_device(config.device)
        run = run_directory.find_run(workspace, config.run)
        distributed.run_on_rank0(lambda: lock(stack, shards, run), share=lambda _: None)
        samples = read_document(run.samples_document, SamplesDocument)
        if samples is None:
            raise FairfaceError(f"{run.folder} has no samples yet: run `fairface sample` first")
        if not 1 <= samples.image_size <= MAX_INPUT_PIXELS:
            raise FairfaceError(f"{run.samples_document} is damaged (image_size {samples.image_size}): {samples.REDO}")
        if samples.source and not shards.document.exists():
            return label_samples_alone(workspace, run, samples, config=config, device=device)
        packed = load_shards_json(shards)
        # the tars are opened before a labeller is fitted or downloaded, so that missing ones are reported at once
        training_tars, sample_tars = ShardSet.open(shards), ShardSet.from_samples(run.samples, samples.shards)
        keys = training_keys(shards, packed, limit=config.limit), sample_keys(run, samples)
        progress = config.progress and distributed.rank() == 0
        attributes = workspace_attributes(workspace)
        data = ClassifierData(shards, packed, training_tars, attributes, samples.image_size)
        chosen = choose_same_labellers(config, device, data=data, progress=progress)
        if not config.force:
            for files in (shards.label_files, run.label_files):
                check_overwrite(files, chosen.labeller.name, requested=config.names_labeller)
        labels = LabelKinds(
            chosen.labeller, has_skin_tones=skin.has_monk_tones(attributes), classifier=chosen.additional
        )
        fit_keys = chosen.classifier.fit_keys if chosen.classifier else None
        if fit_keys is not None and keys[0].is_in(fit_keys.implode()).all():
            raise FairfaceError(
                f"the classifier was fitted to all of the {len(keys[0]):,} training images that would be labelled: "
                "use a higher --limit, or --no-classifier"
            )
        sides = [
            training_side(data, keys=keys[0], labels=labels, fit_keys=fit_keys),
            samples_side(run, samples, tars=sample_tars, keys=keys[1], labels=labels),
        ]
        results = [
            side.label(device, batch_size=config.batch_size, force=config.force, progress=progress) for side in sides
        ]
        accuracies = distributed.run_on_rank0(
            lambda: probe.evaluate_labellers(shards, run, attributes=attributes, force=config.force),
            share=lambda _: None,
        )
        return LabelResult(results, accuracies)


def label_samples_alone(
    workspace: Workspace, run: RunFolder, samples: SamplesDocument, *, config: LabelConfig, device: torch.device
) -> LabelResult:
    """Label imported samples without training images: the labels can be neither evaluated nor corrected."""
    if config.classifier:
        raise FairfaceError(
            "--classifier is fitted to annotated images, and none are packed: run `fairface shards` first"
        )
    tars, keys = ShardSet.from_samples(run.samples, samples.shards), sample_keys(run, samples)
    progress = config.progress and distributed.rank() == 0
    attributes = workspace_attributes(workspace)
    synthetic = bool(samples.source and samples.source.synthetic)
    labeller = choose_labeller(config, device, synthetic=synthetic, progress=progress, attributes=attributes)
    if not config.force:
        check_overwrite(run.label_files, labeller.name, requested=config.names_labeller)
    labels = LabelKinds(labeller, has_skin_tones=skin.has_monk_tones(attributes))
    side = samples_side(run, samples, tars=tars, keys=keys, labels=labels)
    result = side.label(device, batch_size=config.batch_size, force=config.force, progress=progress)
    distributed.run_on_rank0(lambda: probe.mark_evaluated(run.label_files, result.document))
    return LabelResult([result], None)


def lock(stack: ExitStack, shards: ShardsFolder, run: RunFolder) -> None:
    """Lock the labels of both sides, and keep their images from being replaced, until the stack is closed."""
    for images in (shards.lock, run.samples_lock):
        stack.enter_context(shared_lock(images, "labelling"))
    for files in (shards.label_files, run.label_files):
        stack.enter_context(exclusive_lock(files.lock, "labelling"))


def training_keys(shards: ShardsFolder, packed: ShardsDocument, *, limit: int | None = None) -> pl.Series:
    """The keys of the packed images, or of the first `limit` of them, in tar order."""
    return packed_images(shards, packed)["key"][:limit]


def packed_images(shards: ShardsFolder, packed: ShardsDocument, *columns: str) -> pl.DataFrame:
    """The key and other columns of the packed images, in tar order."""
    sha256 = packed.files.get(shards.images.name, "")
    return read_images(shards.images, ("key", *columns, "status"), sha256=sha256).filter(status="packed")


def sample_keys(run: RunFolder, samples: SamplesDocument) -> pl.Series:
    """The keys of a run's samples, in tar order. Raises FairfaceError if their table does not match the tars."""
    table = run.samples_table
    keys = read_parquet(table, {"key": pl.String}, sha256=samples.files.get(table.name, ""))["key"]
    first = 0
    for shard in samples.shards:
        if keys[first : first + shard.images].to_list() != list(tar.read_index(run.samples / shard.name)):
            raise FairfaceError(f"{table} does not list the samples in {shard.name}: {samples.REDO}")
        first += shard.images
    if first != len(keys):
        raise FairfaceError(f"{table} lists more samples than {run.samples_document.name}: {samples.REDO}")
    return keys


def training_side(data: ClassifierData, *, keys: pl.Series, labels: LabelKinds, fit_keys: pl.Series | None) -> Side:
    """The training images, all or the first ones, to be labelled at the size of the samples."""
    document = new_document(
        source="train",
        run=None,
        labels=labels,
        size=data.image_size,
        images=len(keys),
        images_hash=data.packed.manifest,
    )
    return Side(data.shards.label_files, data.tars, keys, document, labels, fit_keys)


def samples_side(
    run: RunFolder, samples: SamplesDocument, *, tars: ShardSet, keys: pl.Series, labels: LabelKinds
) -> Side:
    """The samples of a run, to be labelled at their own size."""
    document = new_document(
        source="generated",
        run=run.name,
        labels=labels,
        size=samples.image_size,
        images=len(keys),
        images_hash=samples.fingerprint,
    )
    return Side(run.label_files, tars, keys, document, labels)


def label_folder(folder: Path, csv: Path, config: LabelConfig | None = None) -> FolderResult:
    """Label every image below a plain folder into a CSV with one row per image.

    The images are packed into temporary shards first, so that they are checked and decoded like all others; images
    that cannot be decoded are counted and left out. The labeller decides the size of the images. Raises FairfaceError
    for a folder without images.
    """
    config = config or LabelConfig()
    device = resolve_device(config.device)
    with tempfile.TemporaryDirectory(prefix="fairface-") as scratch, using_threads(config.threads):
        shards = Workspace(Path(scratch)).shards
        packed = pack.pack(folder, shards, tables=[], progress=config.progress).document
        images = packed_images(shards, packed, "path")
        labeller = choose_labeller(config, device, synthetic=packed.synthetic, progress=config.progress)
        labels = label_images(
            ShardSet.open(shards),
            images["key"],
            labels=LabelKinds(labeller, has_skin_tones=False),
            size=labeller.size,
            device=device,
            batch_size=config.batch_size,
        ).drop("embedding")
        labels = flat_probabilities(labels, labeller.attributes)
    paths = pl.Series("Image Path", [str(folder / path) for path in images["path"]])
    table = labels.drop("key").insert_column(0, paths).with_columns(labeller=pl.lit(labeller.name)).sort("Image Path")
    with open_output(csv) as file:
        escape_formulas(table).write_csv(file)
    return FolderResult(len(table), packed.rejected, labeller.name)
