"""Which images lie below a folder: a walk that survives whatever it meets, and what the folders' names say."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import polars as pl

FAMILIES = ("deepfakes", "GANs", "DMs", "Real")
# The last of them no decoder here takes: they are found, and rejected as unsupported rather than lost.
SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".heic", ".jp2")
SCHEMA = {"path": pl.String, "size": pl.Int64, "mtime": pl.Int64}
PARALLEL_FOLDERS = 16  # folders
SLOW_SECONDS_PER_FILE = (
    50e-6  # seconds a file, as on a network's disk: there many questions at a time are answered as fast as one
)


@dataclass
class Tree:
    """What a walk found: `files` has `path` (relative), `size` in bytes, `mtime` in ns (null: gone), sorted."""

    files: pl.DataFrame
    unreadable: list[str] = field(default_factory=list)  # folders without permission, names that are no text


@dataclass
class Folder:
    """One folder's share of a Tree, and the folders in it: real ones, and links to others."""

    identity: tuple[int, int] = (0, 0)  # device and inode
    files: list[tuple[str, int | None, int | None]] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)


def find_images(root: Path, but: Path | None = None) -> Tree:
    """Every image file below `root`, hidden ones left out, and those in the folder `but`.

    Links to folders are followed, each real folder once.
    """
    parts, unreadable, seen = [], [], set()
    if but and but.is_dir():
        seen.add((but.stat().st_dev, but.stat().st_ino))
    waiting, links, slow = {"": None}, {}, False  # dicts, for they keep an order
    with ThreadPoolExecutor(PARALLEL_FOLDERS) as pool:
        while waiting or links:
            if not waiting:  # real folders come first: their names are the ones that the tables know
                waiting, links = dict.fromkeys(sorted(links)), {}
            names = list(islice(waiting, PARALLEL_FOLDERS))
            for name in names:
                del waiting[name]
            started = time.perf_counter()
            found = list((pool.map if slow else map)(lambda name: scan_folder(root, name), names))
            found = [folder for folder in found if not (folder.identity in seen or seen.add(folder.identity))]
            files = [file for folder in found for file in folder.files]
            slow = time.perf_counter() - started > SLOW_SECONDS_PER_FILE * (len(files) + 4 * len(names))
            parts.append(pl.DataFrame(files, schema=SCHEMA, orient="row"))
            for folder in found:
                waiting |= dict.fromkeys(folder.folders)
                links |= dict.fromkeys(folder.links)
                unreadable += folder.unreadable
    return Tree(pl.concat(parts).sort("path"), sorted(unreadable))


def scan_folder(root: Path, name: str) -> Folder:
    """Reads one folder; `name` is its path below `root`, empty or with a slash at its end."""
    found, files = Folder(), []
    try:
        status = os.stat(root / name)
        found.identity = status.st_dev, status.st_ino
        with os.scandir(root / name) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                path = name + entry.name
                if not path.isascii() and (text := path.encode(errors="backslashreplace").decode()) != path:
                    found.unreadable.append(text)  # no valid Unicode: it fits in no table and in no tar of ours
                elif is_folder(entry):
                    (found.links if entry.is_symlink() else found.folders).append(path + "/")
                elif path.endswith(SUFFIXES) or path.lower().endswith(SUFFIXES):
                    files.append((path, *size_and_time(entry)))
    except OSError:
        found.unreadable.append(name or str(root))
        found.identity = (-1, hash(name))  # seen by nobody else
    found.files = files
    return found


def is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def size_and_time(entry: os.DirEntry) -> tuple[int | None, int | None]:
    try:
        status = entry.stat()
        return status.st_size, status.st_mtime_ns
    except OSError:  # a link to nowhere or to itself: the packer will reject it as unreadable
        return None, None


def describe(paths: pl.Series, root: Path) -> pl.DataFrame:
    """path, family, subset, reach of each path, relative to `root` or absolute, as `place` reads its folders."""
    frame = pl.DataFrame({"path": paths}).with_columns(folder=pl.col("path").str.replace(r"/?[^/]*$", ""))
    folders, top = frame["folder"].unique().to_list(), root.resolve().parts[1:]
    parts = {folder: tuple(filter(None, folder.split("/"))) for folder in folders}
    places = [
        (f, *(locate_subset(parts[f], ()) if f.startswith("/") else locate_subset(top, parts[f]))) for f in folders
    ]
    schema = {"folder": pl.String, "family": pl.String, "subset": pl.String, "reach": pl.Int16}
    known = pl.DataFrame(places, schema=schema, orient="row")
    return frame.join(known, on="folder", how="left", maintain_order="left").drop("folder")


def locate_subset(top: tuple[str, ...], folders: tuple[str, ...]) -> tuple[str | None, str | None, int]:
    """Family, subset, and how many folders from the subset's on a path has; `folders` lie below those of `top`.

    The family is the first of `folders` named so, else the last such of `top`; the subset is the folder below it.
    Without a family the innermost folder is the subset.
    """
    known = {family.lower(): family for family in FAMILIES}
    every = top + folders
    order = [*range(len(top), len(every)), *reversed(range(len(top)))]
    if (i := next((i for i in order if every[i].lower() in known), None)) is not None:
        subset = min(i + 1, len(every) - 1)
        while subset + 1 < len(every) and every[subset + 1].lower() == every[subset].lower():
            subset += 1  # an archive unpacked into a folder of its own name
        return known[every[i].lower()], every[subset], len(every) - subset
    return None, every[-1] if every else None, 1
