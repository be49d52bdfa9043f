"""The packer's worker process: writes one whole shard, and imports nothing that is slow to start."""

import csv
import faulthandler
import hashlib
import io
import multiprocessing
import os
import signal
import stat
import sys
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

from shards import image_check
from shards.errors import FairfaceError
from shards.tar import TarWriter

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


@contextmanager
def worker_pool(count: int) -> Iterator[ProcessPoolExecutor]:
    """`count` processes, forked by a server that has imported this module and nothing else.

    A fork of this process could inherit a lock that one of Polars' threads holds. If the block fails, jobs that have
    not started are dropped, and running ones are finished. Raises FairfaceError if a process crashes.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", __name__])
    with ProcessPoolExecutor(count, context, initializer=initialise_worker) as pool:
        try:
            yield pool
        except BrokenProcessPool as error:
            raise FairfaceError(
                "a worker process crashed, or was killed for lack of memory. Progress is saved; rerun the same "
                "command to resume, with fewer --workers if necessary"
            ) from error
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def warm_up(pool: ProcessPoolExecutor, count: int) -> None:
    """Start `count` of the pool's processes now instead of with their first shards."""
    for _ in range(count):
        pool.submit(os.getpid)


def initialise_worker(report_crashes: bool = True) -> None:
    """Leave signals to the parent, end when it dies, and keep the decoders' warnings off the terminal."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent
    threading.Thread(target=exit_after, args=(parent,), daemon=True).start()
    if sys.stderr is not None:  # if stderr is closed, its descriptor may belong to another file
        silence_decoders()
        if report_crashes:
            faulthandler.enable(sys.stderr)


def exit_after(process: BaseProcess) -> None:
    """End this process, whatever it is doing, when another one has ended."""
    process.join()
    os._exit(1)


def silence_decoders() -> None:
    """Discard the warnings of Pillow, and what libtiff and others write to file descriptor 2.

    An image's faults are in its verdict. Python's own `sys.stderr` still goes to the terminal.
    """
    warnings.simplefilter("ignore")
    sys.stderr = open(os.dup(2), "w", buffering=1, errors="backslashreplace")  # noqa: SIM115 - open as long as we live
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)


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
    partial = job.rows.with_suffix(".partial")
    with open(partial, "w") as file:
        file.write(rows.getvalue())
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, job.rows)
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
