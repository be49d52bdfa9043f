"""A tree of images and its annotations become tar shards, an index each, and one table."""

import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
from tqdm import tqdm

from shards import annotations, discover, distributed, match, selection
from shards.atomic_io import (
    LABELS,
    atomic_write,
    exclusive_lock,
    file_sha256,
    fingerprint,
    read_json,
    read_parquet,
    write_json,
    write_parquet,
)
from shards.concurrency import available_cpus, map_in_order
from shards.errors import FairfaceError
from shards.tar import BLOCK
from shards.verify import load_shards_json, manifest_hash, tar_size
from shards.worker import ROW_COLUMNS, ImageRecipe, warm_up, worker_pool, write_shard

SCHEMA = {
    "key": pl.String,
    "shard": pl.String,
    "path": pl.String,
    "family": pl.String,
    "subset": pl.String,
    "split": pl.String,
    "width": pl.Int32,
    "height": pl.Int32,
    "orientation": pl.Int8,
    "bytes": pl.Int64,
    "sha256": pl.String,
    "gender": pl.String,
    "age": pl.String,
    "skin_tone": pl.Int8,
    "skin_group": pl.String,
    "race": pl.String,
    "target": pl.String,
    "status": pl.String,
    "reason": pl.String,
}
ROW = {name: SCHEMA[name] for name in ROW_COLUMNS}
# Deepfake sets hold both kinds, so their family alone decides nothing.
TARGET_OF_FAMILY = pl.col("family").replace_strict(
    {"GANs": "fake", "DMs": "fake", "Real": "real"}, default=None, return_dtype=annotations.TYPES["target"]
)
FORMAT = 2  # of what is written below: a later version of this program repacks what an earlier one wrote


@dataclass(frozen=True)
class PackConfig:
    """What decides a pack, beside the images and tables themselves."""

    subsets: tuple[str, ...] = ()  # families or methods; all when empty
    splits: tuple[str, ...] = ()
    where: str | None = None  # a DuckDB predicate over the tidy columns
    annotated_only: bool = False  # leave out the images that have no row
    limit: int | None = None  # images, a seeded sample
    seed: int = 0  # of the global shuffle, and of the limit's sample
    age_codes: str = "auto"
    aliases: tuple[tuple[str, str], ...] = ()  # (a folder's name in one place, its name in the other)
    shard_images: int = 2048  # a tar
    shard_bytes: int | None = None  # a tar, instead of the number of images
    check: bool = True  # decode every image once
    size: int | None = None  # pixels of the shorter side; None keeps the bytes as they are
    quality: int = 90  # of the JPEGs that `size` makes


@dataclass
class Survey:
    """What there is to pack, before any of it is read."""

    root: Path
    options: PackConfig
    tree: discover.Tree
    table_paths: list[Path]
    fingerprint: str  # of all of it


@dataclass
class Plan:
    """Which image goes where: decided before the first byte is written."""

    images: pl.DataFrame  # key, shard, path, family, subset, labels, matched of the chosen images, in tar order
    unmatched: pl.DataFrame  # match.UNMATCHED, of the chosen subsets
    about: dict  # what shards.json says of images and tables


@dataclass(frozen=True)
class Job:
    """What every rank must know to do its part."""

    root: str
    folder: Path
    recipe: ImageRecipe
    images: pl.DataFrame  # key, path, shard, in tar order
    missing: list[str]  # shards that are not finished

    def part(self, shard: str) -> Path:
        """Where the rows of a finished shard lie until all are finished."""
        return self.folder / ".unfinished" / f"{shard}.csv"


def survey(root: Path, options: PackConfig, tables: list[Path] | None = None, out: Path | None = None) -> Survey:
    """Finds images and annotations below `root`; `tables` names the latter, None looks for them.

    What lies in the folder `out` is not looked at. Raises FairfaceError for a missing folder, and one without images.
    """
    if not annotations.is_text(str(root)):
        raise FairfaceError(f"the name of the folder {str(root)!r} is no valid Unicode: rename it, or link to it")
    if not root.is_dir():
        raise FairfaceError(f"there is no folder {root}: give the images' root with --data")
    if out and root.resolve() == out.resolve():
        raise FairfaceError(f"{root} is both --data and --out: let what is written go elsewhere with --out")
    found = discover.find_images(root, out)
    if found.files.is_empty():
        closed = f"; {', '.join(found.unreadable[:3])} can't be read" if found.unreadable else ""
        raise FairfaceError(f"no images below {root} (looked for {', '.join(discover.SUFFIXES)}){closed}")
    table_paths, others = annotations.find_tables(root) if tables is None else (tables, [])
    found.unreadable += others
    identity = hashlib.sha256()
    for part in found.files.iter_slices(10_000):  # relative paths: a root is spelt in many ways
        identity.update("\0".join(part["path"]).encode())
        identity.update(part.select("size", "mtime").fill_null(-1).to_numpy().tobytes())
    for path in table_paths:
        identity.update(f"{path.resolve()}\0{os.stat(path).st_size} {os.stat(path).st_mtime_ns}\0".encode())
    inputs = [FORMAT, str(root.resolve()), vars(options), identity.hexdigest()]
    return Survey(root, options, found, table_paths, fingerprint(inputs))


