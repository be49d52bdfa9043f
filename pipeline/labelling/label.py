"""Labels training images and samples with the same labeller, so that its errors are the same on both sides."""

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from models import clip
from pipeline.data.shard_set import ShardSet
from pipeline.labelling import probe
from pipeline.labelling.labeller_choice import LabelConfig, check_overwrite, choose_labeller, choose_same_labeller
from pipeline.labelling.side import Side, SideResult, label_images, new_document
from pipeline.runtime import resolve_device
from pipeline.training import run_directory
from shards import distributed, pack
from shards.atomic_io import atomic_write, exclusive_lock, read_parquet
from shards.documents import SamplesDocument, ShardsDocument, load_shards_json, read_document
from shards.errors import FairfaceError
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

    The methods are CLIP with prompts, a probe on its embeddings if images are annotated, and the colour of skin
    pixels. With `limit`, only the first training images are labelled, which are a random sample because packing
    shuffles them. Several processes (torchrun) share the shards. Raises FairfaceError if samples are missing, if the
    labels of another labeller would be replaced, or if another process is labelling.
    """
    config, shards = config or LabelConfig(), workspace.shards
    with distributed.process_group(), ExitStack() as stack:
        device = resolve_device(config.device)
        run = run_directory.find_run(workspace, config.run)
        distributed.run_on_rank0(
            lambda: stack.enter_context(exclusive_lock(shards.folder, "labelling")), share=lambda _: None
        )
        samples = read_document(run.samples_document, SamplesDocument)
        if samples is None:
            raise FairfaceError(f"{run.folder} has no samples yet: run `fairface sample` first")
        packed = load_shards_json(shards)
        # the tars are opened before a labeller is fitted or downloaded, so that missing ones are reported at once
        training_tars, sample_tars = ShardSet.open(shards), ShardSet.from_samples(run.samples, samples.shards)
        progress = config.progress and distributed.rank() == 0
        labeller = choose_same_labeller(config, device, synthetic=packed.synthetic, progress=progress)
        if not config.force:
            for files in (shards.label_files, run.label_files):
                check_overwrite(files, labeller.name, requested=config.names_labeller)
        sides = [
            training_side(
                shards, packed, tars=training_tars, labeller=labeller, size=samples.image_size, limit=config.limit
            ),
            samples_side(run, samples, tars=sample_tars, labeller=labeller),
        ]
        results = [
            side.label(labeller, device, batch_size=config.batch_size, force=config.force, progress=progress)
            for side in sides
        ]
        accuracies = distributed.run_on_rank0(
            lambda: probe.evaluate_labellers(shards, run.label_files, force=config.force), share=lambda _: None
        )
        return LabelResult(results, accuracies)


def training_side(
    shards: ShardsFolder,
    packed: ShardsDocument,
    *,
    tars: ShardSet,
    labeller: clip.Labeller,
    size: int,
    limit: int | None,
) -> Side:
    """The training images, all or the first `limit` of them, to be labelled at `size` x `size` pixels."""
    keys = read_parquet(shards.images).filter(status="packed")["key"][:limit]
    document = new_document(
        source="train", run=None, labeller=labeller.name, size=size, images=len(keys), images_hash=packed.manifest
    )
    return Side(shards.label_files, tars, keys, document)


def samples_side(run: RunFolder, samples: SamplesDocument, *, tars: ShardSet, labeller: clip.Labeller) -> Side:
    """The samples of a run, to be labelled at their own size."""
    keys = read_parquet(run.samples_table)["key"]
    document = new_document(
        source="generated",
        run=run.name,
        labeller=labeller.name,
        size=samples.image_size,
        images=len(keys),
        images_hash=samples.fingerprint,
    )
    return Side(run.label_files, tars, keys, document)


def label_folder(folder: Path, csv: Path, config: LabelConfig | None = None) -> FolderResult:
    """Label every image below a plain folder into a CSV with one row per image.

    The images are packed into temporary shards first, so that they are checked and decoded like all others; images
    that cannot be decoded are counted and left out. The labeller decides the size of the images. Raises FairfaceError
    for a folder without images.
    """
    config = config or LabelConfig()
    device = resolve_device(config.device)
    with tempfile.TemporaryDirectory(prefix="fairface-") as scratch:
        shards = Workspace(Path(scratch)).shards
        packed = pack.pack(folder, shards, tables=[], progress=config.progress).document
        images = read_parquet(shards.images).filter(status="packed")
        labeller = choose_labeller(config, device, synthetic=packed.synthetic, progress=config.progress)
        labels = label_images(
            ShardSet.open(shards),
            images["key"],
            labeller=labeller,
            size=labeller.size,
            device=device,
            batch_size=config.batch_size,
        ).drop("embedding")
    paths = pl.Series("Image Path", [str(folder / path) for path in images["path"]])
    table = labels.drop("key").insert_column(0, paths).with_columns(labeller=pl.lit(labeller.name)).sort("Image Path")
    with atomic_write(csv) as file:
        table.write_csv(file)
    return FolderResult(len(table), packed.rejected, labeller.name)
