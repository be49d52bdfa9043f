"""Packs a tree of images and its annotations into tar shards, their indices and one table.

Every rank packs its share of the shards. Shards that an interrupted run of the same plan finished are kept.
"""

import time
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
from tqdm import tqdm

from shards import distributed
from shards.atomic_io import file_sha256, remove_files, remove_tree, write_parquet
from shards.attributes import keep_own_attributes, own_attributes, read_own_attributes
from shards.concurrency import available_cpus, map_in_order
from shards.documents import (
    ShardEntry,
    ShardsDocument,
    changed_files,
    load_shards_json,
    stale_features,
    stale_labels,
    write_document,
)
from shards.errors import FairfaceError
from shards.images_table import image_schema, manifest_hash
from shards.locks import exclusive_lock, shared_lock
from shards.plan import PackConfig, Plan, make_plan, survey
from shards.processes import warm_up, worker_pool
from shards.synthetic.files import is_replacement_unfinished
from shards.unfinished import clear_destination, discard_labels, discard_pack, is_shard_finished, read_rows
from shards.worker import ImageRecipe, ShardJob, write_shard
from shards.workspace import ShardsFolder, SyntheticFolder, Workspace


@dataclass(frozen=True)
class PackResult:
    """The document of the pack, and whether the folder already contained it."""

    document: ShardsDocument
    unchanged: bool


@dataclass(frozen=True)
class PackJob:
    """Everything that a rank needs to pack its share."""

    root: str
    shards: ShardsFolder
    recipe: ImageRecipe
    images: pl.DataFrame  # key, path, shard, in tar order
    missing: list[str]  # shards that are not finished


def pack(
    root: Path,
    shards: ShardsFolder,
    config: PackConfig | None = None,
    *,
    tables: list[Path] | None = None,
    workers: int | None = None,
    force: bool = False,
    progress: bool = True,
) -> PackResult:
    """Pack the images below `root` into tars, images.parquet, unmatched.parquet and shards.json.

    `tables` names the annotation tables; None looks for them below `root`. The tars depend only on the images and
    options, not on the number of `workers` (default: one per core) or on how many ranks share the work inside a
    `process_group` on a shared file system. Raises FairfaceError as `survey` and `make_plan` do, and if `shards`
    contains another pack and `force` is not set.
    """
    started = time.monotonic()
    config, workers = config or PackConfig(), workers or available_cpus()
    with ExitStack() as stack:
        distributed.run_on_rank0(lambda: stack.enter_context(exclusive_lock(shards.lock, "packing")))
        distributed.run_on_rank0(lambda: stack.enter_context(stable_source(root)))
        pool = stack.enter_context(worker_pool(workers, preload=write_shard.__module__))
        if force or not shards.document.exists():
            warm_up(pool, workers)  # while the plan is made
        plan, job, finished = distributed.run_on_rank0(
            lambda: prepare(root, shards, config, tables=tables, force=force),
            share=lambda prepared: (None, *prepared[1:]),
        )
        if finished:
            return PackResult(finished, unchanged=True)
        assert job
        distributed.run_on_all_ranks(lambda: write_missing(job, pool, workers=workers, progress=progress))
        return distributed.run_on_rank0(lambda: PackResult(finish(plan, job, started), unchanged=False))


@contextmanager
def stable_source(root: Path) -> Iterator[None]:
    """Keep `fairface synth` from replacing synthetic faces while they are packed; nothing for other images.

    Raises FairfaceError if it is at work there, or was killed while it replaced them.
    """
    faces = SyntheticFolder(root)
    if not faces.exists():
        yield
        return
    with shared_lock(faces.lock, "packing"):
        if is_replacement_unfinished(faces) or not faces.document.exists():
            raise FairfaceError(f"`fairface synth` was stopped before the faces in {root} were finished: run it again")
        yield


def prepare(
    root: Path, shards: ShardsFolder, config: PackConfig, *, tables: list[Path] | None, force: bool
) -> tuple[Plan | None, PackJob | None, ShardsDocument | None]:
    """The plan and the remaining job, or the document of a pack that is already complete."""
    workspace = Workspace(shards.folder.parent)
    own = read_own_attributes(Path(config.attributes)) if config.attributes else own_attributes(workspace)
    files = survey(root, config, tables=tables, exclude=workspace.root, own=own)
    done = load_shards_json(shards) if shards.document.exists() and not force else None
    if done and done.fingerprint == files.fingerprint and is_complete(shards, done):
        remove_tree(shards.unfinished)  # left by a kill just after the document was written
        return None, None, done
    plan = make_plan(files)  # an invalid selection raises before anything is touched
    clear_destination(plan, shards, done, force=force)
    if own:
        keep_own_attributes(workspace, own)
    recipe = ImageRecipe(config.check, config.size, config.quality)
    names = plan.images["shard"].unique(maintain_order=True)
    missing = [name for name in names if not is_shard_finished(shards, name)]
    images = plan.images.select("key", "path", "shard")
    return plan, PackJob(str(root.resolve()), shards, recipe, images, missing), None


