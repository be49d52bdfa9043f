"""Imports images, or images of a generator, from another program as a run's samples: `fairface sample --from`."""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import polars as pl
import torch

from models.clip import MAX_INPUT_PIXELS
from pipeline.data.decoder import decode_all
from pipeline.data.shard_set import ShardSet
from pipeline.gan.external_generator import (
    FUNCTION,
    TORCHSCRIPT_SUFFIXES,
    ExternalGenerator,
    load_function,
    load_torchscript,
)
from pipeline.gan.png import encode_png, filter_rows
from pipeline.gan.sample import (
    SampleResult,
    SamplesOutput,
    check_png_folder,
    check_tars,
    samples_are_complete,
    samples_table,
    write_png_folder,
    write_samples,
)
from pipeline.runtime import command_line, resolve_device, utc_now
from shards import pack
from shards.atomic_io import check_regular, file_sha256, fingerprint, remove_tree
from shards.documents import (
    LabelsDocument,
    RunConfig,
    SamplesDocument,
    SampleSource,
    read_document,
    write_document,
)
from shards.errors import FairfaceError
from shards.images_table import read_images
from shards.locks import exclusive_lock
from shards.plan import PackConfig, survey
from shards.unpack import archive_kind, unpack_images
from shards.workspace import RunFolder, Workspace, is_unicode, is_valid_name

DEFAULT_SIZE, DEFAULT_COUNT, DEFAULT_BATCH = 64, 2000, 64
MIN_SIDE = 16  # pixels of the shorter side of an image; a smaller one is rejected as `too_small`
GENERATORS = ("torchscript", "function")


@dataclass(frozen=True)
class ImportConfig:
    """The options of `fairface sample --from`."""

    source: str  # path of a folder, archive or TorchScript file; or module:function
    run: str | None = None  # None: named after the source
    count: int | None = None  # images; None: all of a folder or archive, DEFAULT_COUNT of a generator
    seed: int = 0  # of a generator's batches; of the order of images, and of their random sample of size `count`
    size: int | None = None  # pixels (side); None: as in `default_size`
    as_is: bool = False  # neither resize nor crop
    batch_size: int | None = None  # images per call of a generator
    png_dir: Path | None = None  # also write PNG files there
    device: str = "auto"  # of a TorchScript generator
    force: bool = False  # import again even if nothing changed, and replace samples of another source
    progress: bool = True


@dataclass(frozen=True)
class Source:
    """What --from names."""

    kind: str  # as in SampleSource
    path: str  # as in SampleSource

    @property
    def name(self) -> str:
        """The name of the folder, file or function."""
        return self.path if self.kind == "function" else Path(self.path).name

    @property
    def run_name(self) -> str:
        """The default name of the run."""
        if self.kind == "function":
            return self.path.replace(":", "-")
        return self.name if self.kind == "folder" else self.name.split(".")[0]


@dataclass(frozen=True)
class ImportedImages:
    """Images of one size that become samples, as PNG files in order."""

    files: Iterable[bytes]
    count: int
    size: int  # pixels (side)
    sha256: str  # of the source images, or of the generator's file
    paths: pl.Series | None = None  # of the source images
    rejected: dict[str, int] | None = None  # source images that could not be used, by reason
    synthetic: bool = False


