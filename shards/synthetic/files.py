"""The files that `fairface synth` rendered into a folder, by a list of checksums: no other file is removed."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from shards.atomic_io import atomic_write, file_sha256, read_bytes, remove_partials
from shards.errors import FairfaceError
from shards.synthetic.fakes import FAKES, REAL
from shards.workspace import LOCK, SyntheticFolder

FOLDER_IMAGES = 1000  # images of one folder
TABLE = SyntheticFolder(Path()).table.name
UNDIVIDED = "GANs/Synthetic"  # the folder of all faces if they are not divided into real faces and fakes
FOLDERS = (UNDIVIDED, REAL, *FAKES)
CHECKSUM = re.compile(
    rf"([0-9a-f]{{64}})  ((?:{'|'.join(FOLDERS)})/[0-9]{{3,}}/[0-9]{{6,}}\.jpg|train\.csv|synthetic\.json)"
)  # nothing else was rendered
MAX_LIST_BYTES = 1 << 34


def image_path(index: int, folder: str = UNDIVIDED) -> str:
    """The path of a face's image below the root of the data set."""
    return f"{folder}/{index // FOLDER_IMAGES:03d}/{index:06d}.jpg"


def check_content(files: SyntheticFolder) -> None:
    """Raise FairfaceError for a folder that contains files, but no synthetic faces."""
    if files.exists() or not files.folder.is_dir() or set(os.listdir(files.folder)) <= {LOCK}:
        return
    raise FairfaceError(f"{files.folder} holds files other than synthetic faces: choose an empty or a new folder")


def write_checksums(files: SyntheticFolder, images: dict[str, str]) -> None:
    """Write the list of `images` (path -> SHA-256), the table and the document, in the format of `sha256sum`."""
    listed = images | {path.name: file_sha256(path) for path in (files.table, files.document)}
    with atomic_write(files.checksums) as file:
        file.writelines(f"{digest}  {path}\n".encode() for path, digest in listed.items())


def read_checksums(files: SyntheticFolder) -> dict[str, str]:
    """path -> SHA-256 of every rendered file; empty without a list. Raises FairfaceError for a damaged list."""
    try:
        lines = read_bytes(files.checksums, limit=MAX_LIST_BYTES).decode(errors="replace").splitlines()
    except FileNotFoundError:
        return {}
    matches = [CHECKSUM.fullmatch(line) for line in lines]
    if not all(matches):
        raise FairfaceError(f"{files.checksums} is damaged: remove {files.folder}, or choose another folder")
    return {match[2]: match[1] for match in matches if match}


def is_whole(files: SyntheticFolder) -> bool:
    """Whether every file of the list exists."""
    listed = read_checksums(files)
    return bool(listed) and all((files.folder / path).is_file() for path in listed)


def removable_files(files: SyntheticFolder, new: Iterable[str]) -> list[str]:
    """The rendered files in the folder, which may be replaced by the files `new`.

    Raises FairfaceError if one was changed after it was rendered, if a new file would replace one that was not
    rendered, and if a folder is a link.
    """
    old, unfinished = read_checksums(files), read_checksums(files.rendering)  # the latter of a replacement, if killed
    if files.document.exists() and not (old or unfinished):
        raise FairfaceError(
            f"{files.folder} has no list of the faces that were rendered into it: remove it, or choose another folder"
        )
    paths = dict.fromkeys([*old, *unfinished, *new])
    for folder in dict.fromkeys(parent for path in paths for parent in reversed(Path(path).parents)):
        if (place := files.folder / folder).is_symlink() and folder != Path():
            raise FairfaceError(f"{place} is a link, and faces would be written where it leads: remove it")
    known = []
    for path in paths:
        place = files.folder / path
        if not os.path.lexists(place):
            continue
        if place.is_symlink() or not place.is_file() or file_sha256(place) not in (old.get(path), unfinished.get(path)):
            raise FairfaceError(
                f"{place} was not rendered by fairface, or was changed since: move it away, or choose another folder"
            )
        known.append(path)
    return known


def is_replacement_unfinished(files: SyntheticFolder) -> bool:
    """Whether a process was killed while it replaced files."""
    return files.rendering.checksums.exists()


def finish_replacement(files: SyntheticFolder) -> None:
    """Finish a replacement that was killed, if there is one. Raises FairfaceError as `removable_files` does."""
    if is_replacement_unfinished(files):
        replace_files(files, removable_files(files, read_checksums(files.rendering)))


def replace_files(files: SyntheticFolder, replaced: list[str]) -> None:
    """Replace rendered files by those in `files.rendering`, the list last: one of the two lists names every file."""
    files.document.unlink(missing_ok=True)
    new = read_checksums(files.rendering)
    for old in (files.folder / path for path in replaced if path not in new):
        old.unlink()
        remove_empty(old.parent, files.folder)
    for folder in dict.fromkeys((files.folder / path).parent for path in new):
        folder.mkdir(parents=True, exist_ok=True)
    for path in new:
        if (source := files.rendering.folder / path).exists():
            os.replace(source, files.folder / path)
    os.replace(files.rendering.checksums, files.checksums)
    discard_rendering(files.rendering)


def start_rendering(rendering: SyntheticFolder) -> None:
    """Remove an unfinished rendering. Raises FairfaceError if anything else is in its place, such as a link."""
    discard_rendering(rendering)
    if os.path.lexists(rendering.folder):
        raise FairfaceError(f"{rendering.folder} holds files that were not rendered by fairface: move it away")


def discard_rendering(rendering: SyntheticFolder) -> None:
    """Remove an unfinished rendering, and only files whose names are those of rendered files."""
    for folder, _, names in os.walk(rendering.folder, topdown=False):  # which follows no links
        place = Path(folder)
        remove_partials(place)
        for name in names:
            path = place / name
            relative = str(path.relative_to(rendering.folder))
            if CHECKSUM.fullmatch(f"{'0' * 64}  {relative}") or path == rendering.checksums:
                path.unlink(missing_ok=True)
        remove_empty(place, place.parent)


def remove_empty(folder: Path, root: Path) -> None:
    """Remove a folder and its parents below `root`, as long as they are empty."""
    while folder != root and folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent
