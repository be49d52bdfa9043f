"""Samples of a trained generator, written to shards and samples.parquet: `fairface sample`."""

import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from itertools import chain, islice
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import polars as pl
import torch
from PIL import Image
from tqdm import tqdm

from pipeline.gan.generate import BLOCK, ImageGenerator, load_generator, requested_classes
from pipeline.runtime import command_line, resolve_device, tune_allocator, utc_now
from pipeline.training import run_directory
from shards import tar
from shards.atomic_io import atomic_write, check_removable, file_sha256, fingerprint, remove_tree, write_parquet
from shards.documents import (
    DataSource,
    RunConfig,
    SamplesDocument,
    ShardEntry,
    changed_files,
    encode_document,
    read_document,
    write_document,
)
from shards.errors import FairfaceError
from shards.locks import exclusive_lock
from shards.replacement import Writer, replace_described_files
from shards.verify import sample_tar_fault
from shards.workspace import RunFolder, Workspace, is_valid_name

SHARD_IMAGES = 8192
SAMPLES_FILE = re.compile(r"samples-[0-9]{6,}\.(tar|idx)")
SAMPLE_OVERHEAD = 1024  # bytes per sample, at most, of tars, indices and tables, in addition to the PNG file
RATE_SECONDS = 5  # after which the remaining time is known well enough


@dataclass(frozen=True)
class SampleConfig:
    """The options of `fairface sample`."""

    run: str | None = None  # whose newest checkpoint is sampled; None: the newest run
    checkpoint: Path | None = None  # instead of a run's newest one
    count: int = 2000  # images
    seed: int = 0
    weights: str = "ema"  # ema: the moving average of the generator; g: the generator itself
    ema_half_life: float | None = None  # images, of the average `weights=ema`; None: as in training
    groups: tuple[str, ...] = ()  # classes of a conditional generator; empty: all, in their training shares
    truncation: float | None = None  # bound of the latents, in standard deviations
    png_dir: Path | None = None  # also write sample_00000.png and so on there, as the original does
    batch_size: int | None = None  # images generated at the same time
    device: str = "auto"
    threads: int | None = None  # that generate images on a CPU; None: the fastest number
    force: bool = False  # sample again even if nothing changed
    progress: bool = True


@dataclass(frozen=True)
class SampleResult:
    """The samples of a run."""

    folder: RunFolder
    document: SamplesDocument
    unchanged: bool  # whether the samples existed already


@dataclass(frozen=True)
class SamplesOutput:
    """Where samples are written in addition to their run, and whether a progress bar is shown."""

    png_dir: Path | None = None
    progress: bool = True


