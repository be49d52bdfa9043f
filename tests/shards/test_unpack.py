"""Archives are unpacked image by image, whatever their names and members are."""

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards import unpack
from shards.errors import FairfaceError
from shards.unpack import MAX_HEADER, archive_kind, unpack_images
from tests.shards.sample_images import encoded_image

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 24, 20, 3), np.uint8)


def unpacked(archive: Path, folder: Path) -> list[str]:
    kind = archive_kind(archive)
    assert kind
    return unpack_images(archive, kind, folder=folder, progress=False)


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def write_zip(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize("write", [write_tar, lambda path, members: write_tar(path, members, "w:gz"), write_zip])
def test_images_of_every_folder_are_unpacked_under_their_numbers(write, tmp_path):
    image = encoded_image()
    members = {"a/b/1.jpg": image, "readme.txt": b"no", "../../evil.JPG": image, "/etc/x.png": encoded_image("PNG")}
    members |= {".hidden.jpg": image, "__MACOSX/._1.jpg": b"junk"}
    archive = write(tmp_path / "faces.bin", members)
    names = unpacked(archive, tmp_path / "out" / "images")
    assert [name.lstrip("/") for name in names] == ["a/b/1.jpg", "../../evil.JPG", "etc/x.png"]
    files = sorted(path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*.*"))
    assert list(map(str, files)) == ["images/00000000.jpg", "images/00000001.jpg", "images/00000002.png"]
    assert (tmp_path / "out" / "images" / "00000000.jpg").read_bytes() == image
    assert not (tmp_path / "evil.JPG").exists()


def test_links_and_devices_in_a_tar_are_skipped(tmp_path):
    path = tmp_path / "links.tar"
    with tarfile.open(path, "w") as archive:
        for number, kind in enumerate((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE)):
            info = tarfile.TarInfo(f"{number}.jpg")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    with pytest.raises(FairfaceError, match=r"there are no images in .*links.tar"):
        unpacked(path, tmp_path / "images")


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("arrays", [{"arr_0": PIXELS}, {"faces": PIXELS}, {"labels": np.arange(5), "samples": PIXELS}])
def test_arrays_keep_their_pixels(write, arrays, tmp_path):
    write(tmp_path / "faces.npz", **arrays)
    names = unpacked(tmp_path / "faces.npz", tmp_path / "images")
    name = next(name for name, values in arrays.items() if values is PIXELS)
    assert names == [f"{name}[{index}]" for index in range(5)]
    read = [np.asarray(Image.open(path)) for path in sorted((tmp_path / "images").iterdir())]
    assert np.array_equal(read, PIXELS)


def test_arrays_with_channels_first_are_transposed(tmp_path):
    np.savez(tmp_path / "faces.npz", PIXELS.transpose(0, 3, 1, 2))
    unpacked(tmp_path / "faces.npz", tmp_path / "images")
    read = [np.asarray(Image.open(path)) for path in sorted((tmp_path / "images").iterdir())]
    assert np.array_equal(read, PIXELS)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"arr_0": PIXELS.astype(np.float32)}, "the array arr_0 is float32: save uint8 images"),
        ({"arr_0": PIXELS.astype(object)}, "pickled objects"),
        ({"arr_0": PIXELS[0]}, r"the shape \[24, 20, 3\]"),
        ({"arr_0": PIXELS[..., :2]}, r"the shape \[5, 24, 20, 2\]"),
        ({"arr_0": PIXELS[:, :3]}, r"the shape \[5, 3, 20, 3\]"),  # either axis may be that of the channels
        ({"arr_0": PIXELS[:0]}, r"the shape \[0, 24, 20, 3\]"),
        ({"arr_0": np.zeros((1, 8, 800, 3), np.uint8)}, "too large or too narrow"),
        ({"arr_0": np.asfortranarray(PIXELS)}, "Fortran"),
        ({"a": PIXELS, "b": PIXELS}, r"called arr_0, images, samples \(found: a, b\)"),
    ],
)
def test_other_arrays_are_refused(arrays, message, tmp_path):
    np.savez(tmp_path / "faces.npz", **arrays)
    with pytest.raises(FairfaceError, match=message):
        unpacked(tmp_path / "faces.npz", tmp_path / "images")


@pytest.mark.parametrize("kind", ["tar.gz", "zip", "npz", "header", "not an npz"])
def test_damaged_archives_are_refused(kind, tmp_path):
    path = tmp_path / ("faces.npz" if kind in ("npz", "header", "not an npz") else f"faces.{kind}")
    members = {f"{number}.jpg": encoded_image() for number in range(20)}
    if kind == "tar.gz":
        write_tar(path, members, "w:gz")
    elif kind == "zip":
        write_zip(path, members)
    elif kind == "header":
        write_zip(path, {"arr_0.npy": b"\x93NUMPY\1\0\x10\0{'descr': oops}  "})
    elif kind == "not an npz":
        path.write_bytes(encoded_image())
    else:
        np.savez(path, PIXELS)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 40] = bytes(40)
    if kind != "header":
        path.write_bytes(data[: len(data) // 2] if kind == "tar.gz" else data)
    with pytest.raises(FairfaceError, match="is damaged"):
        unpacked(path, tmp_path / "images")


def test_an_encrypted_zip_is_refused(tmp_path):
    data = bytearray(write_zip(tmp_path / "faces.zip", {"1.jpg": encoded_image()}).read_bytes())
    data[6] |= 1  # the flag of encryption, of the member and in the directory
    data[data.index(b"PK\1\2") + 8] |= 1
    (tmp_path / "faces.zip").write_bytes(data)
    with pytest.raises(FairfaceError, match=r"can't be unpacked .*password"):
        unpacked(tmp_path / "faces.zip", tmp_path / "images")


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "npz"])
def test_an_archive_that_expands_far_beyond_its_size_is_refused(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(unpack, "FREE_EXPANSION", 1 << 20)
    monkeypatch.setattr(unpack, "MAX_EXPANSION", 20)
    bomb, path = {f"{number}.bmp": bytes(1 << 18) for number in range(40)}, tmp_path / f"bomb.{kind}"
    if kind == "zip":
        write_zip(path, bomb, zipfile.ZIP_DEFLATED)
    elif kind == "tar.gz":
        write_tar(path, bomb, "w:gz")
    else:
        np.savez_compressed(path, np.zeros((30, 256, 256, 3), np.uint8))
    with pytest.raises(FairfaceError, match="expands to more than"):
        unpacked(path, tmp_path / "images")
    assert sum(file.stat().st_size for file in (tmp_path / "images").iterdir()) <= max(
        1 << 20, 20 * path.stat().st_size
    )


def test_an_image_larger_than_any_packed_one_is_not_read_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(unpack, "MAX_BYTES", 100)
    archive = write_zip(tmp_path / "faces.zip", {"1.jpg": encoded_image()})
    unpacked(archive, tmp_path / "images")
    assert (tmp_path / "images" / "00000000.jpg").stat().st_size == 101  # the packer rejects it as too large


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_tar_with_a_huge_header_is_not_read_into_memory(kind, tmp_path):
    image, header = tarfile.TarInfo("1.png"), tarfile.TarInfo("x")
    header.type, header.size = kind, MAX_HEADER + 1
    path = tmp_path / "bomb.tar"
    path.write_bytes(image.tobuf() + header.tobuf() + bytes(2 * MAX_HEADER))
    with pytest.raises(FairfaceError, match="a header of 1 MB"):
        unpack_images(path, "tar", folder=tmp_path / "images", progress=False)
    path.write_bytes(header.tobuf() + bytes(2 * MAX_HEADER))
    assert archive_kind(path) is None