def import_samples(workspace: Workspace, config: ImportConfig) -> SampleResult:
    """Import the images of a folder or archive, or of another program's generator, as the samples of a run.

    Images are checked as for packing: those that can't be decoded are counted and left out, and the others are shuffled
    by the seed, and resized and cropped like training images. Nothing is done if the same samples exist. Raises
    FairfaceError for an invalid source, for a run that has a checkpoint, for samples of another source without `force`,
    for images of several sizes with `as_is`, and if another process is using the run.
    """
    source = find_source(config.source)
    folder = run_folder(workspace, source, run=config.run)
    check_outside(workspace, source)
    size = config.size or default_size(workspace, folder)
    identity = source_identity(source, config, size=size)
    with ExitStack() as stack:
        stack.enter_context(exclusive_lock(folder.lock, "importing samples"))
        stack.callback(remove_unused_locks, folder)
        for lock in folder.result_locks():
            stack.enter_context(exclusive_lock(lock, "importing samples"))
        previous = check_replaceable(folder, source, force=config.force)
        if config.png_dir and config.count:
            check_png_folder(config.png_dir, config.count)
        is_same = previous and previous.source and previous.source.identity == identity
        if previous and is_same and samples_are_complete(folder, previous):
            return finish(folder, previous, config, unchanged=True)
        stack.callback(remove_tree, folder.import_workspace.root)
        remove_tree(folder.import_workspace.root)  # left by a kill
        images = generated_images(source, config, size=size)
        if images is None:
            images = packed_images(folder.import_workspace, source, config, size=size)
        document = describe(folder, source, images, config=config, identity=identity)
        if previous and previous.fingerprint == document.fingerprint and samples_are_complete(folder, previous):
            previous = replace(previous, source=document.source)  # the same images elsewhere, or with new times
            write_document(folder.samples_document, previous)
            return finish(folder, previous, config, unchanged=True)
        table = partial(samples_table, folder.name, checkpoint=source.name, seed=config.seed, paths=images.paths)
        write_samples(
            folder,
            images.files,
            table=table,
            document=document,
            output=SamplesOutput(config.png_dir, config.progress),
            config=RunConfig(
                name=folder.name, status="imported", started=utc_now(), command=command_line(), source=source.path
            ),
        )
        return finish(folder, document, config, unchanged=False)


def remove_unused_locks(folder: RunFolder) -> None:
    """Remove the locks of results from a folder that holds nothing else, so that a refused import leaves no run."""
    locks = folder.result_locks()
    if {path.name for path in folder.folder.iterdir()} <= {folder.lock.name, *(lock.name for lock in locks)}:
        for lock in locks:
            lock.unlink(missing_ok=True)


def find_source(text: str) -> Source:
    """Parse --from. Raises FairfaceError for a missing file, and for one of an unknown kind."""
    path = Path(text)
    if not text or not path.exists():  # the path of an empty text is the working folder
        if FUNCTION.fullmatch(text):
            return Source("function", text)
        raise FairfaceError(f"--from {text}: there is no such folder or file, and it is not MODULE:FUNCTION")
    if not is_unicode(str(path.resolve())):
        raise FairfaceError(f"--from {str(path)!r}: give it a name in UTF-8")
    kind: str | None = "folder"
    if not path.is_dir():
        check_regular(path)
        is_torchscript = path.suffix.lower() in TORCHSCRIPT_SUFFIXES  # which is a zip, too
        kind = "torchscript" if is_torchscript else archive_kind(path)
    if kind is None:
        raise FairfaceError(
            f"--from {text} is neither a folder, a tar, a zip, an .npz nor TorchScript "
            f"({', '.join(TORCHSCRIPT_SUFFIXES)})"
        )
    return Source(kind, str(path.resolve()))


def run_folder(workspace: Workspace, source: Source, *, run: str | None) -> RunFolder:
    """The run of the samples. Raises FairfaceError without `run` if the source's name is not valid for one."""
    if run is None and not is_valid_name(source.run_name):
        raise FairfaceError(
            f"--from {source.path}: {source.run_name!r} can't be the name of a run: choose one with --run"
        )
    return workspace.run(run or source.run_name)


def check_outside(workspace: Workspace, source: Source) -> None:
    """Raise FairfaceError if OUT, which holds other images, is inside the source folder."""
    if source.kind == "folder" and workspace.root.resolve().is_relative_to(source.path):
        raise FairfaceError(
            f"--from {source.path} contains the output folder {workspace.root}: choose one that holds only images"
        )


