"""Replaces a document and the files that it describes, so that a kill or a full disk neither loses nor mixes them."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from shards.atomic_io import atomic_write, check_removable, file_sha256, remove_files, remove_tree
from shards.documents import Document, encode_document
from shards.errors import FairfaceError

Writer = Callable[[BinaryIO], object]  # writes the content of a file


def replace_described_files(
    document: Path,
    contents: Mapping[Path, Writer],
    *,
    describe: Callable[[dict[str, str]], Document],
    obsolete: Sequence[Path] = (),
    folders: Mapping[Path, Path] | None = None,
    clean: bool = True,
) -> None:
    """Replace files and the `document` that describes them.

    `contents` writes each file, and `describe` builds the document from the SHA-256 of the files by name. All files are
    on disk under temporary names before the old document and then the `obsolete` files are removed; `folders` are then
    renamed, each to the one that it replaces, the files next, and the new document last. For `clean` see
    `atomic_write`. Raises FairfaceError, and removes nothing, for a folder where a file should be, and for a link or a
    file where a folder should be.
    """
    folders, hashes = folders or {}, {}
    with ExitStack() as stack:  # it renames the files in reverse order, the document last
        described = stack.enter_context(atomic_write(document, clean=clean))
        for path, write in contents.items():
            file = stack.enter_context(atomic_write(path, clean=clean))
            write(file)
            hashes[path.name] = _written_sha256(file)
        described.write(encode_document(describe(hashes)))
        described.flush()
        os.fsync(described.fileno())
        check_removable([document, *obsolete, *contents])
        for old in folders.values():
            if old.is_symlink() or (old.exists() and not old.is_dir()):
                raise FairfaceError(f"{old} is a file or a link where a folder should be: move it away")
        remove_files([document, *(path for path in obsolete if path not in contents)])
        for temporary, old in folders.items():
            remove_tree(old)
            temporary.rename(old)


def _written_sha256(file: BinaryIO) -> str:
    """The SHA-256 of a file that is being written, once it is on disk."""
    file.flush()
    os.fsync(file.fileno())
    return file_sha256(Path(f"/proc/self/fd/{file.fileno()}"))