def make_plan(found: Survey) -> Plan:
    """Reads the tables, gives the images their labels, chooses and shuffles.

    Raises FairfaceError for a table that is none, and for a choice that makes no sense or selects nothing.
    """
    options, aliases = found.options, match.with_aliases(found.options.aliases)
    tables = annotations.read_tables(found.table_paths, options.age_codes)
    files = discover.describe(found.tree.files["path"], found.root)
    joined = match.match_rows(files, tables.frame, found.root, aliases)
    chosen, unmatched = choose(joined, options, aliases)
    if not found.table_paths:  # without a table no image misses its row
        unmatched = unmatched.clear()
    chosen = chosen[selection.shuffled_sample(len(chosen), options.limit, options.seed)]
    images = chosen.select(
        pl.int_range(pl.len()).cast(pl.String).str.zfill(8).alias("key"),
        ("shard-" + shard_numbers(chosen, found).cast(pl.String).str.zfill(6) + ".tar").alias("shard"),
        pl.all(),
    )
    counts = unmatched.group_by("what", "reason", maintain_order=True).len()
    order = hashlib.sha256()
    for part in images.iter_slices(10_000):
        order.update(part.select("shard", "path").write_csv(include_header=False).encode())
    about = {
        "fingerprint": found.fingerprint,
        "order": order.hexdigest(),  # of the images: parts of another order must not be taken for this one's
        "drawn": (found.root / "drawn.json").exists(),  # made by `fairface synth`
        "root": str(found.root.resolve()),
        "options": vars(options),
        "found": len(files),
        "unreadable": found.tree.unreadable,
        "tables": tables.files,
        "rows": tables.rows,
        "rows_repeated": tables.repeated,
        "rows_disagreeing": tables.disagreeing,
        "rows_uncoded": tables.uncoded,
        "matched": images["matched"].sum(),
        "unmatched": {f"{reason}_{what}s": count for what, reason, count in counts.iter_rows()},
    }
    return Plan(images, unmatched, about)


