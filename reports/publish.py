"""Writes a document together with the files that it describes: all of them, or none if the disk is full."""

import hashlib
import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

from shards.atomic_io import atomic_write, read_json, write_json
from shards.documents import Document, write_document
from shards.errors import FairfaceError
from shards.workspace import REPORT_TABLES, ReportFolder

FIGURE_SUFFIXES = (".png", ".svg")


class DescribesFiles(Protocol):
    """A document that lists the SHA-256 of its files."""

    files: dict[str, str]


def check_own_files(folder: ReportFolder) -> None:
    """Raise FairfaceError for a page or table in a folder without a document: the user may have written it."""
    if any(map(os.path.lexists, (folder.document, folder.tables_document))):
        return
    for path in (folder.page, folder.rate_estimates, *map(folder.table, REPORT_TABLES)):
        if os.path.lexists(path):
            raise FairfaceError(f"{path} was not written by fairface, or {folder.document} is missing: move it away")


def publish(path: Path, document: DescribesFiles, files: Mapping[str, bytes]) -> None:
    """Replace the `files` next to the document at `path`, and then the document, which lists their SHA-256.

    Every file is on disk under a temporary name before the first one is replaced. Until all are replaced, the document
    at `path` is not valid, and lists only names: a process that is killed leaves no document for a mixture of files.
    Figures that only the previous document lists are removed.
    """
    assert isinstance(document, Document)
    previous = listed_figures(path)
    with ExitStack() as stack:
        for name, data in files.items():
            stream = stack.enter_context(atomic_write(path.with_name(name)))
            stream.write(data)
            stream.flush()
        write_json(path, {"format": None, "files": dict.fromkeys({*previous, *files})})
    for name in previous:
        if name not in files:
            path.with_name(name).unlink(missing_ok=True)
    document.files = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    write_document(path, document)


def listed_figures(path: Path) -> list[str]:
    """The figures that the document at `path` lists; none if it can't be read."""
    try:
        value = read_json(path)
    except FairfaceError:
        return []
    files = value.get("files") if isinstance(value, dict) else None
    # the document may have been edited: nothing but a figure next to it is ever removed
    return [name for name in files or () if Path(name).name == name and Path(name).suffix in FIGURE_SUFFIXES]