def sample(workspace: Workspace, config: SampleConfig) -> SampleResult:
    """Sample a run's newest checkpoint, or any checkpoint, unless the same samples exist.

    Raises FairfaceError if there is no run or checkpoint, for groups that the generator was not trained on, for samples
    that don't fit on the disk, and if another process is using the run's samples or labels.
    """
    tune_allocator()
    device = resolve_device(config.device)
    with ExitStack() as stack:
        if config.checkpoint:
            path = config.checkpoint
            network, state = load_generator(path, device, weights=config.weights, half_life=config.ema_half_life)
            folder = workspace.run(config.run) if config.run else run_of_checkpoint(workspace, path, state=state)
            if folder.checkpoints.resolve() != path.resolve().parent:  # a run that is only sampled from
                stack.enter_context(exclusive_lock(folder.lock, "sampling"))
                write_run_config(folder, path, state=state)
        else:
            folder = run_directory.find_run(workspace, config.run, with_generator=True)
        stack.enter_context(exclusive_lock(folder.samples_lock, "sampling"))
        stack.enter_context(exclusive_lock(folder.label_files.lock, "sampling"))  # labels of other samples are removed
        if not config.checkpoint:
            path = run_directory.newest_checkpoint(folder)
            network, state = load_generator(path, device, weights=config.weights, half_life=config.ema_half_life)
        images = ImageGenerator(
            network,
            device=device,
            seed=config.seed,
            shares=requested_shares(state, config.groups),
            truncation=config.truncation,
            batch_size=config.batch_size,
            threads=config.threads,
        )
        document = _describe(folder, path, images=images, config=config, state=state)
        previous = read_document(folder.samples_document, SamplesDocument) if not config.force else None
        unchanged = bool(
            previous and previous.fingerprint == document.fingerprint and samples_are_complete(folder, previous)
        )
        if config.png_dir:
            check_png_folder(config.png_dir, config.count)
        if previous and unchanged:
            document = previous
            if config.png_dir:
                check_tars(folder, document.shards)
        else:
            write_samples(
                folder,
                images.iterate_png(0, config.count),
                table=partial(_generated_samples_table, folder.name, images, checkpoint=document.checkpoint),
                document=document,
                output=SamplesOutput(config.png_dir, config.progress),
            )
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

    A checkpoint from outside the workspace gets its own run there, named after its original run and its file. Raises
    FairfaceError if that name is not valid.
    """
    path = path.resolve()
    for run in workspace.runs():
        if run.checkpoints.resolve() == path.parent:
            return run
    name = f"{Path(state['run']).name}-{path.stem}"
    if not is_valid_name(name):
        raise FairfaceError(
            f"--checkpoint {path.name!r}: its samples would belong to a run {name!r}, which is not a valid name: "
            "rename the file"
        )
    return workspace.run(name)


def write_run_config(folder: RunFolder, path: Path, *, state: dict[str, Any]) -> None:
    """Write the config.json of a run that holds only samples of a checkpoint, unless it exists.

    Raises FairfaceError if the run was trained or imported here.
    """
    config = RunConfig(
        name=folder.name,
        status="finished",
        started=utc_now(),
        steps=state["step"],
        options=state["options"],
        data=DataSource(**state["data"]),
        checkpoint=str(path.resolve()),
    )
    previous = read_document(folder.config, RunConfig)
    if previous and previous.checkpoint is None:
        raise FairfaceError(f"--checkpoint {path.name}: there is already another run {folder.name}: rename the file")
    if previous is None or replace(previous, started=config.started) != config:
        write_document(folder.config, config)


def samples_are_complete(folder: RunFolder, document: SamplesDocument) -> bool:
    """Return whether all samples that samples.json lists exist, and samples.parquet is as it was written."""
    for shard in document.shards:
        path = folder.samples / shard.name
        if not path.with_suffix(".idx").exists() or not path.exists() or path.stat().st_size != shard.bytes:
            return False
    return not changed_files(folder.folder, document.files)


def write_samples(
    folder: RunFolder,
    files: Iterable[bytes],
    *,
    table: Callable[[list[ShardEntry]], pl.DataFrame],
    document: SamplesDocument,
    output: SamplesOutput,
    config: RunConfig | None = None,
) -> None:
    """Write the tars, samples.parquet and samples.json, and only then remove the previous ones and what describes them.

    `files` are `document.count` PNG files, and `table` builds samples.parquet from the tars. `document` is completed.
    The `config` of a run without training is written with them. Raises FairfaceError if the samples don't
    fit on the disk.
    """
    check_space = partial(check_free_space, count=document.count, folders=[folder.folder, output.png_dir])
    new, obsolete = folder.new_samples, [*folder.label_files.all(), *folder.features.all()]
    check_removable(obsolete)
    check_samples_folder(folder)
    try:
        document.shards, document.is_constant = write_tars(
            folder, files, count=document.count, check_space=check_space, progress=output.progress
        )
        rows = table(document.shards)
        contents: dict[Path, Writer] = {
            folder.samples_table: lambda file: write_parquet(folder.samples_table, rows, output=file)
        }
        if config:
            content = encode_document(config)
            contents[folder.config] = lambda file: file.write(content)

        def describe(files: dict[str, str]) -> SamplesDocument:
            document.files = files
            return document

        replace_described_files(
            folder.samples_document,
            contents,
            describe=describe,
            obsolete=obsolete,
            folders={new: folder.samples},
        )
    finally:
        remove_tree(new)


def check_samples_folder(folder: RunFolder) -> None:
    """Raise FairfaceError if the folder of the tars, which is going to be replaced, holds other visible files."""
    if folder.samples.is_dir():
        for path in folder.samples.iterdir():
            if not SAMPLES_FILE.fullmatch(path.name) and not path.name.startswith("."):
                raise FairfaceError(
                    f"{path} is no file of samples, and its folder is going to be replaced: move it away"
                )


def write_tars(
    folder: RunFolder,
    samples: Iterable[bytes],
    *,
    count: int,
    check_space: Callable[[float], None] = lambda _: None,
    progress: bool,
) -> tuple[list[ShardEntry], bool]:
    """Write tars of PNG files under their temporary name; return them, and whether all samples are constant.

    Samples are constant if all are the same image, or each has a single colour. `check_space` gets the mean size of a
    sample, in bytes, before the first tar is written.
    """
    remove_tree(folder.new_samples)
    folder.new_samples.mkdir(parents=True)
    generated = iter(samples)
    first = list(islice(generated, BLOCK))
    check_space(sum(map(len, first)) / len(first))
    files, shards, constancy, time = enumerate(chain(first, generated)), [], Constancy(), RemainingTime(count)
    with tqdm(total=count, unit="img", desc="sampling", disable=not progress) as bar:
        for number in range(-(-count // SHARD_IMAGES)):
            path = folder.new_samples_tar(number)
            with tar.TarWriter(path) as writer:
                for index, data in islice(files, SHARD_IMAGES):
                    writer.add(_key(index), "png", data)
                    constancy.add(data)
                    time.update(index)
                    bar.update()
            shards.append(
                ShardEntry(
                    name=path.name,
                    images=min(count - number * SHARD_IMAGES, SHARD_IMAGES),
                    bytes=path.stat().st_size,
                    sha256=file_sha256(path),
                )
            )
    return shards, constancy.is_constant


class Constancy:
    """Whether all of several PNG files are the same, or each of them has a single colour."""

    def __init__(self) -> None:
        self.first: bytes | None = None
        self.are_equal = self.are_flat = True

    def add(self, data: bytes) -> None:
        self.are_equal = self.are_equal and data == (self.first or data)
        self.are_flat = self.are_flat and _is_flat(data)
        self.count = 1 if self.first is None else 2  # or more
        self.first = self.first or data

    @property
    def is_constant(self) -> bool:
        return self.first is not None and (self.are_flat or (self.are_equal and self.count > 1))


def _is_flat(data: bytes) -> bool:
    """Whether all pixels of a PNG file have the same colour."""
    pixels = np.asarray(Image.open(BytesIO(data)))
    return bool((pixels == pixels[0, 0]).all())


class RemainingTime:
    """Prints once how many hours the remaining samples will take, if that is more than one."""

    def __init__(self, count: int) -> None:
        self.count, self.start, self.printed = count, monotonic(), False

    def update(self, index: int) -> None:
        """Note that the sample `index` is written."""
        seconds = monotonic() - self.start
        if self.printed or seconds < RATE_SECONDS:
            return
        self.printed = True
        hours = seconds / (index + 1) * (self.count - index - 1) / 3600
        if hours > 1:
            print(f"{self.count:,} samples will take about {hours:,.1f} hours", file=sys.stderr)


def check_free_space(sample_bytes: float, *, count: int, folders: Sequence[Path | None]) -> None:
    """Raise FairfaceError if `count` samples of a mean size don't fit on the disks of the folders that are not None."""
    needed: dict[int, float] = {}  # by file system
    for folder in folders:
        if folder is None:
            continue
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        system = existing.stat().st_dev
        needed[system] = needed.get(system, 0) + count * (sample_bytes + SAMPLE_OVERHEAD)
        if needed[system] > (free := shutil.disk_usage(existing).free):
            scale, unit = (1e9, "GB") if needed[system] > 1e9 else (1e6, "MB")
            raise FairfaceError(
                f"{count:,} samples need about {needed[system] / scale:,.1f} {unit}, and {existing} has "
                f"{free / scale:,.1f} {unit} of space left: choose a smaller --num-samples, or write to another disk"
            )