def choose(joined: match.Matched, options: PackConfig, aliases: dict[str, str]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The images that the options choose, and what is unmatched in the chosen subsets."""
    images, unmatched = joined.files, joined.unmatched
    if options.subsets:
        kept = selection.in_subsets(images, options.subsets, aliases)
        selection.check_selection("--subset", options.subsets, images, kept, ("family", "subset"))
        images = images.filter(kept)
        unmatched = unmatched.filter(selection.in_subsets(unmatched, options.subsets, aliases))
    images = images.with_columns(target=pl.coalesce("target", TARGET_OF_FAMILY))
    if options.splits:
        kept = pl.col("split").is_in(options.splits).fill_null(False)
        selection.check_selection("--split", options.splits, images, kept, ("split",))
        images = images.filter(kept)
    if options.where is not None:
        images = images[selection.rows_matching(images, options.where)]
    if options.annotated_only:
        images = images.filter("matched")
        if images.is_empty():
            raise FairfaceError("--annotated-only leaves nothing: no image has an annotation row")
    return images, unmatched


def shard_numbers(images: pl.DataFrame, found: Survey) -> pl.Series:
    """Which tar each image goes into: so many images each, or about so many bytes as the files have."""
    if not found.options.shard_bytes:
        return images.select(pl.int_range(pl.len()) // found.options.shard_images).to_series()
    sizes = images.select("path").join(found.tree.files, on="path", how="left", maintain_order="left")["size"]
    blocks = (sizes.fill_null(0) + BLOCK - 1) // BLOCK + 1  # its header is one
    return ((blocks.cum_sum() - blocks) * BLOCK // found.options.shard_bytes).rle_id()


def pack(
    root: Path,
    folder: Path,
    options: PackConfig = PackConfig(),
    tables: list[Path] | None = None,
    workers: int | None = None,
    force: bool = False,
    progress: bool = True,
) -> dict:
    """Packs the images below `root` into `folder`: shards, images.parquet, unmatched.parquet and shards.json.

    Returns the latter, with `unchanged` set. The tars depend on images and options alone, not on `workers` nor on
    how many ranks share the work (inside `ranks.group`, on a file system of all). What an interrupted run of the
    same plan finished is kept. Raises FairfaceError as Plan does, and where `folder` holds another pack and `force` is
    not set.
    """
    started = time.monotonic()
    workers = workers or available_cpus()
    with ExitStack() as stack:
        distributed.run_on_rank0(lambda: stack.enter_context(exclusive_lock(folder, "packing")))
        pool = stack.enter_context(worker_pool(workers))
        if force or not (folder / "shards.json").exists():
            warm_up(pool, workers)  # while the plan is made
        plan, job = distributed.run_on_rank0(
            lambda: begin(root, folder, options, tables, force), lambda found: (None, found[1])
        )
        if isinstance(job, dict):
            return job | {"unchanged": True}
        distributed.run_on_all_ranks(lambda: write_missing(job, pool, workers, progress))
        return distributed.run_on_rank0(lambda: finish(plan, job, started)) | {"unchanged": False}


def begin(
    root: Path, folder: Path, options: PackConfig, tables: list[Path] | None, force: bool
) -> tuple[Plan | None, Job | dict]:
    """The plan, and the job that is left to do; or what shards.json says, where that is nothing."""
    found = survey(root, options, tables, folder.parent)
    done = load_shards_json(folder) if (folder / "shards.json").exists() and not force else None
    if done and done["fingerprint"] == found.fingerprint and is_complete(folder, done):
        shutil.rmtree(folder / ".unfinished", ignore_errors=True)  # what a kill left after all was done
        return None, done
    plan = make_plan(found)  # whatever is wrong with the choice is said before anything is touched
    recipe = ImageRecipe(options.check, options.size, options.quality)
    job = Job(str(root.resolve()), folder, recipe, plan.images.select("key", "path", "shard"), [])
    clear_destination(plan, job, done, force)
    for shard in plan.images["shard"].unique(maintain_order=True):
        if not is_finished(job, shard):
            job.missing.append(shard)
    return plan, job


def is_finished(job: Job, shard: str) -> bool:
    """Whether a shard is there as its rows say: both of its files, in their sizes."""
    path, part = job.folder / shard, job.part(shard)
    if not (part.exists() and path.exists() and path.with_suffix(".idx").exists()):
        return False
    return path.stat().st_size == read_part(part).filter(pl.col("reason").is_null()).select(tar_size()).item()


def read_part(path: Path) -> pl.DataFrame:
    """The ROW of each image of one shard."""
    return pl.read_csv(path, has_header=False, schema=ROW, glob=False)


def is_complete(folder: Path, done: dict) -> bool:
    """Whether the files that shards.json names are there, the tars in their sizes."""
    sizes = [(folder / shard["name"], shard["bytes"]) for shard in done["shards"]]
    there = all(p.exists() and p.stat().st_size == n and p.with_suffix(".idx").exists() for p, n in sizes)
    return there and all((folder / name).exists() for name in ("images.parquet", "unmatched.parquet"))


def clear_destination(plan: Plan, job: Job, done: dict | None, force: bool) -> None:
    """Clears the way for a plan. What another plan made, finished or not, goes only by `force`."""
    folder = job.folder
    stored = read_json(folder / ".unfinished" / "plan.json")
    ours = {name: plan.about[name] for name in ("fingerprint", "order", "root")}
    other = next((made for made in (done, stored) if made and any(made.get(n) != ours[n] for n in ours)), None)
    if other and not force:
        state = f"{other['images']:,} images packed from" if other is done else "an unfinished pack of"
        raise FairfaceError(
            f"{folder} holds {state} {other['root']}, and these images or options differ: "
            "pack into another folder with --out, or replace them with --force"
        )
    if other or force:
        discard(folder)
    elif not stored:  # parts that nothing says the origin of
        shutil.rmtree(folder / ".unfinished", ignore_errors=True)
    write_json(folder / ".unfinished" / "plan.json", ours)
    if done and not (other or force):
        resume_incomplete(plan, job)


def resume_incomplete(plan: Plan, job: Job) -> None:
    """Makes a finished pack an unfinished one, of which some file is missing; what is there is kept."""
    if (job.folder / "images.parquet").exists():
        rows = read_parquet(job.folder / "images.parquet").select(pl.col(n).cast(kind) for n, kind in ROW.items())
        placed = plan.images.select("key", "shard").join(rows, on="key", maintain_order="left")
        for (shard,), part in placed.group_by("shard", maintain_order=True):
            with atomic_write(job.part(shard)) as file:
                part.select(ROW.keys()).write_csv(file, include_header=False)
    (job.folder / "shards.json").unlink()


def discard(folder: Path) -> None:
    """Removes a pack and the labels that describe it; shards.json first, so that a cut leaves no false claim."""
    discard_labels(folder, "shards.json", "images.parquet", "unmatched.parquet")
    for pattern in ("shard-*.tar", "shard-*.idx", ".shard-*.partial"):
        for path in folder.glob(pattern):
            path.unlink()
    shutil.rmtree(folder / ".unfinished", ignore_errors=True)


def discard_labels(folder: Path, *before: str) -> None:
    for name in (*before, *LABELS):
        (folder / name).unlink(missing_ok=True)


def write_missing(job: Job, pool: Executor, workers: int, progress: bool) -> None:
    """Writes this rank's share of the shards that are not there yet, each by one worker process."""
    mine = job.missing[distributed.rank() :: distributed.world_size()]
    sizes = dict(job.images.group_by("shard", maintain_order=True).len().iter_rows())
    starts = dict(zip(sizes, [0, *pl.Series(sizes.values()).cum_sum()], strict=False))

    def jobs() -> Iterator[tuple]:
        for shard in mine:
            images = job.images[starts[shard] : starts[shard] + sizes[shard]].select("key", "path").rows()
            yield job.root, job.folder / shard, job.part(shard), images, job.recipe

    total = sum(sizes[shard] for shard in mine)
    done = len(job.images) - sum(sizes[shard] for shard in job.missing)
    share = done // distributed.world_size()
    with tqdm(total=total + share, initial=share, unit="img", desc="packing", disable=not progress) as bar:
        for _, count in map_in_order(pool, write_shard, jobs(), 2 * workers):
            bar.update(count)


def finish(plan: Plan, job: Job, started: float) -> dict:
    """Puts the parts together: images.parquet, unmatched.parquet and, last, shards.json, which is returned."""
    folder, images = job.folder, merge(plan, job)
    if not (images["status"] == "packed").any():
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in images["reason"].value_counts(sort=True).iter_rows())
        discard(folder)
        raise FairfaceError(f"none of the {len(images):,} images below {job.root} can be used: {reasons}")
    for shard in set(images["shard"].unique().drop_nulls()) ^ set(plan.images["shard"].unique()):
        for path in (folder / shard, (folder / shard).with_suffix(".idx")):
            path.unlink(missing_ok=True)  # no image of it could be used
    before = read_parquet(folder / "images.parquet") if (folder / "images.parquet").exists() else None
    if before is not None and not before.equals(images):
        discard_labels(folder)
    write_parquet(folder / "images.parquet", images)
    write_parquet(folder / "unmatched.parquet", plan.unmatched)
    summary = summarise(plan, folder, images, time.monotonic() - started)
    write_json(folder / "shards.json", summary)
    shutil.rmtree(folder / ".unfinished")
    return summary


