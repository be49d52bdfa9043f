"""Files below OUT: atomic writes, reads that neither hang nor crash, removal that follows no link.

Every file is written under a temporary name, synced and renamed: a reader sees the old or the new version.
"""

import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from shards.errors import FairfaceError

if TYPE_CHECKING:  # importing it would slow down the start of every worker process
    import polars as pl

PARTIAL = re.compile(r"\.(.+)\.[0-9a-f]{8}\.partial", re.DOTALL)  # the name of a file that is being written
MAX_NAME_BYTES = 200  # of the final name within a temporary one, which must not be longer than 255 bytes
MAX_JSON_BYTES = 1 << 28


@contextmanager
def atomic_write(path: Path, *, clean: bool = True, sync: bool = True, buffering: int = -1) -> Iterator[BinaryIO]:
    """Open `path` for writing under a temporary name; rename it when the block ends, remove it when the block fails.

    The folder is created if necessary. With `clean`, temporary files of the same name that a killed process left are
    removed first: the caller holds a lock that keeps other writers of `path` away. Without `sync`, which takes most of
    the time of a small file, the new version may be lost if the machine crashes soon afterwards.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if clean:
        remove_partials(path.parent, path.name)
    partial = partial_path(path)
    # neither an existing file nor the target of a link of that name may be overwritten
    file = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        with open(file, "wb", buffering) as stream:
            yield stream
            stream.flush()
            if sync:
                os.fsync(stream.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def partial_path(path: Path) -> Path:
    """A new temporary name for `path`, in the same folder."""
    return path.with_name(f".{_stem(path.name)}.{os.urandom(4).hex()}.partial")


def remove_partials(folder: Path, name: str | None = None) -> None:
    """Remove the temporary files of `name`, or of every name, that killed processes left in a folder."""
    with os.scandir(folder) as entries:
        for entry in entries:
            match = PARTIAL.fullmatch(entry.name) if entry.name.endswith(".partial") else None
            if match and (name is None or match[1] == _stem(name)):
                os.unlink(entry.path)


def _stem(name: str) -> str:
    """`name`, shortened to MAX_NAME_BYTES."""
    return os.fsdecode(os.fsencode(name)[:MAX_NAME_BYTES])


@contextmanager
def open_output(path: Path) -> Iterator[BinaryIO]:
    """Open an output file that the user named. A pipe or a device is written to and not replaced.

    Regular files, also behind links, are replaced atomically. Raises FairfaceError for a folder.
    """
    if path.is_dir():
        raise FairfaceError(f"{path} is a folder: give the name of a file")
    is_open_file = path.is_absolute() and path.parts[1:2] in (("dev",), ("proc",))  # such as /dev/stdout
    if is_open_file or (path.exists() and not path.is_file()):
        buffer = BytesIO()  # a pipe can't be rewound, as writers of Parquet need
        yield buffer
        with open(path, "wb") as file:
            file.write(buffer.getbuffer())
        return
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise FairfaceError(f"{path} is a link that leads to itself: give the name of a file")
    with atomic_write(target, clean=False) as stream:
        yield stream


def remove_tree(path: Path) -> None:
    """Remove a folder with its content, if it exists. Raises FairfaceError, and removes nothing, for a link."""
    check_removable_tree(path)
    if path.exists():
        shutil.rmtree(path)


def check_removable_tree(path: Path) -> None:
    """Raise FairfaceError for a link in the place of a folder that is to be removed."""
    if path.is_symlink():
        raise FairfaceError(f"{path} is a link, and what it leads to must not be removed: remove the link")


def remove_files(paths: Sequence[Path]) -> None:
    """Remove those of the files that exist, and links themselves. Raises FairfaceError as `check_removable` does."""
    check_removable(paths)
    for path in paths:
        path.unlink(missing_ok=True)


def check_removable(paths: Iterable[Path]) -> None:
    """Raise FairfaceError if one of the files that are to be removed is a folder."""
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            raise FairfaceError(f"{path} is a folder where a file should be: move it away")


def check_regular(path: Path) -> None:
    """Raise FairfaceError for a pipe, device or folder, which might block for ever.

    Raises FileNotFoundError for a missing file.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise FairfaceError(f"{path} is not a regular file")


def read_bytes(path: Path, *, limit: int = MAX_JSON_BYTES) -> bytes:
    """Read a regular file.

    Raises FairfaceError for anything else and for more than `limit` bytes, FileNotFoundError for a missing file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # opening a pipe would block for ever
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise FairfaceError(f"{path} is not a regular file")
        if status.st_size > limit:
            raise FairfaceError(f"{path} has {status.st_size:,} bytes, more than the {limit:,} that are read")
        return file.read()


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    with atomic_write(path) as file:
        file.write(json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n")


def read_json(path: Path) -> Any:
    """Read the JSON value of a file; None if the file does not exist. Raises FairfaceError for invalid JSON."""
    try:
        return json.loads(read_bytes(path).decode())
    except FileNotFoundError:
        return None
    except RecursionError:
        raise FairfaceError(f"{path} is nested too deeply: remove it and run the stage again") from None
    except ValueError as error:
        raise FairfaceError(f"{path} is not valid JSON ({error}): remove it and run the stage again") from error


def write_parquet(
    path: Path, frame: "pl.DataFrame", *, compress: bool = True, output: "BinaryIO | None" = None
) -> None:
    """Write `frame` as Parquet, atomically: compressed by zstd, or in row groups of 16,384 that are read at once.

    With `output`, it is written to that open file instead, and `path` only names it in errors. An error of the file
    system is raised as OSError, as for every other file.
    """
    import polars as pl

    if output is None:
        with atomic_write(path) as file:
            write_parquet(path, frame, compress=compress, output=file)
        return
    try:
        if compress:
            frame.write_parquet(output, compression="zstd")
        else:
            frame.write_parquet(output, compression="uncompressed", row_group_size=16_384)
    except pl.exceptions.ComputeError as error:
        if match := re.search(r"\(os error (\d+)\)", str(error)):
            number = int(match[1])
            raise OSError(number, os.strerror(number), str(path)) from error
        output.write(bytes(1 << 16))  # Polars does not always say so: on a full disk, this fails as well
        output.flush()
        raise


def read_parquet(
    path: Path,
    columns: "Sequence[str] | Mapping[str, pl.DataType | type[pl.DataType]] | None" = None,
    *,
    sha256: str | None = None,
) -> "pl.DataFrame":
    """Read the table in the file of exactly that name: no character is a wildcard.

    `columns` names the columns to read, perhaps with their types. Raises FairfaceError if the file is missing or
    damaged, lacks a column, has one of another type, or does not have the given SHA-256.
    """
    import polars as pl

    redo = "remove it and run the stage that writes it again"
    try:
        check_regular(path)
        if sha256 is not None and file_sha256(path) != sha256:
            raise FairfaceError(f"{path} was changed after it was written: {redo}")
        frame = pl.read_parquet(path, columns=None if columns is None else list(columns), glob=False)
    except FileNotFoundError as error:
        raise FairfaceError(f"{path} is missing: run the stage that writes it again") from error
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        reason = str(error).splitlines()[0][:200]
        raise FairfaceError(f"{path} can't be read ({reason}): {redo}") from error
    for name, kind in columns.items() if isinstance(columns, Mapping) else ():
        if frame.schema[name] != kind:
            raise FairfaceError(f"{path}: column {name} is {frame.schema[name]} instead of {kind}: {redo}")
    return frame


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(value: Any) -> str:
    """16 hexadecimal digits of the SHA-256 of the JSON form of `value`."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