def check_png_folder(png_dir: Path, count: int) -> None:
    """Raise FairfaceError if anything but a regular file has the name of one of the first `count` samples."""
    if not png_dir.is_dir():
        return
    names = {png_name(index) for index in range(count)}
    with os.scandir(png_dir) as entries:
        for entry in entries:
            if entry.name in names and not entry.is_file(follow_symlinks=False):
                raise FairfaceError(f"--png-dir: {entry.path} is not a regular file: move it away")


def check_tars(folder: RunFolder, shards: list[ShardEntry]) -> None:
    """Raise FairfaceError if a tar of samples, or its index, is not as it was written."""
    for shard in shards:
        path = folder.samples / shard.name
        if fault := sample_tar_fault(path, shard.sha256):
            raise FairfaceError(f"{path} {fault}: {SamplesDocument.REDO}")


def write_png_folder(png_dir: Path, folder: RunFolder, shards: list[ShardEntry]) -> None:
    """Copy the samples from the tars to a plain folder of PNG files; a file is replaced once its successor is whole."""
    png_dir.mkdir(parents=True, exist_ok=True)
    for shard in shards:
        path = folder.samples / shard.name
        for key, data in tar.read_members(path, tar.read_index(path)).items():
            with atomic_write(png_dir / png_name(int(key)), clean=False, sync=False) as file:
                file.write(data)


def png_name(index: int) -> str:
    """The name of a sample in a plain folder."""
    return f"sample_{index:05d}.png"


def _describe(
    folder: RunFolder, path: Path, *, images: ImageGenerator, config: SampleConfig, state: dict[str, Any]
) -> SamplesDocument:
    """Return samples.json without its shards and files."""
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
    if config.ema_half_life is not None:
        deciding["ema_half_life"] = config.ema_half_life
    return SamplesDocument(
        **deciding,
        fingerprint=fingerprint(deciding),
        step=state["step"],
        manifest=state["data"]["manifest"],  # of the images that the generator was last trained on
        command=command_line(),
        shards=[],
        files={},
    )


def _generated_samples_table(
    run: str, images: ImageGenerator, shards: list[ShardEntry], *, checkpoint: str
) -> pl.DataFrame:
    """Return samples.parquet of a DCGAN: one row per sample, in order, with the requested classes."""
    count = sum(shard.images for shard in shards)
    requested = pl.Series("requested", [None] * count, dtype=pl.String)
    if images.shares:
        blocks = range(-(-count // BLOCK))
        numbers = torch.cat([requested_classes(images.shares, images.seed, block=block) for block in blocks])[:count]
        classes = dict(enumerate(images.shares))
        requested = pl.Series("requested", numbers.numpy()).replace_strict(classes, return_dtype=pl.String)
    return samples_table(run, shards, checkpoint=checkpoint, seed=images.seed, requested=requested)


def samples_table(
    run: str,
    shards: list[ShardEntry],
    *,
    checkpoint: str,
    seed: int,
    requested: pl.Series | None = None,
    paths: pl.Series | None = None,
) -> pl.DataFrame:
    """Return samples.parquet: one row per sample, in order.

    `requested` are the classes that a conditional generator was to generate; `paths` are those of imported images.
    """
    names = [shard.name for shard in shards for _ in range(shard.images)]
    nothing = pl.Series([None] * len(names), dtype=pl.String)
    return pl.DataFrame({"index": pl.Series(range(len(names)), dtype=pl.Int64)}).select(
        key=pl.Series([_key(index) for index in range(len(names))], dtype=pl.String),
        run=pl.lit(run),
        checkpoint=pl.lit(checkpoint),
        seed=pl.lit(seed, pl.Int64),
        index="index",
        shard=pl.Series(names, dtype=pl.String),
        requested=nothing if requested is None else requested,
        path=nothing if paths is None else paths,
    )


def _key(index: int) -> str:
    return f"{index:08d}"