def is_complete(shards: ShardsFolder, document: ShardsDocument) -> bool:
    """Whether the files of a finished pack exist: the tars in their sizes, and the tables unchanged."""
    for entry in document.shards:
        tar = shards.tar(entry.name)
        if not (tar.is_file() and tar.stat().st_size == entry.bytes and shards.index(entry.name).is_file()):
            return False
    return not changed_files(shards.folder, document.files)


def write_missing(job: PackJob, pool: Executor, *, workers: int, progress: bool) -> None:
    """Write this rank's share of the missing shards, each by one worker process."""
    own = job.missing[distributed.rank() :: distributed.world_size()]
    sizes = dict(job.images.group_by("shard", maintain_order=True).len().iter_rows())
    starts = dict(zip(sizes, [0, *pl.Series(sizes.values()).cum_sum()], strict=False))

    def jobs() -> Iterator[tuple[ShardJob]]:
        for shard in own:
            images = job.images[starts[shard] : starts[shard] + sizes[shard]].select("key", "path").rows()
            shards = job.shards
            yield (ShardJob(job.root, shards.tar(shard), shards.finished_rows(shard), images, job.recipe),)

    total = sum(sizes[shard] for shard in own)
    finished = (len(job.images) - sum(sizes[shard] for shard in job.missing)) // distributed.world_size()
    with tqdm(total=total + finished, initial=finished, unit="img", desc="packing", disable=not progress) as bar:
        for _, count in map_in_order(pool, write_shard, jobs(), ahead=2 * workers):
            bar.update(count)


def finish(plan: Plan | None, job: PackJob, started: float) -> ShardsDocument:
    """Write images.parquet, unmatched.parquet and, last, shards.json. Raises FairfaceError if no image was packed."""
    assert plan
    shards, images = job.shards, merge_rows(plan, job)
    if not (images["status"] == "packed").any():
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in images["reason"].value_counts(sort=True).iter_rows())
        discard_pack(shards)
        raise FairfaceError(f"none of the {len(images):,} images below {job.root} can be used: {reasons}")
    for name in set(plan.images["shard"].unique()) - set(images["shard"].unique().drop_nulls()):
        remove_files([shards.tar(name), shards.index(name)])  # every image of it was rejected
    manifest = manifest_hash(images.filter(status="packed"))
    if not labels_are_current(shards, manifest):
        discard_labels(shards)
    remove_files(stale_features(shards.features, images_hash=manifest))
    write_parquet(shards.images, images)
    write_parquet(shards.unmatched, plan.unmatched)
    document = summarise(plan, shards, images, seconds=time.monotonic() - started)
    write_document(shards.document, document)
    remove_tree(shards.unfinished)
    return document


def labels_are_current(shards: ShardsFolder, manifest: str) -> bool:
    """Whether the labels in the folder, if there are any, are of the images with this manifest."""
    try:
        return stale_labels(shards.label_files, images_hash=manifest) is None
    except FairfaceError:  # a damaged document
        return False


def merge_rows(plan: Plan, job: PackJob) -> pl.DataFrame:
    """The rows of images.parquet, in tar order."""
    names = plan.images["shard"].unique(maintain_order=True)
    rows = pl.concat([read_rows(job.shards.finished_rows(name)) for name in names])
    if not rows["key"].equals(plan.images["key"]):
        raise FairfaceError(f"{job.shards.folder} holds shards of another pack: run again with --force")
    packed = pl.col("reason").is_null()
    images = plan.images.hstack(rows.drop("key")).with_columns(
        status=pl.when(packed).then(pl.lit("packed")).otherwise(pl.lit("rejected")), shard=pl.when(packed).then("shard")
    )
    return images.select(pl.col(name).cast(kind) for name, kind in image_schema(plan.attributes).items())


def summarise(plan: Plan, shards: ShardsFolder, images: pl.DataFrame, *, seconds: float) -> ShardsDocument:
    """The document of a pack whose tables and tars have been written."""
    packed = images.filter(status="packed")
    labelled = pl.any_horizontal(pl.col(*plan.attributes.labelled).is_not_null())
    rejected = images.filter(status="rejected")["reason"].value_counts(sort=True)
    counts = packed.group_by("shard", maintain_order=True).len()
    return ShardsDocument(
        **vars(plan.inputs),
        manifest=manifest_hash(packed),
        files={path.name: file_sha256(path) for path in (shards.images, shards.unmatched)},
        images=len(packed),
        rejected=dict(rejected.iter_rows()),
        annotated=packed.select(labelled.sum()).item(),
        bytes=int(packed["bytes"].sum()),
        shards=[
            ShardEntry(name=name, images=count, bytes=shards.tar(name).stat().st_size)
            for name, count in counts.iter_rows()
        ],
        seconds=round(seconds, 2),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