def default_size(workspace: Workspace, folder: RunFolder) -> int:
    """The size of the run's existing samples, so that the same command finds them.

    Without any, that at which the training images were labelled, so that they need not be labelled again; without
    labels, DEFAULT_SIZE.
    """
    if samples := read_document(folder.samples_document, SamplesDocument):
        return samples.image_size
    labels = read_document(workspace.shards.label_files.document, LabelsDocument)
    return labels.size if labels and labels.size else DEFAULT_SIZE


def source_identity(source: Source, config: ImportConfig, *, size: int) -> str:
    """A fingerprint of the source and of the options that determine the samples.

    For a folder, these are the names, sizes and times of its images; for a file, its content. Raises FairfaceError for
    a folder without images.
    """
    options = [source.kind, source.path, config.count, config.seed, "as is" if config.as_is else size]
    if source.kind == "folder":
        return fingerprint([*options, survey(Path(source.path), PackConfig(), tables=[]).fingerprint])
    if source.kind == "function":
        return fingerprint([*options, config.batch_size, load_function(source.path)[1]])
    return fingerprint([*options, config.batch_size, file_sha256(Path(source.path))])


def check_replaceable(folder: RunFolder, source: Source, *, force: bool) -> SamplesDocument | None:
    """The existing samples of the run, which may be replaced; None without any, or with `force`.

    Raises FairfaceError for a run that was trained here or sampled from a checkpoint, for other files, and without
    `force` for imported labels and for samples of another source.
    """
    config = read_document(folder.config, RunConfig)
    own = {folder.config, *folder.results()}
    if config is None and any(path not in own and not path.name.startswith(".") for path in folder.folder.iterdir()):
        raise FairfaceError(f"{folder.folder} holds files that don't belong to a run: choose another --run")
    if config and config.source is None and config.imported is None:
        raise FairfaceError(
            f"{folder.folder} is a run with a checkpoint, which imported samples must not replace: choose another --run"
        )
    if force:
        return None
    labels = read_document(folder.label_files.document, LabelsDocument)
    if labels and labels.labeller.startswith("imported "):
        raise FairfaceError(
            f"{folder.folder} has labels {labels.labeller}: choose another --run, or replace them with --force"
        )
    if config and config.source not in (None, source.path):
        raise FairfaceError(
            f"{folder.folder} holds samples of {config.source}: choose another --run, or replace them with --force"
        )
    return read_document(folder.samples_document, SamplesDocument)


def generated_images(source: Source, config: ImportConfig, *, size: int) -> ImportedImages | None:
    """Images of another program's generator; None for a folder or an archive. Raises FairfaceError if it fails."""
    if source.kind not in GENERATORS:
        return None
    device = resolve_device(config.device)
    load = (
        partial(load_torchscript, Path(source.path), device)
        if source.kind == "torchscript"
        else partial(load_function, source.path)
    )
    generate, sha256 = load()
    count = config.count or DEFAULT_COUNT
    generator = ExternalGenerator(
        source.name, generate, sha256, device=device, seed=config.seed, batch_size=config.batch_size or DEFAULT_BATCH
    )
    first = generator.batch(0)
    if config.as_is:
        height, width = first.shape[2:]
        size = square_side(source, {(width, height)})
    return ImportedImages(generator.images(count, size=size), count, size, fingerprint([sha256, generator.batch_size]))


