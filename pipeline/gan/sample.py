"""Samples of a trained generator, written to shards and samples.parquet: `fairface sample`."""

import shutil
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import polars as pl
import torch
from tqdm import tqdm

from pipeline.gan.generate import BLOCK, ImageGenerator, load_generator, requested_classes
from pipeline.runtime import command_line, resolve_device, tune_allocator, utc_now
from pipeline.training import run_directory
from shards import tar
from shards.atomic_io import file_sha256, fingerprint, is_complete_parquet, write_parquet
from shards.documents import DataSource, RunConfig, SamplesDocument, ShardEntry, read_document, write_document
from shards.errors import FairfaceError
from shards.workspace import RunFolder, Workspace

SHARD_IMAGES = 8192


@dataclass(frozen=True)
class SampleConfig:
    """The options of `fairface sample`."""

    run: str | None = None  # whose newest checkpoint is sampled; None: the newest run
    checkpoint: Path | None = None  # instead of a run's newest one
    count: int = 2000  # images
    seed: int = 0
    weights: str = "ema"  # ema: the moving average of the generator; g: the generator itself
    groups: tuple[str, ...] = ()  # classes of a conditional generator; empty: all, in their training shares
    truncation: float | None = None  # bound of the latents, in standard deviations
    png_dir: Path | None = None  # also write sample_00000.png and so on there, as the original does
    batch_size: int | None = None  # images generated at the same time
    device: str = "auto"
    force: bool = False  # sample again even if nothing changed
    progress: bool = True


@dataclass(frozen=True)
class SampleResult:
    """The samples of a run."""

    folder: RunFolder
    document: SamplesDocument
    unchanged: bool  # whether the samples existed already


def sample(workspace: Workspace, config: SampleConfig) -> SampleResult:
    """Sample a run's newest checkpoint, or any checkpoint, unless the same samples exist.

    Raises FairfaceError if there is no run or checkpoint, and for groups that the generator was not trained on.
    """
    if config.checkpoint:
        folder, path = None, config.checkpoint
    else:
        folder = run_directory.find_run(workspace, config.run)
        path = run_directory.newest_checkpoint(folder)
    tune_allocator()
    device = resolve_device(config.device)
    network, state = load_generator(path, device, weights=config.weights)
    folder = folder or run_of_checkpoint(workspace, path, state=state)
    images = ImageGenerator(
        network,
        device=device,
        seed=config.seed,
        shares=requested_shares(state, config.groups),
        truncation=config.truncation,
        batch_size=config.batch_size,
    )
    document = _describe(folder, path, images=images, config=config, state=state)
    previous = read_document(folder.samples_document, SamplesDocument) if not config.force else None
    unchanged = bool(
        previous and previous.fingerprint == document.fingerprint and samples_are_complete(folder, previous)
    )
    if previous and unchanged:
        document = previous
    else:
        shards = write_samples(folder, images, checkpoint=path.name, count=config.count, progress=config.progress)
        document = replace(document, shards=shards)
        write_document(folder.samples_document, document)
    if config.png_dir:
        write_png_folder(config.png_dir, folder, document.shards)
    return SampleResult(folder, document, unchanged)


def requested_shares(state: dict[str, Any], groups: tuple[str, ...]) -> dict[str, float] | None:
    """Return the shares in which the classes of a checkpoint are sampled; None for an unconditional generator.

    Without `groups` these are the training shares, otherwise equal shares of `groups`. Raises FairfaceError for a group
    that the generator was not trained on.
    """
    classes: dict[str, float] | None = state.get("classes")
    if not groups:
        return classes
    if not classes:
        raise FairfaceError("--group needs a generator trained with --conditional; this one takes no label")
    if unknown := [group for group in groups if group not in classes]:
        raise FairfaceError(f"--group {unknown[0]}: the generator knows {', '.join(classes)}")
    return {group: float(group in groups) for group in classes}


def run_of_checkpoint(workspace: Workspace, path: Path, *, state: dict[str, Any]) -> RunFolder:
    """Return the run that a checkpoint belongs to.

    A checkpoint from outside the workspace gets its own run there, named after its original run and its file.
    """
    path = path.resolve()
    for run in workspace.runs():
        if run.checkpoints.resolve() == path.parent:
            return run
    folder = workspace.run(f"{Path(str(state['run'])).name}-{path.stem}")
    config = RunConfig(
        name=folder.name,
        status="finished",
        started=utc_now(),
        steps=state["step"],
        options=state["options"],
        data=DataSource(**state["data"]),
        checkpoint=str(path),
    )
    previous = read_document(folder.config, RunConfig)
    if previous is None or replace(previous, started=config.started) != config:
        write_document(folder.config, config)
    return folder


