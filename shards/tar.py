"""Tar shards with DALI's index, written in one pass and read back by key."""

import os
import tarfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from shards.errors import FairfaceError

BLOCK = 512  # bytes
BUFFER = 1 << 20  # bytes: writing image by image is much slower
END = b"\0" * (2 * BLOCK)
_HEADER = tarfile.TarInfo("").tobuf(tarfile.USTAR_FORMAT)
TEMPLATE = _HEADER[:124] + b"\0" * 12 + _HEADER[136:148] + b" " * 8 + _HEADER[156:]  # no name, size and checksum
TEMPLATE_SUM = sum(TEMPLATE)


def header(name: str, size: int) -> bytes:
    """The USTAR header of a file of `size` bytes, as tarfile writes it, but faster.

    Times and owners are zero. Raises ValueError for a name or a size that needs an extension of the format.
    """
    coded, length = name.encode(), b"%011o" % size
    if len(coded) > 100 or len(length) > 11 or not name.isascii():
        raise ValueError(f"{name!r} of {size} bytes does not fit into a plain USTAR header")
    checksum = b"%06o\0 " % (TEMPLATE_SUM + sum(coded) + sum(length))
    return b"".join(
        (coded.ljust(100, b"\0"), TEMPLATE[100:124], length, b"\0", TEMPLATE[136:148], checksum, TEMPLATE[156:])
    )


class TarWriter:
    """Writes a tar and its index, `<stem>.idx`; neither exists under its name before `close`.

    The headers are plain USTAR: GNU and PAX extensions break DALI's own indexing. They contain no times, so that equal
    images give equal bytes. The index has DALI's format v1.2: one line per sample, `extension offset size name`.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.index_path = path, path.with_suffix(".idx")
        self.partials = [p.with_name(f".{p.name}.partial") for p in (self.path, self.index_path)]
        self.file = open(self.partials[0], "wb", BUFFER)  # noqa: SIM115 - closed by close() or __exit__
        self.lines: list[str] = []
        self.offset = 0

    def add(self, key: str, extension: str, data: bytes) -> None:
        """Append one member `<key>.<extension>`; keys contain no dot and no slash."""
        name = f"{key}.{extension}"
        self.file.write(header(name, len(data)))
        self.file.write(data)
        self.file.write(b"\0" * (-len(data) % BLOCK))
        self.lines.append(f"{extension} {self.offset + BLOCK} {len(data)} {name}\n")
        self.offset += BLOCK + len(data) + (-len(data) % BLOCK)

    def close(self) -> None:
        """End the archive, sync both files and rename them to their final names, the index first."""
        self.file.write(END)
        sync_close(self.file)
        with open(self.partials[1], "wb") as index:
            index.write(f"v1.2 {len(self.lines)}\n".encode())
            index.writelines(line.encode() for line in self.lines)
            sync_close(index)
        os.replace(self.partials[1], self.index_path)
        os.replace(self.partials[0], self.path)

    def __enter__(self) -> "TarWriter":
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        try:
            if error_type is None:
                self.close()
        finally:
            with suppress(OSError):  # a full disk fails once more when the buffer is flushed
                self.file.close()
            for partial in self.partials:
                partial.unlink(missing_ok=True)


def sync_close(file: BinaryIO) -> None:
    """Flush a file to the disk and close it."""
    file.flush()
    os.fsync(file.fileno())
    file.close()


def read_index(path: Path) -> dict[str, tuple[int, int]]:
    """key -> (offset, size in bytes) of every member that the index of the tar at `path` lists, in tar order.

    Raises FairfaceError for an index that is incomplete or damaged.
    """
    index = path.with_suffix(".idx")
    try:
        head, *lines = index.read_text().splitlines()
        if head != f"v1.2 {len(lines)}":
            raise ValueError("the first line does not count the others")
        entries = (line.split() for line in lines)
        return {name.split(".")[0]: (int(offset), int(size)) for _, offset, size, name in entries}
    except ValueError as error:  # includes text that is not UTF-8
        raise FairfaceError(
            f"{index} is not a complete DALI v1.2 index: write it again with `fairface shards --force`, or with "
            "`fairface sample --force` if it is one of samples"
        ) from error


def read_members(path: Path, keys: Iterable[str]) -> dict[str, bytes]:
    """key -> bytes of the members `keys` of the tar at `path`, located by its index.

    Raises KeyError for a key that the index does not list.
    """
    places = read_index(path)
    with open(path, "rb") as file:
        return {key: os.pread(file.fileno(), places[key][1], places[key][0]) for key in keys}
