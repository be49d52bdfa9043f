"""What a worker process of the packer does: one whole shard, and nothing that is slow to start."""

import csv
import hashlib
import io
import multiprocessing
import os
import signal
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from shards import image_check
from shards.errors import FairfaceError
from shards.tar import TarWriter

ROW_COLUMNS = ("key", "width", "height", "bytes", "sha256", "orientation", "reason")  # of the row that a worker gives


class ImageRecipe(NamedTuple):
    """What becomes of every image."""

    check: bool  # decode it once
    size: int | None  # pixels of the shorter side, encoded again; None keeps the bytes
    quality: int  # JPEG's, with `size`


@contextmanager
def worker_pool(count: int) -> Iterator[ProcessPoolExecutor]:
    """`count` processes, forked by a server that has loaded this module and nothing else.

    A fork of our own could inherit a lock that one of Polars' threads holds. An error in the block drops what has
    not begun; what has is finished.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", __name__])
    with ProcessPoolExecutor(count, context, initializer=initialise_worker) as pool:
        try:
            yield pool
        except BrokenProcessPool as error:
            raise FairfaceError(
                "a worker process ended by itself, perhaps killed for want of memory: what was finished is kept, and "
                "the same command goes on, with fewer --workers if need be"
            ) from error
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def warm_up(pool: ProcessPoolExecutor, count: int) -> None:
    """Starts `count` of the pool's processes now; they would start with their first shards."""
    for _ in range(count):
        pool.submit(os.getpid)


def initialise_worker() -> None:
    """Signals to the whole group are the parent's to handle, and its death ends the worker: nobody waits for it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def write_shard(root: str, tar: Path, table: Path, images: list[tuple[str, str]], recipe: ImageRecipe) -> int:
    """Writes one tar of the good ones among (key, relative path), then `table`, a row of COLUMNS an image.

    A shard whose table exists is finished. Returns the number of images.
    """
    rows = io.StringIO()
    writer = csv.writer(rows)
    with TarWriter(tar) as shard:
        for key, name in images:
            try:
                data, size = read_regular_file(f"{root}/{name}")
            except OSError:  # vanished, no permission, a pipe or a folder of that name, a failing disk
                writer.writerow((key, None, None, None, None, None, "unreadable"))
                continue
            verdict, data = check_and_encode(data, recipe)
            digest = hashlib.sha256(data).hexdigest() if data else None
            if verdict.reason is None:
                size = len(data)
                shard.add(key, verdict.extension, data)
            writer.writerow((key, verdict.width, verdict.height, size, digest, verdict.orientation, verdict.reason))
    partial = table.with_suffix(".partial")
    with open(partial, "w") as file:
        file.write(rows.getvalue())
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, table)
    return len(images)


def read_regular_file(path: str) -> tuple[bytes, int]:
    """The bytes of a regular file, no more than decide that it is too large, and its size.

    OSError for any other thing.
    """
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # opening a pipe would wait for ever
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"{path} is not a file")
        wanted = min(status.st_size, image_check.MAX_BYTES + 1)
        data = os.read(file, wanted)
        while len(data) < wanted and (more := os.read(file, wanted - len(data))):  # a network's disk gives less
            data += more
        return data, status.st_size
    finally:
        os.close(file)


def check_and_encode(data: bytes, recipe: ImageRecipe) -> tuple[image_check.Verdict, bytes]:
    """The verdict on an image, and the bytes that go into the shard; a rejected image's are its own, or none."""
    if len(data) > image_check.MAX_BYTES:
        return image_check.Verdict("too_large"), b""
    if recipe.size:
        verdict, small = image_check.inspect_and_resize(data, recipe.size, recipe.quality)
        return verdict, data if verdict.reason else small
    return (image_check.inspect if recipe.check else image_check.identify)(data), data