def merge(plan: Plan, job: Job) -> pl.DataFrame:
    """images.parquet's rows, in tar order."""
    parts = [job.part(shard) for shard in plan.images["shard"].unique(maintain_order=True)]
    rows = pl.concat([read_part(part) for part in parts])
    if not rows["key"].equals(plan.images["key"]):
        raise FairfaceError(f"{job.folder} holds parts of another pack: run again with --force")
    packed = pl.col("reason").is_null()
    images = plan.images.hstack(rows.drop("key")).with_columns(
        status=pl.when(packed).then(pl.lit("packed")).otherwise(pl.lit("rejected")), shard=pl.when(packed).then("shard")
    )
    return images.select(pl.col(name).cast(kind) for name, kind in SCHEMA.items())


def summarise(plan: Plan, folder: Path, images: pl.DataFrame, seconds: float) -> dict:
    """shards.json: what went in, what came out, and a hash (`manifest`) of all that training depends on."""
    packed = images.filter(status="packed")
    labelled = pl.any_horizontal(pl.col("gender", "age", "skin_tone").is_not_null())
    rejected = images.filter(status="rejected")["reason"].value_counts(sort=True)
    shards = packed.group_by("shard", maintain_order=True).len()
    return {
        "manifest": manifest_hash(packed),
        "files": {
            name: file_sha256(folder / name) for name in ("images.parquet", "unmatched.parquet")
        },  # their SHA-256
        **plan.about,
        "images": len(packed),
        "rejected": dict(rejected.iter_rows()),
        "annotated": packed.select(labelled.sum()).item(),
        "bytes": packed["bytes"].sum(),
        "shards": [
            {"name": name, "images": count, "bytes": (folder / name).stat().st_size}
            for name, count in shards.iter_rows()
        ],
        "seconds": round(seconds, 2),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