def packed_images(scratch: Workspace, source: Source, config: ImportConfig, *, size: int) -> ImportedImages:
    """The images of a folder or an archive: unpacked, checked and shuffled by the packer.

    Raises FairfaceError if there is no usable image.
    """
    root, names = Path(source.path), None
    if source.kind != "folder":
        root = scratch.unpacked
        names = unpack_images(Path(source.path), source.kind, folder=root, progress=config.progress)
    try:
        pack_config = PackConfig(limit=config.count, seed=config.seed)
        packed = pack.pack(root, scratch.shards, pack_config, tables=[], progress=config.progress).document
    except FairfaceError as error:  # name the archive, not the folder that it was unpacked into
        raise FairfaceError(str(error).replace(str(root.resolve()), source.path)) from error
    table = read_images(scratch.shards.images, sha256=packed.files.get(scratch.shards.images.name, ""))
    table = table.filter(status="packed")
    usable = table.select(pl.min_horizontal("width", "height") >= MIN_SIDE).to_series()
    rejected = packed.rejected | ({"too_small": len(table) - int(usable.sum())} if not usable.all() else {})
    chosen = table.filter(usable)
    if chosen.is_empty():
        raise FairfaceError(f"none of the images of {source.path} is at least {MIN_SIDE} pixels high and wide")
    if config.as_is:
        size = square_side(source, set(chosen.select("width", "height").unique().iter_rows()))
    paths = chosen["path"]
    if names is not None:
        numbers = paths.str.extract(r"^(\d+)").cast(pl.Int64)
        paths = pl.Series([names[number] for number in numbers], dtype=pl.String)
    digest = hashlib.sha256("".join(chosen["sha256"]).encode()).hexdigest()
    return ImportedImages(
        decoded_png(ShardSet.open(scratch.shards), usable, size=size),
        len(chosen),
        size,
        digest,
        paths=paths,
        rejected=rejected,
        synthetic=packed.synthetic,
    )


def decoded_png(shards: ShardSet, usable: pl.Series, *, size: int) -> Iterator[bytes]:
    """Yield PNG files of the `usable` packed images, decoded like training images of `size` pixels."""
    first = 0
    for batch in decode_all(shards, size, device=torch.device("cpu")):  # a GPU's decoder would give other pixels
        images = batch[torch.from_numpy(usable[first : first + len(batch)].to_numpy())]
        first += len(batch)
        if len(images):
            yield from map(encode_png, filter_rows(images))


def square_side(source: Source, sizes: set[tuple[int, int]]) -> int:
    """The side of images from their sizes. Raises FairfaceError unless they are all squares of one size."""
    width, height = min(sizes)
    if len(sizes) > 1 or width != height or not MIN_SIDE <= width <= MAX_INPUT_PIXELS:
        listed = " and ".join(f"{width} x {height}" for width, height in sorted(sizes)[:3])
        more = f" and {len(sizes) - 3} more" if len(sizes) > 3 else ""
        raise FairfaceError(
            f"--as-is needs square images of one size, {MIN_SIDE} to {MAX_INPUT_PIXELS:,} pixels, but those of "
            f"{source.path} have {listed}{more} pixels: without it, they are cropped and resized"
        )
    return width


def describe(
    folder: RunFolder, source: Source, images: ImportedImages, *, config: ImportConfig, identity: str
) -> SamplesDocument:
    """samples.json without its shards and files."""
    deciding = {
        "run": folder.name,
        "checkpoint": source.name,
        "sha256": images.sha256,
        "seed": config.seed,
        "count": images.count,
        "image_size": images.size,
    }
    return SamplesDocument(
        run=folder.name,
        checkpoint=source.name,
        sha256=images.sha256,
        seed=config.seed,
        count=images.count,
        weights=None,
        image_size=images.size,
        fingerprint=fingerprint(deciding),
        step=None,
        manifest=None,
        command=command_line(),
        shards=[],
        files={},
        source=SampleSource(
            kind=source.kind,
            path=source.path,
            identity=identity,
            rejected=images.rejected or {},
            synthetic=images.synthetic,
        ),
    )


def finish(folder: RunFolder, document: SamplesDocument, config: ImportConfig, *, unchanged: bool) -> SampleResult:
    """Write the requested PNG files, and return the result."""
    if config.png_dir:
        check_png_folder(config.png_dir, document.count)
        check_tars(folder, document.shards)
        write_png_folder(config.png_dir, folder, document.shards)
    return SampleResult(folder, document, unchanged)