def samples_are_complete(folder: RunFolder, document: SamplesDocument) -> bool:
    """Return whether all samples that samples.json lists exist."""
    for shard in document.shards:
        path = folder.samples / shard.name
        if not path.with_suffix(".idx").exists() or not path.exists() or path.stat().st_size != shard.bytes:
            return False
    return is_complete_parquet(folder.samples_table)


def write_samples(
    folder: RunFolder, images: ImageGenerator, *, checkpoint: str, count: int, progress: bool
) -> list[ShardEntry]:
    """Write the tars and samples.parquet, and only then remove the previous ones and the labels that described them."""
    new = folder.new_samples
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        shards = _write_tars(folder, images, count=count, progress=progress)
        for path in (folder.samples_document, folder.samples_table, *folder.label_files.all()):
            path.unlink(missing_ok=True)
        shutil.rmtree(folder.samples, ignore_errors=True)
        new.rename(folder.samples)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    write_parquet(folder.samples_table, _samples_table(folder.name, images, checkpoint=checkpoint, shards=shards))
    return shards


def write_png_folder(png_dir: Path, folder: RunFolder, shards: list[ShardEntry]) -> None:
    """Copy the samples from the tars to a plain folder of PNG files."""
    png_dir.mkdir(parents=True, exist_ok=True)
    for shard in shards:
        path = folder.samples / shard.name
        for key, data in tar.read_members(path, tar.read_index(path)).items():
            (png_dir / f"sample_{int(key):05d}.png").write_bytes(data)


def _describe(
    folder: RunFolder, path: Path, *, images: ImageGenerator, config: SampleConfig, state: dict[str, Any]
) -> SamplesDocument:
    """Return samples.json without its shards."""
    deciding: dict[str, Any] = {
        "run": folder.name,
        "checkpoint": path.name,
        "sha256": file_sha256(path),
        "seed": config.seed,
        "count": config.count,
        "weights": config.weights,
        "image_size": images.network.image_size,
    }
    if images.shares:
        deciding["shares"] = images.shares
    if config.truncation is not None:
        deciding["truncation"] = config.truncation
    return SamplesDocument(
        **deciding,
        fingerprint=fingerprint(deciding),
        step=state["step"],
        manifest=state["data"]["manifest"],  # of the images that the generator was last trained on
        command=command_line(),
        shards=[],
    )


def _write_tars(folder: RunFolder, images: ImageGenerator, *, count: int, progress: bool) -> list[ShardEntry]:
    files, shards = enumerate(images.iterate_png(0, count)), []
    with tqdm(total=count, unit="img", desc="sampling", disable=not progress) as bar:
        for number in range(-(-count // SHARD_IMAGES)):
            path = folder.new_samples_tar(number)
            with tar.TarWriter(path) as writer:
                for index, data in islice(files, SHARD_IMAGES):
                    writer.add(_key(index), "png", data)
                    bar.update()
            shards.append(
                ShardEntry(
                    name=path.name,
                    images=min(count - number * SHARD_IMAGES, SHARD_IMAGES),
                    bytes=path.stat().st_size,
                    sha256=file_sha256(path),
                )
            )
    return shards


def _samples_table(run: str, images: ImageGenerator, *, checkpoint: str, shards: list[ShardEntry]) -> pl.DataFrame:
    """Return samples.parquet: one row per sample, in order."""
    names = [shard.name for shard in shards for _ in range(shard.images)]
    count = len(names)
    requested = pl.Series("requested", [None] * count, dtype=pl.String)
    if images.shares:
        blocks = range(-(-count // BLOCK))
        numbers = torch.cat([requested_classes(images.shares, images.seed, block=block) for block in blocks])[:count]
        classes = dict(enumerate(images.shares))
        requested = pl.Series("requested", numbers.numpy()).replace_strict(classes, return_dtype=pl.String)
    return pl.DataFrame({"index": pl.Series(range(count), dtype=pl.Int64)}).select(
        key=pl.Series([_key(index) for index in range(count)], dtype=pl.String),
        run=pl.lit(run),
        checkpoint=pl.lit(checkpoint),
        seed=pl.lit(images.seed, pl.Int64),
        index="index",
        shard=pl.Series(names, dtype=pl.String),
        requested=requested,
    )


def _key(index: int) -> str:
    return f"{index:08d}"
