"""Resumes an unfinished pack, or removes a pack to make room for another one."""

import shutil
from pathlib import Path

import polars as pl

from shards.atomic_io import atomic_write, read_parquet
from shards.documents import ShardsDocument, UnfinishedPack, read_document, write_document
from shards.errors import FairfaceError
from shards.images_table import SCHEMA, tar_size
from shards.plan import Plan
from shards.worker import ROW_COLUMNS
from shards.workspace import ShardsFolder

ROW_SCHEMA = {name: SCHEMA[name] for name in ROW_COLUMNS}


def read_rows(path: Path) -> pl.DataFrame:
    """Read the rows that a worker process wrote about the images of one shard: columns of ROW_SCHEMA."""
    return pl.read_csv(path, has_header=False, schema=ROW_SCHEMA, glob=False)


def is_shard_finished(shards: ShardsFolder, shard: str) -> bool:
    """Whether a tar, its index and its rows exist, and the tar has the size that the rows add up to."""
    tar, rows = shards.tar(shard), shards.finished_rows(shard)
    if not (rows.exists() and tar.exists() and shards.index(shard).exists()):
        return False
    return bool(tar.stat().st_size == read_rows(rows).filter(pl.col("reason").is_null()).select(tar_size()).item())


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
        discard_pack(shards)
    elif not stored:  # rows of an unknown pack
        shutil.rmtree(shards.unfinished, ignore_errors=True)
    write_document(shards.unfinished_document, ours)
    if done and not force:
        reopen(plan, shards)


def reopen(plan: Plan, shards: ShardsFolder) -> None:
    """Turn a finished pack that lacks a file into an unfinished one; the shards that exist are kept."""
    if shards.images.exists():
        rows = read_parquet(shards.images).select(pl.col(name).cast(kind) for name, kind in ROW_SCHEMA.items())
        images = plan.images.select("key", "shard").join(rows, on="key", maintain_order="left")
        for (shard,), part in images.group_by("shard", maintain_order=True):
            with atomic_write(shards.finished_rows(str(shard))) as file:
                part.select(ROW_SCHEMA.keys()).write_csv(file, include_header=False)
    shards.document.unlink()


def discard_pack(shards: ShardsFolder) -> None:
    """Remove a pack and its labels. The document goes first: no interruption leaves a pack that looks complete."""
    for path in (shards.document, shards.images, shards.unmatched):
        path.unlink(missing_ok=True)
    discard_labels(shards)
    for path in [*shards.tars_and_indices(), *shards.folder.glob(".shard-*.partial")]:
        path.unlink()
    shutil.rmtree(shards.unfinished, ignore_errors=True)


def discard_labels(shards: ShardsFolder) -> None:
    """Remove the label files of images that no longer exist."""
    for path in shards.label_files.all():
        path.unlink(missing_ok=True)
