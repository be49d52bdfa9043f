"""A tree of images and its annotations become tar shards, an index each, and one table."""

import hashlib
import multiprocessing
import os
import shutil
import stat
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
from tqdm import tqdm

from shards import annotations, check, cpus
from shards.files import fingerprint, read_json, read_parquet, write_json, write_parquet
from shards.tar import TarWriter

SCHEMA = {
    "key": pl.String,
    "shard": pl.String,
    "path": pl.String,
    "family": pl.String,
    "subset": pl.String,
    "split": pl.String,
    "width": pl.Int32,
    "height": pl.Int32,
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
FORMAT = 1  # of what is written below: a later version of this program repacks what an earlier one wrote


@dataclass(frozen=True)
class Options:
    """What decides the bytes of a pack, beside the images themselves."""

    seed: int = 0  # of the global shuffle, and of --limit's sample
    shard_images: int = 2048  # a tar
    limit: int | None = None  # images, a seeded sample of all that were found
    check: bool = True  # decode every image once
    age_codes: str = "auto"


@dataclass
class Plan:
    """Which image goes where: decided before the first byte is written."""

    root: Path
    options: Options
    images: pl.DataFrame  # key, shard, path, family, subset, labels, matched; in tar order
    tables: annotations.Tables
    unreadable: list[str]  # folders
    fingerprint: str

    @property
    def drawn(self) -> bool:
        """Whether `fairface synth` made these images."""
        return (self.root / "drawn.json").exists()


def make_plan(root: Path, options: Options, tables: list[Path] | None = None) -> Plan:
    """Finds images and annotations below `root`, joins them and shuffles globally.

    `tables` names the annotation files; None looks for them in `root`. Raises ValueError for a missing folder, a
    folder without images, or a table without the needed columns.
    """
    if not root.is_dir():
        raise ValueError(f"there is no folder {root}: give the images' root with --data")
    paths, unreadable = annotations.find_images(root)
    bad = [path for path in paths if not is_text(path)]
    paths = [path for path in paths if is_text(path)]
    if not paths:
        raise ValueError(f"no images below {root} (looked for {', '.join(sorted(annotations.SUFFIXES))})")
    unreadable += [path.encode(errors="backslashreplace").decode() for path in bad]
    table_paths = annotations.find_tables(root) if tables is None else tables
    read = annotations.read_tables(table_paths, options.age_codes)
    images = annotations.join(annotations.describe(pl.Series("path", paths), root), read.frame, root)
    order = np.random.default_rng(options.seed).permutation(len(images))[: options.limit]
    images = (
        images[order]
        .with_row_index("n")
        .with_columns(
            key=pl.col("n").cast(pl.String).str.zfill(8),
            shard="shard-" + (pl.col("n") // options.shard_images).cast(pl.String).str.zfill(6) + ".tar",
        )
        .drop("n")
    )
    identity = hashlib.sha256()
    for path in [*paths, *(table.resolve() for table in table_paths)]:  # relative: the root may be spelt in many ways
        identity.update(f"{path}\0{size_and_time(root / path)}\0".encode())
    inputs = [FORMAT, str(root.resolve()), vars(options), identity.hexdigest()]
    return Plan(root, options, images, read, unreadable, fingerprint(inputs))


def is_text(path: str) -> bool:
    """Whether a file name is valid Unicode: others fit in no table and in no tar of ours."""
    try:
        path.encode()
        return True
    except UnicodeEncodeError:
        return False


def size_and_time(path: Path) -> str:
    try:
        status = os.stat(path)
        return f"{status.st_size} {status.st_mtime_ns}"
    except OSError:
        return "gone"


def pack(plan: Plan, folder: Path, workers: int | None = None, force: bool = False, progress: bool = True) -> dict:
    """Writes `folder`'s shards, images.parquet and shards.json; returns the latter, with `unchanged` set.

    Tars depend on the plan alone, not on `workers`. What an interrupted run of the same plan finished is kept.
    Raises ValueError where `folder` holds another pack of real images and `force` is not set.
    """
    done = read_json(folder / "shards.json")
    if done and done["fingerprint"] == plan.fingerprint and whole(folder, done) and not force:
        return done | {"unchanged": True}
    make_room(plan, folder, done, force)
    started = time.monotonic()
    unfinished = folder / ".unfinished"
    parts = {shard: unfinished / f"{shard}.parquet" for shard in plan.images["shard"].unique(maintain_order=True)}
    missing = [shard for shard, part in parts.items() if not (part.exists() and (folder / shard).exists())]
    write_missing(plan, folder, parts, missing, workers, progress)
    images = merge(plan, parts)
    if not (images["status"] == "packed").any():
        reasons = ", ".join(f"{n} {reason}" for reason, n in images["reason"].value_counts(sort=True).iter_rows())
        discard(folder)
        raise ValueError(f"none of the {len(images)} images below {plan.root} can be used: {reasons}")
    write_parquet(folder / "images.parquet", images)
    summary = summarise(plan, folder, images, time.monotonic() - started)
    write_json(folder / "shards.json", summary)
    shutil.rmtree(unfinished)
    return summary | {"unchanged": False}


def whole(folder: Path, done: dict) -> bool:
    """Whether the tars that shards.json names are there in their sizes."""
    sizes = [(folder / shard["name"], shard["bytes"]) for shard in done["shards"]]
    there = all(p.exists() and p.stat().st_size == n and p.with_suffix(".idx").exists() for p, n in sizes)
    return (folder / "images.parquet").exists() and there


def make_room(plan: Plan, folder: Path, done: dict | None, force: bool) -> None:
    """Clears what another plan left; a finished pack of real images goes only by `force`."""
    if done and done["fingerprint"] != plan.fingerprint and not done["drawn"] and not force:
        raise ValueError(
            f"{folder} holds {done['images']:,} images packed from {done['root']}, and these images or options differ: "
            "pack into another folder with --out, or replace them with --force"
        )
    stored = read_json(folder / ".unfinished" / "plan.json")
    if done or (stored and stored["fingerprint"] != plan.fingerprint) or force:
        discard(folder)
    write_json(folder / ".unfinished" / "plan.json", {"fingerprint": plan.fingerprint})


def discard(folder: Path) -> None:
    """Removes a pack and the labels that describe it; shards.json first, so that a cut leaves no false claim."""
    names = ["shards.json", "images.parquet", "labels.parquet", "embeddings.parquet", "labels.json"]
    for path in [*(folder / name for name in names), *folder.glob("shard-*.tar"), *folder.glob("shard-*.idx")]:
        path.unlink(missing_ok=True)
    shutil.rmtree(folder / ".unfinished", ignore_errors=True)


def write_missing(
    plan: Plan, folder: Path, parts: dict, missing: list[str], workers: int | None, progress: bool
) -> None:
    """Writes the shards that are not there yet, each by one worker process, and a table of its rows."""
    jobs = {
        key[0]: frame.select("key", "path").rows() for key, frame in plan.images.group_by("shard", maintain_order=True)
    }
    workers = min(workers or cpus(), max(len(missing), 1))
    bar = tqdm(
        total=len(plan.images),
        unit="img",
        desc="packing",
        disable=not progress,
        initial=sum(len(jobs[shard]) for shard in parts if shard not in missing),
    )
    # spawn: Polars' threads do not survive a fork
    with bar, ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(write_shard, plan.root, folder / s, jobs[s], plan.options.check): s for s in missing}
        try:
            for future in as_completed(futures):
                rows = pl.DataFrame(future.result(), schema=ROW, orient="row")
                write_parquet(parts[futures[future]], rows)
                bar.update(len(rows))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


ROW = {name: SCHEMA[name] for name in ("key", "width", "height", "bytes", "sha256", "reason")}


def write_shard(root: Path, path: Path, images: list[tuple[str, str]], checked: bool) -> list[tuple]:
    """Writes one tar of the good ones among (key, relative path); returns a ROW an image, rejected ones too."""
    rows = []
    with TarWriter(path) as tar:
        for key, name in images:
            try:
                data = contents(root / name)
            except OSError:  # vanished, no permission, a pipe or a folder of that name, a failing disk
                rows.append((key, None, None, None, None, "unreadable"))
                continue
            verdict = judge(data, name, checked)
            if verdict.reason is None:
                tar.add(key, verdict.extension, data)
            digest = hashlib.sha256(data).hexdigest()
            rows.append((key, verdict.width, verdict.height, len(data), digest, verdict.reason))
    return rows


def contents(path: Path) -> bytes:
    """The bytes of a regular file, no more than decide that it is too large. OSError for any other thing."""
    if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for ever
        raise OSError(f"{path} is not a file")
    with open(path, "rb") as file:
        return file.read(check.MAX_BYTES + 1)


def judge(data: bytes, name: str, checked: bool) -> check.Verdict:
    """The check's verdict; without the check, only size and emptiness count and the file's name tells its type."""
    if len(data) > check.MAX_BYTES:
        return check.Verdict("too_large")
    if checked:
        return check.inspect(data)
    extension = os.path.splitext(name)[1].lower().lstrip(".").replace("jpeg", "jpg").replace("tiff", "tif")
    reason = "empty" if not data else None if extension in check.EXTENSIONS.values() else "unsupported"
    return check.Verdict(reason, extension if reason is None else "")


def merge(plan: Plan, parts: dict[str, Path]) -> pl.DataFrame:
    """images.parquet's rows, in tar order."""
    rows = pl.concat([read_parquet(part) for part in parts.values()])
    packed = pl.col("reason").is_null()
    images = plan.images.join(rows, on="key", how="left", maintain_order="left").with_columns(
        status=pl.when(packed).then(pl.lit("packed")).otherwise(pl.lit("rejected")),
        shard=pl.when(packed).then("shard"),
        target=pl.coalesce("target", TARGET_OF_FAMILY),
    )
    return images.select(pl.col(name).cast(kind) for name, kind in SCHEMA.items())


# Deepfake sets hold both kinds, so their family alone decides nothing.
TARGET_OF_FAMILY = pl.col("family").replace_strict({"GANs": "fake", "DMs": "fake", "Real": "real"}, default=None)


def summarise(plan: Plan, folder: Path, images: pl.DataFrame, seconds: float) -> dict:
    """shards.json: what went in, what came out, and a hash (`manifest`) of all that training depends on."""
    packed = images.filter(status="packed")
    labelled = pl.any_horizontal(pl.col("gender", "age", "skin_tone").is_not_null())
    manifest = hashlib.sha256(packed.drop("path", "status", "reason").write_csv().encode()).hexdigest()
    rejected = images.filter(status="rejected")["reason"].value_counts(sort=True)
    names = list(packed["shard"].unique(maintain_order=True))
    counts = dict(packed["shard"].value_counts().iter_rows())
    return {
        "manifest": manifest,
        "fingerprint": plan.fingerprint,
        "drawn": plan.drawn,
        "root": str(plan.root.resolve()),
        "options": vars(plan.options),
        "images": len(packed),
        "rejected": dict(rejected.iter_rows()),
        "unreadable": plan.unreadable,
        "annotated": packed.select(labelled.sum()).item(),
        "tables": plan.tables.files,
        "rows": plan.tables.rows,
        "rows_repeated": plan.tables.repeated,
        "rows_disagreeing": plan.tables.disagreeing,
        "matched": plan.images["matched"].sum(),
        "bytes": packed["bytes"].sum(),
        "shards": [{"name": n, "images": counts[n], "bytes": (folder / n).stat().st_size} for n in names],
        "seconds": round(seconds, 2),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
