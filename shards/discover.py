"""Finds the image files below a folder, and reads their family and method from folder names."""

import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import polars as pl

FAMILIES = ("deepfakes", "GANs", "DMs", "Real")
# Formats from .gif on can't be decoded here: they are listed and rejected as unsupported instead of being left out.
SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".heic", ".jp2")
FILES_SCHEMA: dict[str, type[pl.DataType]] = {"path": pl.String, "size": pl.Int64, "mtime": pl.Int64}
PARALLEL_FOLDERS = 16
SLOW_SECONDS_PER_FILE = 50e-6  # above it, as on a network file system, folders are read in parallel


@dataclass
class Tree:
    """The image files below a folder, sorted by path."""

    files: pl.DataFrame  # path (relative), size in bytes, mtime in ns (both null for a broken link)
    unreadable: list[str] = field(default_factory=list)  # folders without permission, names that are not valid Unicode


@dataclass
class Folder:
    """The content of one folder."""

    identity: tuple[int, int] = (0, 0)  # device and inode
    files: list[tuple[str, int | None, int | None]] = field(default_factory=list)  # path, size, mtime
    folders: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)  # to folders
    unreadable: list[str] = field(default_factory=list)


def find_images(root: Path, *, exclude: Path | None = None) -> Tree:
    """Every image file below `root`, except hidden ones and those in the folder `exclude`.

    Links to folders are followed; each real folder is read once.
    """
    frames: list[pl.DataFrame] = []
    unreadable: list[str] = []
    visited: set[tuple[int, int]] = set()
    if exclude and exclude.is_dir():
        visited.add((exclude.stat().st_dev, exclude.stat().st_ino))
    pending: dict[str, None] = {"": None}  # dicts, because they keep an order
    links: dict[str, None] = {}
    slow = False
    with ThreadPoolExecutor(PARALLEL_FOLDERS) as pool:
        while pending or links:
            if not pending:  # real folders come before links: the tables refer to images by real folder names
                pending, links = dict.fromkeys(sorted(links)), {}
            names = list(islice(pending, PARALLEL_FOLDERS))
            for name in names:
                del pending[name]
            started = time.perf_counter()
            folders = new_folders((pool.map if slow else map)(lambda name: scan_folder(root, name), names), visited)
            files = [file for folder in folders for file in folder.files]
            slow = time.perf_counter() - started > SLOW_SECONDS_PER_FILE * (len(files) + 4 * len(names))
            frames.append(pl.DataFrame(files, schema=FILES_SCHEMA, orient="row"))
            for folder in folders:
                pending |= dict.fromkeys(folder.folders)
                links |= dict.fromkeys(folder.links)
                unreadable += folder.unreadable
    return Tree(pl.concat(frames).sort("path"), sorted(unreadable))


def new_folders(folders: Iterable[Folder], visited: set[tuple[int, int]]) -> list[Folder]:
    """The folders that were not `visited` before; adds them to `visited`."""
    new = []
    for folder in folders:
        if folder.identity not in visited:
            visited.add(folder.identity)
            new.append(folder)
    return new


def scan_folder(root: Path, name: str) -> Folder:
    """Read one folder; `name` is its path below `root`, empty or with a trailing slash."""
    folder = Folder()
    files: list[tuple[str, int | None, int | None]] = []
    try:
        status = os.stat(root / name)
        folder.identity = status.st_dev, status.st_ino
        with os.scandir(root / name) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                path = name + entry.name
                if not path.isascii() and (text := path.encode(errors="backslashreplace").decode()) != path:
                    folder.unreadable.append(text)  # not valid Unicode: can't be stored in a table or a tar index
                elif is_folder(entry):
                    (folder.links if entry.is_symlink() else folder.folders).append(path + "/")
                elif path.endswith(SUFFIXES) or path.lower().endswith(SUFFIXES):
                    files.append((path, *size_and_time(entry)))
    except OSError:
        folder.unreadable.append(name or str(root))
        folder.identity = (-1, hash(name))  # of no real folder
    folder.files = files
    return folder


def is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def size_and_time(entry: os.DirEntry[str]) -> tuple[int | None, int | None]:
    try:
        status = entry.stat()
        return status.st_size, status.st_mtime_ns
    except OSError:  # a link to nowhere or to itself: the packer will reject it as unreadable
        return None, None


def describe(paths: pl.Series, root: Path) -> pl.DataFrame:
    """path, family, subset, depth of each path, relative to `root` or absolute, by `locate_subset` of its folders."""
    frame = pl.DataFrame({"path": paths}).with_columns(folder=pl.col("path").str.replace(r"/?[^/]*$", ""))
    names, root_parts = frame["folder"].unique().to_list(), root.resolve().parts[1:]
    rows = []
    for name in names:
        parts = tuple(filter(None, name.split("/")))
        rows.append((name, *(locate_subset(parts, ()) if name.startswith("/") else locate_subset(root_parts, parts))))
    schema = {"folder": pl.String, "family": pl.String, "subset": pl.String, "depth": pl.Int16}
    folders = pl.DataFrame(rows, schema=schema, orient="row")
    return frame.join(folders, on="folder", how="left", maintain_order="left").drop("folder")


def locate_subset(root_parts: tuple[str, ...], folders: tuple[str, ...]) -> tuple[str | None, str | None, int]:
    """Family, subset, and the number of a path's folders from the subset's on; `folders` are those below the root.

    The family is the first of `folders` that is a family's name, otherwise the last such name in `root_parts`; the
    subset is the folder below it. Without a family the innermost folder is the subset.
    """
    families = {family.lower(): family for family in FAMILIES}
    parts = root_parts + folders
    order = [*range(len(root_parts), len(parts)), *reversed(range(len(root_parts)))]
    if (i := next((i for i in order if parts[i].lower() in families), None)) is not None:
        subset = min(i + 1, len(parts) - 1)
        while subset + 1 < len(parts) and parts[subset + 1].lower() == parts[subset].lower():
            subset += 1  # an archive unpacked into a folder of its own name
        return families[parts[i].lower()], parts[subset], len(parts) - subset
    return None, parts[-1] if parts else None, 1
