"""Whatever happens to a finished pack, verify names the file, the place and the image."""

import os
import shutil
from pathlib import Path

import polars as pl
import pytest

from shards import pack, tar
from shards.atomic_io import read_json, write_json
from shards.errors import FairfaceError
from shards.verify import Fault, verify
from shards.workspace import ShardsFolder


@pytest.fixture
def folder(packed, tmp_path) -> Path:
    """A pack that the test may damage: 240 images in three tars."""
    shutil.copytree(packed / "shards", tmp_path / "shards")
    return tmp_path / "shards"


def faults(folder: Path) -> list[Fault]:
    return verify(ShardsFolder(folder), progress=False).faults


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


def place(folder: Path, shard: str, number: int) -> tuple[str, int, int]:
    """key, offset and size of one member."""
    key, (offset, size) = list(tar.read_index(folder / shard).items())[number]
    return key, offset, size


def test_an_intact_pack_has_no_fault(folder):
    one, three = (verify(ShardsFolder(folder), workers=workers, progress=False) for workers in (1, 3))
    assert one == three == ([], 240)


@pytest.mark.parametrize("at", [0.0, 0.5, 1.0])
def test_one_flipped_bit_is_found_and_named(folder, at):
    key, offset, size = place(folder, "shard-000001.tar", 7)
    byte = offset + int(at * (size - 1))
    value = (folder / "shard-000001.tar").read_bytes()[byte]
    overwrite(folder / "shard-000001.tar", byte, bytes([value ^ 16]))
    assert faults(folder) == [Fault("shard-000001.tar", "has other bytes than were packed", offset - 512, key)]


@pytest.mark.parametrize("byte", [0, 8, 107, 135, 150, 257, 511], ids=str)
def test_every_byte_of_a_header_is_compared(folder, byte):
    """Name, extension, mode, size, checksum, magic and padding."""
    key, offset, _ = place(folder, "shard-000000.tar", 3)
    overwrite(folder / "shard-000000.tar", offset - 512 + byte, b"X")
    assert faults(folder) == [Fault("shard-000000.tar", "has another header than was packed", offset - 512, key)]


def test_headers_padding_and_the_end_are_compared_too(folder):
    key, offset, _ = place(folder, "shard-000000.tar", 3)
    overwrite(folder / "shard-000000.tar", offset - 512, b"X")
    other, start, length = place(folder, "shard-000000.tar", 5)
    overwrite(folder / "shard-000000.tar", start + length, b"X")
    end = (folder / "shard-000002.tar").stat().st_size
    overwrite(folder / "shard-000002.tar", end - 1, b"X")
    assert [(f.file, f.offset, f.key, f.what) for f in faults(folder)] == [
        ("shard-000000.tar", offset - 512, key, "has another header than was packed"),
        ("shard-000000.tar", start - 512, other, "is followed by bytes other than zeros"),
        ("shard-000002.tar", end - 1024, None, "does not end where it should"),
    ]


def test_a_cut_tar_names_the_first_image_it_lost_and_counts_all(folder):
    key, offset, size = place(folder, "shard-000001.tar", 90)
    with open(folder / "shard-000001.tar", "r+b") as file:
        file.truncate(offset + size - 1)
    found = faults(folder)
    assert found[0] == Fault("shard-000001.tar", "is cut off", offset - 512, key)
    assert len(found) == 10


def test_missing_and_foreign_files_are_named(folder):
    (folder / "shard-000000.tar").unlink()
    (folder / "shard-000001.idx").unlink()
    (folder / "shard-000009.tar").write_bytes(b"")
    assert [(f.file, f.what) for f in faults(folder)] == [
        ("shard-000009.tar", "does not belong to this pack"),
        ("shard-000000.tar", "is missing"),
        ("shard-000001.idx", "is missing"),
    ]


def test_a_stale_index_and_a_wrong_offset_are_named(folder):
    shutil.copy(folder / "shard-000002.idx", folder / "shard-000000.idx")
    path = folder / "shard-000001.idx"
    key, offset, size = place(folder, "shard-000001.tar", 4)
    text = path.read_text()
    path.write_text(text.replace(f"jpg {offset} ", f"jpg {offset + 512} "))
    stale, wrong = faults(folder)
    assert (stale.file, stale.what) == ("shard-000000.idx", "is not an index of 100 images")
    assert (wrong.file, wrong.key, wrong.offset) == ("shard-000001.idx", key, text.index(f"jpg {offset} "))
    assert f"'jpg {offset} {size} {key}.jpg'" in wrong.what


def test_swapped_tars_are_found_image_by_image(folder):
    one, other = folder / "shard-000000.tar", folder / "shard-000001.tar"
    kept = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(kept)
    found = [fault for fault in faults(folder) if fault.key]
    assert {fault.file for fault in found} >= {one.name, other.name}
    assert len({fault.key for fault in found}) == 200


@pytest.mark.parametrize("column", ["gender", "path", "sha256", "bytes", "key", "shard"])
def test_a_table_of_another_pack_is_found_whatever_differs(folder, column):
    images = pl.read_parquet(folder / "images.parquet")
    images.with_columns(pl.lit(None).alias(column)).write_parquet(folder / "images.parquet")
    assert faults(folder) == [Fault("images.parquet", "is not the table that was written with these shards")]
    images.drop(column).write_parquet(folder / "images.parquet")
    (folder / "shard-000001.tar").unlink()
    assert [fault.file for fault in faults(folder)] == ["images.parquet", "shard-000001.tar"]


def test_missing_tables_and_a_changed_document_are_found(folder):
    (folder / "unmatched.parquet").unlink()
    done = read_json(folder / "shards.json")
    done["shards"][1]["bytes"] += 512
    write_json(folder / "shards.json", done)
    assert [(f.file, f.what) for f in faults(folder)] == [
        ("unmatched.parquet", "is missing"),
        ("shards.json", "does not agree with images.parquet"),
    ]
    (folder / "images.parquet").unlink()
    assert [fault.file for fault in faults(folder)] == ["images.parquet", "unmatched.parquet", "shard-000001.tar"]


@pytest.mark.parametrize("change", [[1], {"a": 1}, {"shards": [{}]}, "a number as text", "a shard less"])
def test_an_invalid_document_is_one_clear_error_and_force_replaces_it(synthetic_root, folder, change):
    done = read_json(folder / "shards.json")
    if change == "a number as text":
        done["shards"][0]["images"] = "100"
    elif change == "a shard less":
        done["shards"].pop()
    write_json(folder / "shards.json", done if isinstance(change, str) else change)
    with pytest.raises(FairfaceError, match=r"shards\.json is (damaged|of format).*--force"):
        verify(ShardsFolder(folder))
    with pytest.raises(FairfaceError, match=r"shards\.json is (damaged|of format).*--force"):
        pack.pack(synthetic_root, ShardsFolder(folder), progress=False)
    assert pack.pack(synthetic_root, ShardsFolder(folder), force=True, progress=False).document.images == 240
    assert faults(folder) == []


def test_a_pipe_in_place_of_a_tar_does_not_block(folder):
    (folder / "shard-000002.tar").unlink()
    os.mkfifo(folder / "shard-000002.tar")
    assert faults(folder) == [Fault("shard-000002.tar", "is missing")]


def test_without_a_pack_there_is_nothing_to_verify(tmp_path):
    with pytest.raises(FairfaceError, match="fairface shards"):
        verify(ShardsFolder(tmp_path))
