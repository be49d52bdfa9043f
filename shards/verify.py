"""Holds finished shards against images.parquet, byte by byte: bits rot, copies break off, files get mixed up."""

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import polars as pl
from tqdm import tqdm

from shards import image_check, tar
from shards.atomic_io import file_sha256, read_json, read_parquet
from shards.concurrency import available_cpus, map_in_order
from shards.errors import FairfaceError

REQUIRED_KEYS = {
    "fingerprint",
    "order",
    "manifest",
    "files",
    "drawn",
    "root",
    "options",
    "images",
    "shards",
}  # of shards.json
KNOWN_EXTENSIONS = set(image_check.EXTENSIONS.values())


class Fault(NamedTuple):
    """One thing that is not as it was packed."""

    file: str
    what: str
    offset: int | None = None  # bytes into the file
    key: str | None = None

    def __str__(self) -> str:
        place = f" at byte {self.offset:,}" if self.offset is not None else ""
        return f"{self.file}{place}{f', key {self.key}' if self.key else ''}: {self.what}"


class Row(NamedTuple):
    """What images.parquet says of one member."""

    key: str
    bytes: int
    sha256: str


def load_shards_json(folder: Path) -> dict:
    """What shards.json says of the pack in `folder`. FairfaceError where nothing was packed, or it can't be read."""
    done = read_json(folder / "shards.json")
    if done is None:
        raise FairfaceError(f"no finished shards in {folder}: run `fairface shards` first")
    shards = done.get("shards") if isinstance(done, dict) else None
    known = isinstance(shards, list) and done.keys() >= REQUIRED_KEYS
    kinds = {"name": str, "images": int, "bytes": int}
    good = known and all(isinstance(s, dict) and all(isinstance(s.get(k), t) for k, t in kinds.items()) for s in shards)
    if not good or sum(shard["images"] for shard in shards) != done["images"]:
        raise FairfaceError(
            f"{folder / 'shards.json'} is not what this version of fairface writes: run `fairface shards --force`"
        )
    return done


def verify(folder: Path, workers: int | None = None, progress: bool = True) -> tuple[list[Fault], int]:
    """Every fault of the pack in `folder`, in the order of its shards, and how many images it should hold.

    Sizes, headers, checksums, padding and ends of the tars, their indices, and whether tables and shards.json are of
    the same pack. Images that were packed without being decoded are decoded. FairfaceError where nothing was packed.
    """
    done = load_shards_json(folder)
    named = {shard["name"]: shard for shard in done["shards"]}
    faults = [table_fault(folder / name, sha256) for name, sha256 in done["files"].items()]
    faults += [
        Fault(path.name, "is no part of this pack")
        for path in sorted([*folder.glob("shard-*.tar"), *folder.glob("shard-*.idx")])
        if path.with_suffix(".tar").name not in named
    ]
    faults = [fault for fault in faults if fault]
    if any(fault.file == "images.parquet" for fault in faults):  # nothing says what the tars should hold
        for name, shard in named.items():
            path = folder / name
            if not path.is_file() or path.stat().st_size != shard["bytes"]:
                faults.append(Fault(name, "is missing, or of another size than was packed"))
        return faults, done["images"]
    images = read_parquet(folder / "images.parquet").filter(status="packed")
    held = images.group_by("shard", maintain_order=True).agg(pl.len(), tar_size())
    right = [(shard["name"], shard["images"], shard["bytes"]) for shard in done["shards"]]
    if manifest_hash(images) != done["manifest"] or held.rows() != right:
        faults.append(Fault("shards.json", "does not say what images.parquet says"))
    return faults + find_damage(folder, images, not done["options"]["check"], workers, progress), done["images"]


def tar_size() -> pl.Expr:
    """Bytes of a tar of members of so many `bytes` each."""
    blocks = (pl.col("bytes") + (tar.BLOCK - 1)) // tar.BLOCK + 1  # its header is one
    return blocks.sum() * tar.BLOCK + len(tar.END)


def table_fault(path: Path, sha256: str) -> Fault | None:
    if not path.is_file():
        return Fault(path.name, "is missing")
    return (
        Fault(path.name, "is not the table that was written with these shards") if file_sha256(path) != sha256 else None
    )


