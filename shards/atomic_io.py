"""Atomic writes and locks, so that no other process sees a half-finished file or folder.

Every file is written under a temporary name, synced and renamed: a reader sees the old or the new version.
"""

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from shards.errors import FairfaceError

if TYPE_CHECKING:  # importing it would slow down the start of every worker process
    import polars as pl


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open `path` for writing under a temporary name; rename it when the block ends, remove it when the block fails.

    The folder is created if necessary.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    with atomic_write(path) as file:
        file.write(json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n")


def read_json(path: Path) -> Any:
    """Read the JSON value of a file; None if the file does not exist. Raises FairfaceError for invalid JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise FairfaceError(f"{path} is not valid JSON ({error}): remove it and run the stage again") from error


def write_parquet(path: Path, frame: "pl.DataFrame", *, compress: bool = True) -> None:
    """Write `frame` as Parquet, atomically: compressed by zstd, or in row groups of 16,384 that are read at once.

    An error of the file system is raised as OSError, as for every other file.
    """
    import polars as pl

    with atomic_write(path) as file:
        try:
            if compress:
                frame.write_parquet(file, compression="zstd")
            else:
                frame.write_parquet(file, compression="uncompressed", row_group_size=16_384)
        except pl.exceptions.ComputeError as error:
            if match := re.search(r"\(os error (\d+)\)", str(error)):
                number = int(match[1])
                raise OSError(number, os.strerror(number), str(path)) from error
            raise


def read_parquet(path: Path, columns: list[str] | None = None) -> "pl.DataFrame":
    """Read the table in the file of exactly that name: no character is a wildcard.

    Raises FairfaceError if the file is missing or damaged.
    """
    import polars as pl

    try:
        return pl.read_parquet(path, columns=columns, glob=False)
    except FileNotFoundError as error:
        raise FairfaceError(f"{path} is missing: run the stage that writes it again") from error
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = str(error).splitlines()[0][:200]
        raise FairfaceError(
            f"{path} can't be read ({reason}): remove it and run the stage that writes it again"
        ) from error


def is_complete_parquet(path: Path) -> bool:
    """Whether a Parquet file exists and has its footer, which is written last."""
    import polars as pl

    try:
        with open(path, "rb") as file:
            pl.read_parquet_schema(file)
    except (OSError, pl.exceptions.PolarsError):
        return False
    return True


@contextmanager
def exclusive_lock(folder: Path, purpose: str) -> Iterator[None]:
    """Hold the lock of `folder` for the duration of a block; the folder is created if necessary.

    Raises FairfaceError, which names the `purpose` (such as "packing"), if another process holds the lock. Does
    nothing on file systems without locks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)  # the system releases the lock even if this process is killed
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise FairfaceError(f"another process is using {folder}: wait for it, or stop it, before {purpose}") from error
    except OSError:
        pass  # no locks here: NFS raises EBADF for a folder, others ENOLCK or ENOTSUP
    try:
        yield
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(value: Any) -> str:
    """16 hexadecimal digits of the SHA-256 of the JSON form of `value`."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
