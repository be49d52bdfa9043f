"""Checks finished shards against images.parquet, byte by byte, for bit errors, truncated copies and mixed-up files."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

import polars as pl
from tqdm import tqdm

from shards import image_check, tar
from shards.atomic_io import file_sha256
from shards.concurrency import available_cpus, map_in_order
from shards.containers import is_plainly_safe
from shards.dali_decoder import DaliDecoder
from shards.documents import ShardsDocument, load_shards_json
from shards.images_table import manifest_hash, read_images, tar_size
from shards.workspace import ShardsFolder

KNOWN_EXTENSIONS = set(image_check.EXTENSIONS.values())


class Fault(NamedTuple):
    """One difference between a file and what was packed."""

    file: str
    what: str
    offset: int | None = None  # bytes into the file
    key: str | None = None  # of the image

    def __str__(self) -> str:
        place = f" at byte {self.offset:,}" if self.offset is not None else ""
        return f"{self.file}{place}{f', key {self.key}' if self.key else ''}: {self.what}"


class Row(NamedTuple):
    """One member of a tar, by images.parquet."""

    key: str
    bytes: int
    sha256: str


class VerifyResult(NamedTuple):
    """The faults of a pack, in the order of its shards, and how many images it should hold."""

    faults: list[Fault]
    images: int


def verify(shards: ShardsFolder, *, workers: int | None = None, progress: bool = True) -> VerifyResult:
    """Find every fault of a pack.

    Compares sizes, headers, checksums, padding and ends of the tars, their indices, and whether tables and
    shards.json belong to the same pack. Images that were packed without being decoded are decoded. Raises
    FairfaceError if nothing was packed.
    """
    document = load_shards_json(shards)
    faults = find_foreign_files(shards, document)
    if any(
        fault.file == shards.images.name for fault in faults
    ):  # only images.parquet lists what the tars should contain
        return VerifyResult([*faults, *find_wrong_sizes(shards, document)], document.images)
    images = read_images(shards.images, sha256=None).filter(status="packed")  # its SHA-256 has been compared
    counted = images.group_by("shard", maintain_order=True).agg(pl.len(), tar_size())
    listed = [(entry.name, entry.images, entry.bytes) for entry in document.shards]
    if manifest_hash(images) != document.manifest or counted.rows() != listed:
        faults.append(Fault(shards.document.name, "does not agree with images.parquet"))
    decode = not document.options.get("check")
    faults += find_damage(shards, images, decode=decode, workers=workers, progress=progress)
    return VerifyResult(faults, document.images)


def find_foreign_files(shards: ShardsFolder, document: ShardsDocument) -> list[Fault]:
    """The faults of the tables, and the tars and indices that don't belong to the pack."""
    faults = []
    for name, sha256 in document.files.items():
        path = shards.folder / name
        if not path.is_file():
            faults.append(Fault(name, "is missing"))
        elif file_sha256(path) != sha256:
            faults.append(Fault(name, "is not the table that was written with these shards"))
    names = {entry.name for entry in document.shards}
    foreign = [path for path in shards.tars_and_indices() if path.with_suffix(".tar").name not in names]
    return faults + [Fault(path.name, "does not belong to this pack") for path in foreign]


def find_wrong_sizes(shards: ShardsFolder, document: ShardsDocument) -> Iterator[Fault]:
    """The tars that are missing or do not have their sizes."""
    for entry in document.shards:
        path = shards.tar(entry.name)
        if not path.is_file() or path.stat().st_size != entry.bytes:
            yield Fault(entry.name, "is missing, or its size has changed")


def find_damage(
    shards: ShardsFolder,
    packed: pl.DataFrame,
    *,
    decode: bool = False,
    workers: int | None = None,
    progress: bool = False,
) -> list[Fault]:
    """The faults of the shards that hold the images `packed` (shard, key, bytes, sha256); `decode` decodes them."""
    workers = workers or available_cpus()
    members = packed.group_by("shard", maintain_order=True).agg("key", "bytes", "sha256")
    faults: list[Fault] = []
    with (
        DaliDecoder(workers) as dali,
        ThreadPoolExecutor(workers) as pool,  # hashing and decoding release Python's lock
        tqdm(total=len(packed), unit="img", desc="checking", disable=not progress, leave=False) as bar,
    ):
        check = partial(shard_faults, dali=dali if decode else None)
        jobs = ((shards.tar(name), [*map(Row, *columns)]) for name, *columns in members.iter_rows())
        for (_, rows), found in map_in_order(pool, check, jobs, ahead=2 * workers):
            faults += found
            bar.update(len(rows))
    return faults


def shard_faults(path: Path, rows: Sequence[Row], *, dali: DaliDecoder | None) -> list[Fault]:
    """The faults of one tar and its index; with a decoder, its images are decoded as well."""
    index = path.with_suffix(".idx")
    missing = [Fault(file.name, "is missing") for file in (path, index) if not file.is_file()]  # a pipe would block
    if missing:
        return missing
    try:
        with open(path, "rb") as file:
            faults, lines = member_faults(file, path.name, rows=rows, dali=dali)
        written = index.read_bytes().split(b"\n")
    except OSError as error:
        return [Fault(path.name, f"can't be read: {error.strerror}")]
    return faults + index_faults(index.name, written, lines)


def index_faults(name: str, written: list[bytes], lines: list[tuple[str, str | None]]) -> list[Fault]:
    """The faults of an index: its `written` lines compared with those that its tar needs, from `member_faults`."""
    if written[0] != f"v1.2 {len(lines)}".encode() or len(written) != len(lines) + 2 or written[-1]:
        return [Fault(name, f"is not an index of {len(lines):,} images", 0)]
    faults, offset = [], len(written[0]) + 1
    for (key, right), line in zip(lines, written[1:-1], strict=True):
        if right and line != right.encode():
            faults.append(Fault(name, f"has {line.decode(errors='replace')!r} instead of {right!r}", offset, key))
        offset += len(line) + 1
    return faults


def member_faults(
    file: BinaryIO, name: str, *, rows: Iterable[Row], dali: DaliDecoder | None
) -> tuple[list[Fault], list[tuple[str, str | None]]]:
    """The faults of an open tar, and (key, line) of the index that it needs, None if a header is damaged."""
    faults, lines, offset, cut = [], [], 0, False
    for row in rows:
        head, data = file.read(tar.BLOCK), file.read(row.bytes)
        padding = file.read(-row.bytes % tar.BLOCK)
        kind = head[:100].rstrip(b"\0").removeprefix(row.key.encode()).removeprefix(b".").decode(errors="replace")
        line = f"{kind} {offset + tar.BLOCK} {row.bytes} {row.key}.{kind}" if kind in KNOWN_EXTENSIONS else None
        lines.append((row.key, line))
        cut = cut or len(data) < row.bytes
        what = None
        if cut:
            what = "is cut off"
        elif kind not in KNOWN_EXTENSIONS or head != header(row, kind):
            what = "has another header than was packed"
        elif hashlib.sha256(data).hexdigest() != row.sha256:
            what = "has other bytes than were packed"
        elif dali and (reason := decoding_fault(data, dali)):
            what = f"can't be decoded ({reason}); it was packed with --no-check"
        elif any(padding):
            what = "is followed by bytes other than zeros"
        if what:
            faults.append(Fault(name, what, offset, row.key))
        offset += tar.BLOCK + row.bytes + len(padding)
    if not cut and file.read(len(tar.END) + 1) != tar.END:
        faults.append(Fault(name, "does not end where it should", offset))
    return faults, lines


def header(row: Row, extension: str) -> bytes | None:
    """The header of a member; None for a key or size that no tar can hold, as in a damaged table."""
    try:
        return tar.header(f"{row.key}.{extension}", row.bytes)
    except ValueError:
        return None


def decoding_fault(data: bytes, dali: DaliDecoder) -> str | None:
    """The reason why training can't decode an image; None if it can. DALI decodes images that are not plainly safe."""
    if is_plainly_safe(data):
        return image_check.inspect(data).reason
    return dali.find_rejection(data)


def sample_tar_fault(path: Path, sha256: str | None) -> str | None:
    """What is wrong with a tar of samples, whose SHA-256 is in samples.json, or with its index; None if all is well."""
    if not path.is_file():
        return "is missing"
    if file_sha256(path) != sha256:
        return "was changed after it was written"
    index = path.with_suffix(".idx")
    if not index.is_file() or index.read_bytes() != tar.make_index(path):
        return f"has an index, {index.name}, that is missing or was changed"
    return None


def find_undecodable(tars: Sequence[Path], *, workers: int | None = None) -> Fault | None:
    """The first image of some tars that DALI can't decode on the CPU, to name it when training fails.

    Images that are not plainly safe are tried first, because it is hardly ever another one. Raises FairfaceError for
    an incomplete index.
    """
    workers = workers or available_cpus()
    with DaliDecoder(workers) as dali, ThreadPoolExecutor(workers) as pool:
        for plainly_safe in (False, True):
            check = partial(first_undecodable, plainly_safe=plainly_safe, dali=dali)
            for _, fault in map_in_order(pool, check, ((path,) for path in tars), ahead=workers):
                if fault:
                    pool.shutdown(cancel_futures=True)
                    return fault
    return None


def first_undecodable(path: Path, *, plainly_safe: bool, dali: DaliDecoder) -> Fault | None:
    """The first image of one tar that DALI can't decode, among those that are `plainly_safe` or those that are not."""
    with open(path, "rb") as file:
        for key, (offset, size) in tar.read_index(path).items():
            file.seek(offset)
            data = file.read(size)
            if is_plainly_safe(data) == plainly_safe and (reason := dali.find_error(data)):
                return Fault(path.name, f"can't be decoded ({reason})", offset - tar.BLOCK, key)
    return None