def manifest_hash(packed: pl.DataFrame) -> str:
    """A hash of all that training and report depend on: each packed image's place, bytes and labels."""
    digest = hashlib.sha256()
    for part in packed.drop("path", "status", "reason").iter_slices(10_000):
        digest.update(part.write_csv(include_header=False).encode())
    return digest.hexdigest()


def find_damage(
    folder: Path, packed: pl.DataFrame, decode: bool = False, workers: int | None = None, progress: bool = False
) -> list[Fault]:
    """The faults of the shards that hold the images `packed` (shard, key, bytes, sha256)."""
    shards = packed.group_by("shard", maintain_order=True).agg("key", "bytes", "sha256")
    examine = partial(shard_faults, folder, decode=decode)
    found: list[Fault] = []
    # threads: hashing and decoding hold no lock of Python's
    with (
        ThreadPoolExecutor(workers or available_cpus()) as pool,
        tqdm(total=len(packed), unit="img", desc="checking", disable=not progress, leave=False) as bar,
    ):
        jobs = ((name, [*map(Row, *columns)]) for name, *columns in shards.iter_rows())
        for (_, rows), faults in map_in_order(pool, examine, jobs, 2 * (workers or available_cpus())):
            found += faults
            bar.update(len(rows))
    return found


def shard_faults(folder: Path, name: str, rows: Iterable[Row], decode: bool = False) -> list[Fault]:
    """The faults of one tar and its index."""
    path, index, faults = folder / name, (folder / name).with_suffix(".idx"), []
    for file in (path, index):
        if not file.is_file():  # opening a pipe would wait for ever
            faults.append(Fault(file.name, "is missing"))
    if faults:
        return faults
    try:
        with open(path, "rb") as file:
            faults, lines = member_faults(file, name, rows, decode)
        written = index.read_bytes().split(b"\n")
    except OSError as error:
        return [Fault(name, f"can't be read: {error.strerror}")]
    if written[0] != f"v1.2 {len(lines)}".encode() or len(written) != len(lines) + 2 or written[-1]:
        return [*faults, Fault(index.name, f"is not an index of {len(lines):,} images", 0)]
    offset = len(written[0]) + 1
    for (key, right), line in zip(lines, written[1:-1], strict=True):
        if right and line != right.encode():
            faults.append(Fault(index.name, f"says {line.decode(errors='replace')!r}, not {right!r}", offset, key))
        offset += len(line) + 1
    return faults


def member_faults(
    file, name: str, rows: Iterable[Row], decode: bool
) -> tuple[list[Fault], list[tuple[str, str | None]]]:
    """The faults of an open tar, and (key, line) of the index that it should have, None where its header is lost."""
    faults, lines, offset, cut = [], [], 0, False
    for row in rows:
        head, data = file.read(tar.BLOCK), file.read(row.bytes)
        padding = file.read(-row.bytes % tar.BLOCK)
        kind = head[:100].rstrip(b"\0").removeprefix(row.key.encode()).removeprefix(b".").decode(errors="replace")
        line = f"{kind} {offset + tar.BLOCK} {row.bytes} {row.key}.{kind}" if kind in KNOWN_EXTENSIONS else None
        lines.append((row.key, line))
        found = partial(Fault, name, offset=offset, key=row.key)
        cut = cut or len(data) < row.bytes
        if cut:
            faults.append(found("is cut off"))
        elif kind not in KNOWN_EXTENSIONS or head != tar.header(f"{row.key}.{kind}", row.bytes):
            faults.append(found("has another header than was packed"))
        elif hashlib.sha256(data).hexdigest() != row.sha256:
            faults.append(found("has other bytes than were packed"))
        elif decode and (reason := image_check.inspect(data).reason):
            faults.append(found(f"can't be decoded ({reason}); it was packed with --no-check"))
        elif any(padding):
            faults.append(found("is followed by other bytes than zeros"))
        offset += tar.BLOCK + row.bytes + len(padding)
    if not cut and file.read(len(tar.END) + 1) != tar.END:
        faults.append(Fault(name, "does not end where it should", offset))
    return faults, lines
