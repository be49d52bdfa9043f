"""Resumes an unfinished pack, or removes a pack to make room for another one."""

from pathlib import Path

import polars as pl

from shards.atomic_io import (
    atomic_write,
    check_removable,
    read_bytes,
    read_parquet,
    remove_files,
    remove_partials,
    remove_tree,
)
from shards.documents import ShardsDocument, UnfinishedPack, changed_files, read_document, write_document
from shards.errors import FairfaceError
from shards.images_table import SCHEMA, tar_size
from shards.plan import Plan
from shards.worker import ROW_COLUMNS
from shards.workspace import ShardsFolder

ROW_SCHEMA = {name: SCHEMA[name] for name in ROW_COLUMNS}


def read_rows(path: Path) -> pl.DataFrame:
    """Read the rows that a worker process wrote about the images of one shard: columns of ROW_SCHEMA.

    Raises FairfaceError for a damaged file.
    """
    try:
        return pl.read_csv(read_bytes(path), has_header=False, schema=ROW_SCHEMA)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise FairfaceError(f"{path} is damaged: pack again with `fairface shards --force`") from error


def is_shard_finished(shards: ShardsFolder, shard: str) -> bool:
    """Whether a tar, its index and its rows exist, and the tar has the size that the rows add up to."""
    tar, rows = shards.tar(shard), shards.finished_rows(shard)
    if not (rows.is_file() and tar.is_file() and shards.index(shard).is_file()):
        return False
    try:
        packed = read_rows(rows).filter(pl.col("reason").is_null())
    except FairfaceError:
        return False
    return bool(tar.stat().st_size == packed.select(tar_size()).item())


def clear_destination(plan: Plan, shards: ShardsFolder, done: ShardsDocument | None, *, force: bool) -> None:
    """Prepare the folder for a plan: keep what the same plan finished, and remove another pack if `force` is set.

    `done` is the finished pack in the folder. Raises FairfaceError if another pack, finished or not, would have to be
    removed without `force`.
    """
    ours = UnfinishedPack(fingerprint=plan.inputs.fingerprint, order=plan.inputs.order, root=plan.inputs.root)
    stored = None if force else read_document(shards.unfinished_document, UnfinishedPack)
    for other, state in (
        (done, f"{done.images:,} images packed from" if done else ""),
        (stored, "an unfinished pack of"),
    ):
        if other and (other.fingerprint, other.order, other.root) != (ours.fingerprint, ours.order, ours.root):
            raise FairfaceError(
                f"{shards.folder} holds {state} {other.root}, and these images or options differ: "
                "pack into another folder with --out, or replace them with --force"
            )
    if force:
        discard_pack(shards, ours)
    elif not stored:  # rows of an unknown pack
        if not (done or shards.unfinished.exists() or shards.images.exists()) and (tars := shards.tars_and_indices()):
            raise FairfaceError(f"{tars[0]} does not belong to a known pack: move it away, or replace it with --force")
        remove_tree(shards.unfinished)
    write_document(shards.unfinished_document, ours)
    remove_leftovers(shards)
    if done and not force:
        reopen(plan, shards, done)


def reopen(plan: Plan, shards: ShardsFolder, done: ShardsDocument) -> None:
    """Turn a finished pack that lacks a file into an unfinished one; the shards whose rows are known are kept."""
    if shards.images.name not in changed_files(shards.folder, done.files):
        rows = read_parquet(shards.images, ROW_SCHEMA)
        images = plan.images.select("key", "shard").join(rows, on="key", maintain_order="left")
        for (shard,), part in images.group_by("shard", maintain_order=True):
            with atomic_write(shards.finished_rows(str(shard))) as file:
                part.select(ROW_SCHEMA.keys()).write_csv(file, include_header=False)
    shards.document.unlink()


def discard_pack(shards: ShardsFolder, successor: UnfinishedPack | None = None) -> None:
    """Remove a pack, its labels and features, to make room for a `successor`.

    The document goes first, and then the successor's plan is written: after an interruption, no pack looks complete,
    and the same command continues. Raises FairfaceError, and removes nothing, for a folder where a file should be.
    """
    described = [*shards.label_files.all(), *shards.features.all()]
    files = [shards.images, shards.unmatched, *described, *shards.tars_and_indices()]
    check_removable([shards.document, *files])
    remove_files([shards.document])
    remove_tree(shards.unfinished)
    if successor:
        write_document(shards.unfinished_document, successor)
    remove_files(files)


def discard_labels(shards: ShardsFolder) -> None:
    """Remove the label files of images that no longer exist."""
    remove_files(shards.label_files.all())


def remove_leftovers(shards: ShardsFolder) -> None:
    """Remove the temporary files that killed worker processes left."""
    for folder in (shards.folder, shards.unfinished):
        remove_partials(folder)
