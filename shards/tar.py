"""Tar shards with DALI's index, written in one pass and read back by key."""

import os
import tarfile
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from shards.atomic_io import atomic_write, read_bytes
from shards.errors import FairfaceError

BLOCK = 512  # bytes
BUFFER = 1 << 20  # bytes: writing image by image is much slower
MAX_INDEX_BYTES = 1 << 32
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
    """Writes a tar and its index, `<stem>.idx`, in a `with` block; neither exists under its name before the block ends.

    The headers are plain USTAR: GNU and PAX extensions break DALI's own indexing. They contain no times, so that equal
    images give equal bytes. The index has DALI's format v1.2: one line per sample, `extension offset size name`.
    Temporary files that a killed process left stay: several processes write into one folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[str] = []
        self.offset = 0
        self.stack = ExitStack()

    def __enter__(self) -> "TarWriter":
        self.file = self.stack.enter_context(atomic_write(self.path, clean=False, buffering=BUFFER))
        self.stack.push(self._finish)
        return self

    def add(self, key: str, extension: str, data: bytes) -> None:
        """Append one member `<key>.<extension>`; keys contain no dot and no slash."""
        name = f"{key}.{extension}"
        self.file.write(header(name, len(data)))
        self.file.write(data)
        self.file.write(b"\0" * (-len(data) % BLOCK))
        self.lines.append(f"{extension} {self.offset + BLOCK} {len(data)} {name}\n")
        self.offset += BLOCK + len(data) + (-len(data) % BLOCK)

    def __exit__(self, *error: Any) -> None:
        self.stack.__exit__(*error)

    def _finish(self, error_type: type[BaseException] | None, *_: object) -> None:
        """End the archive and write its index, unless the block failed."""
        if error_type is None:
            self.file.write(END)
            with atomic_write(self.path.with_suffix(".idx"), clean=False) as index:
                index.write(f"v1.2 {len(self.lines)}\n".encode())
                index.writelines(line.encode() for line in self.lines)


def read_index(path: Path) -> dict[str, tuple[int, int]]:
    """key -> (offset, size in bytes) of every member that the index of the tar at `path` lists, in tar order.

    Raises FairfaceError for an index that is incomplete or damaged.
    """
    index = path.with_suffix(".idx")
    try:
        head, *lines = read_bytes(index, limit=MAX_INDEX_BYTES).decode().splitlines()
        if head != f"v1.2 {len(lines)}":
            raise ValueError("the first line does not count the others")
        entries = (line.split() for line in lines)
        places = {name.split(".")[0]: (int(offset), int(size)) for _, offset, size, name in entries}
        if any(min(place) < 0 for place in places.values()):
            raise ValueError("an offset or a size is negative")
        return places
    except ValueError as error:  # includes text that is not UTF-8
        raise FairfaceError(
            f"{index} is not a complete DALI v1.2 index: write it again with `fairface shards --force`, or with "
            "`fairface sample --force` if it is one of samples"
        ) from error


def make_index(path: Path) -> bytes:
    """The index of an intact tar that a TarWriter wrote."""
    lines, offset = [], 0
    with open(path, "rb") as file:
        while (head := file.read(BLOCK))[:1] > b"\0":
            name, size = head[:100].rstrip(b"\0").decode(), int(head[124:135], 8)
            lines.append(f"{name.partition('.')[2]} {offset + BLOCK} {size} {name}\n")
            offset += BLOCK + size + (-size % BLOCK)
            file.seek(offset)
    return "".join([f"v1.2 {len(lines)}\n", *lines]).encode()


def read_members(path: Path, keys: Iterable[str]) -> dict[str, bytes]:
    """key -> bytes of the members `keys` of the tar at `path`, located by its index.

    Raises KeyError for a key that the index does not list.
    """
    places = read_index(path)
    with open(path, "rb") as file:
        return {key: os.pread(file.fileno(), places[key][1], places[key][0]) for key in keys}
