"""Unpacks the images in a tar, a zip or an .npz into a folder, so that they are checked and packed like any others."""

import lzma
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from io import BytesIO
from math import prod
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np
from PIL import Image
from tqdm import tqdm

from shards.discover import SUFFIXES
from shards.errors import FairfaceError
from shards.image_check import MAX_ASPECT, MAX_BYTES, MAX_PIXELS

ARRAY_NAMES = ("arr_0", "images", "samples")  # of the images in an .npz with several arrays, in order of preference
MAX_EXPANSION = 200  # times an archive's size: images hardly compress, so anything beyond is a decompression bomb
FREE_EXPANSION = 1 << 30  # bytes, up to which any archive may expand
MAX_HEADER = 1 << 20  # bytes of a name or of other attributes in a tar
EXTENDED_HEADERS = {
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
}
DAMAGE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError)


class BoundedTarInfo(tarfile.TarInfo):
    """A tar's header. Raises ReadError for extended ones above MAX_HEADER, which tarfile would read into memory."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "BoundedTarInfo":
        info = super().frombuf(buf, encoding, errors)
        if info.type in EXTENDED_HEADERS and info.size > MAX_HEADER:
            raise tarfile.ReadError(f"a header of {info.size / 1e6:,.0f} MB")
        return info


def archive_kind(path: Path) -> str | None:
    """`npz`, `zip` or `tar` (possibly compressed); None for any other file."""
    if path.suffix.lower() == ".npz":
        return "npz"
    if zipfile.is_zipfile(path):
        return "zip"
    try:
        tarfile.open(path, tarinfo=BoundedTarInfo).close()
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError):
        return None
    return "tar"


def unpack_images(archive: Path, kind: str, *, folder: Path, progress: bool = True) -> list[str]:
    """Write every image of an archive into `folder`, named by its number; `kind` is as in `archive_kind`.

    Returns the names of the images in the archive, by number. Names are never used as paths, and links, devices and
    other files are skipped. Raises FairfaceError for a damaged or encrypted archive, for one without images, for an
    array of another type or shape, and for one that expands beyond `MAX_EXPANSION` or the free space.
    """
    folder.mkdir(parents=True)
    names: list[str] = []
    members, written = {"npz": array_images, "zip": zip_images, "tar": tar_images}[kind](archive), 0
    with tqdm(unit="img", desc=f"unpacking {archive.name}", disable=not progress) as bar:
        for name, data in read_members(members, archive):
            written += len(data)
            check_expansion(archive, written)
            if len(data) > (free := shutil.disk_usage(folder).free):
                raise FairfaceError(f"{folder} has only {free / 1e6:,.1f} MB of space left to unpack {archive.name}")
            suffix = PurePosixPath(name).suffix.lower() if kind != "npz" else ".png"
            (folder / f"{len(names):08d}{suffix}").write_bytes(data)
            names.append(name.encode(errors="backslashreplace").decode())
            bar.update()
    if not names:
        raise FairfaceError(f"there are no images in {archive} (looked for {', '.join(SUFFIXES)})")
    return names


def check_expansion(archive: Path, size: int) -> None:
    """Raise FairfaceError if an archive that expands to `size` bytes looks like a decompression bomb."""
    if size > (allowed := max(FREE_EXPANSION, MAX_EXPANSION * archive.stat().st_size)):
        raise FairfaceError(
            f"{archive} expands to more than {allowed / 1e9:,.1f} GB, far more than images do: if you trust it, "
            "unpack it and pass the folder"
        )


def read_members(members: Iterator[tuple[str, bytes]], archive: Path) -> Iterator[tuple[str, bytes]]:
    """Pass on the members of an archive. Raises FairfaceError if the archive turns out to be damaged or encrypted."""
    try:
        yield from members
    except DAMAGE as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise FairfaceError(f"{archive} is damaged ({reason}): copy or download it again") from error
    except RuntimeError as error:  # zipfile's, for a password or an unknown compression
        raise FairfaceError(
            f"{archive} can't be unpacked ({str(error)[:200]}): unpack it and pass the folder"
        ) from error


def is_image_name(name: str) -> bool:
    """Whether the name of a member is that of an image that is not hidden."""
    parts = PurePosixPath(name).parts
    hidden = any(part.startswith(".") and part not in (".", "..") for part in parts) or "__MACOSX" in parts
    return not hidden and name.lower().endswith(SUFFIXES)


def tar_images(path: Path) -> Iterator[tuple[str, bytes]]:
    """The name and the bytes, at most one more than MAX_BYTES, of every image in a tar."""
    with tarfile.open(path, tarinfo=BoundedTarInfo) as archive:
        for member in archive:
            if member.isreg() and is_image_name(member.name) and (file := archive.extractfile(member)):
                yield member.name, file.read(MAX_BYTES + 1)


def zip_images(path: Path) -> Iterator[tuple[str, bytes]]:
    """The name and the bytes, at most one more than MAX_BYTES, of every image in a zip."""
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if not member.is_dir() and is_image_name(member.filename):
                with archive.open(member) as file:
                    yield member.filename, file.read(MAX_BYTES + 1)


def array_images(path: Path) -> Iterator[tuple[str, bytes]]:
    """The name and the PNG file of every image in an .npz, read one by one; nothing in it is unpickled."""
    with zipfile.ZipFile(path) as archive:
        name = array_name(path, [name for name in archive.namelist() if name.endswith(".npy")])
        check_expansion(path, archive.getinfo(name).file_size)
        with archive.open(name) as file:
            shape, is_channels_first = array_layout(file, f"{path}: the array {name.removesuffix('.npy')}")
            for index in range(shape[0]):
                pixels = np.frombuffer(read_exactly(file, prod(shape[1:])), np.uint8).reshape(shape[1:])
                output = BytesIO()
                Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)) if is_channels_first else pixels).save(
                    output, "PNG", compress_level=1
                )
                yield f"{name.removesuffix('.npy')}[{index}]", output.getvalue()


def array_name(path: Path, names: list[str]) -> str:
    """The member that holds the images: the only array, or one of ARRAY_NAMES. Raises FairfaceError without any."""
    if len(names) == 1:
        return names[0]
    if named := [f"{name}.npy" for name in ARRAY_NAMES if f"{name}.npy" in names]:
        return named[0]
    found = ", ".join(name.removesuffix(".npy")[:40] for name in names[:8]) or "none"
    raise FairfaceError(f"{path}: none of its arrays is called {', '.join(ARRAY_NAMES)} (found: {found})")


def array_layout(file: IO[bytes], title: str) -> tuple[tuple[int, ...], bool]:
    """The shape of an array of images, from its header, and whether its second axis is that of the channels.

    Raises FairfaceError that starts with `title` for anything but uint8 images, ValueError for a damaged header.
    """
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, is_fortran, dtype = read_header(file)
    if dtype.hasobject:
        raise FairfaceError(f"{title} holds pickled objects, which are not read: save uint8 images, [N, H, W, 3]")
    if dtype != np.uint8:
        raise FairfaceError(f"{title} is {dtype}: save uint8 images, 0 to 255, [N, H, W, 3]")
    channels = [axis for axis in (1, 3) if len(shape) == 4 and shape[axis] == 3]
    if len(channels) != 1 or not all(shape):
        raise FairfaceError(f"{title} has the shape {list(shape)}: save images as [N, H, W, 3] or [N, 3, H, W]")
    if is_fortran:
        raise FairfaceError(f"{title} is in Fortran order: save it with numpy.ascontiguousarray")
    height, width = (size for axis, size in enumerate(shape[1:], 1) if axis != channels[0])
    if height * width > MAX_PIXELS or max(height, width) > MAX_ASPECT * min(height, width):
        raise FairfaceError(f"{title} has images of {width} x {height} pixels, which are too large or too narrow")
    return shape, channels == [1]


def read_exactly(file: IO[bytes], size: int) -> bytes:
    """The next `size` bytes. Raises EOFError if there are fewer."""
    data = file.read(size)
    while len(data) < size:
        if not (more := file.read(size - len(data))):
            raise EOFError("it ends too early")
        data += more
    return data
