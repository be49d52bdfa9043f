"""The packer's worker process: writes one whole shard, and imports nothing that is slow to start."""

import csv
import hashlib
import io
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from shards import image_check
from shards.atomic_io import atomic_write
from shards.tar import TarWriter

CONVERTED = "converted"  # the result of `try_packing` for an image that is packed in another form
ROW_COLUMNS = ("key", "width", "height", "bytes", "sha256", "orientation", "reason")  # that a worker writes


class ImageRecipe(NamedTuple):
    """The processing of every image."""

    check: bool  # decode it once
    size: int | None  # pixels of the shorter side of a re-encoded image; None keeps the original size
    quality: int  # of the JPEG, with `size`


@dataclass(frozen=True)
class ShardJob:
    """One shard to write."""

    root: str  # of the images
    tar: Path
    rows: Path  # CSV with a row of ROW_COLUMNS per image; a shard that has it is finished
    images: list[tuple[str, str]]  # key, path relative to the root
    recipe: ImageRecipe


def write_shard(job: ShardJob) -> int:
    """Write the tar of a shard's good images, then its rows. Returns the number of images."""
    rows = io.StringIO()
    writer = csv.writer(rows)
    with TarWriter(job.tar) as shard:
        for key, name in job.images:
            try:
                data, size = read_regular_file(f"{job.root}/{name}")
            except OSError:  # deleted, no permission, a pipe or a folder of that name, a failing disk
                writer.writerow((key, None, None, None, None, None, "unreadable"))
                continue
            verdict, data = check_and_encode(data, job.recipe)
            digest = hashlib.sha256(data).hexdigest() if data else None
            if verdict.reason is None:
                size = len(data)
                shard.add(key, verdict.extension, data)
            writer.writerow((key, verdict.width, verdict.height, size, digest, verdict.orientation, verdict.reason))
    with atomic_write(job.rows, clean=False) as file:
        file.write(rows.getvalue().encode())
    return len(job.images)


def read_regular_file(path: str) -> tuple[bytes, int]:
    """The bytes of a regular file, at most one more than MAX_BYTES, and its size. Raises OSError for anything else."""
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # opening a pipe would block for ever
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"{path} is not a file")
        wanted = min(status.st_size, image_check.MAX_BYTES + 1)
        data = os.read(file, wanted)
        while len(data) < wanted and (more := os.read(file, wanted - len(data))):  # a network disk may return less
            data += more
        return data, status.st_size
    finally:
        os.close(file)


def check_and_encode(data: bytes, recipe: ImageRecipe) -> tuple[image_check.Verdict, bytes]:
    """The verdict on an image, and the bytes to pack; those of a rejected image are its own, or none if too large."""
    if len(data) > image_check.MAX_BYTES:
        return image_check.Verdict("too_large"), b""
    if recipe.size:
        return image_check.inspect_and_resize(data, recipe.size, quality=recipe.quality)
    if recipe.check:
        return image_check.inspect_and_convert(data)
    return image_check.identify(data), data


def try_packing(data: bytes, recipe: ImageRecipe) -> str | None:
    """The reason why an image is not packed, `CONVERTED` if other bytes are packed in its place, None if its own are.

    It is called in a process that a hostile image may crash.
    """
    verdict, packed = check_and_encode(data, recipe)
    return verdict.reason or (None if packed is data else CONVERTED)
