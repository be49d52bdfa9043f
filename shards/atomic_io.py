"""Every file of ours is written beside its final name, synced and renamed: a reader sees the old one or the new one."""

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

if TYPE_CHECKING:  # a worker process would start later for it
    import polars as pl


LABELS = (  # what describes the images of a folder, and goes when they do
    "labels.json",
    "labels.parquet",
    "pixels.parquet",
    "embeddings.parquet",
    "probe.json",
    "probe.parquet",
    "probe.safetensors",
    "labellers.parquet",
)


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Opens `path` for writing under a temporary name; renames it when the block ends, removes it when it fails."""
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
    """Writes `value` as indented JSON, atomically."""
    with atomic_write(path) as file:
        file.write(json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n")


def read_json(path: Path) -> Any:
    """The JSON value of a file; None where there is no such file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise FairfaceError(f"{path} is not valid JSON ({error}): remove it and run the stage again") from error


def write_parquet(path: Path, frame: "pl.DataFrame", packed: bool = True) -> None:
    """Writes `frame` as Parquet, atomically: `packed` by zstd, or in row groups of 16,384 that are read at once.

    What the system refuses is an OSError, as for every other file.
    """
    import polars as pl

    with atomic_write(path) as file:
        try:
            if packed:
                frame.write_parquet(file, compression="zstd")
            else:
                frame.write_parquet(file, compression="uncompressed", row_group_size=16_384)
        except pl.exceptions.ComputeError as error:
            if found := re.search(r"\(os error (\d+)\)", str(error)):
                raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error
            raise


def read_parquet(path: Path, columns: list[str] | None = None) -> "pl.DataFrame":
    """The one file of that name, whatever characters are in it. FairfaceError where it is missing or damaged."""
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
    """Whether a Parquet file is there with its end, which is written last."""
    import polars as pl

    try:
        with open(path, "rb") as file:
            pl.read_parquet_schema(file)
    except (OSError, pl.exceptions.PolarsError):
        return False
    return True


@contextmanager
def exclusive_lock(folder: Path, what: str) -> Iterator[None]:
    """Keeps other processes that ask for the same out of `folder` for the time of a block.

    FairfaceError where another one is in it. Nothing is locked on file systems that know no locks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    place = os.open(folder, os.O_RDONLY)  # the system lets go of it whatever becomes of us
    try:
        fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(place)
        raise FairfaceError(
            f"another process is at work in {folder}: wait for it, or stop it, before {what}"
        ) from error
    except OSError:
        pass  # no locks here: NFS says EBADF of a folder, others ENOLCK or ENOTSUP
    try:
        yield
    finally:
        os.close(place)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(value: Any) -> str:
    """16 hexadecimal digits that change whenever the JSON form of `value` does."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
