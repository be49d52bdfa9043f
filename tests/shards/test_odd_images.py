"""Images that Pillow decodes and DALI may not: packed so that training reads them, and named where they are not."""

import hashlib
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image

from pipeline.data.decoder import decode_all
from pipeline.data.shard_set import ShardSet
from shards import dali_decoder, tar
from shards.dali_decoder import DaliDecoder
from shards.verify import find_undecodable, verify
from shards.workspace import ShardsFolder
from tests.shards.packing import command, pack_into
from tests.shards.sample_images import BAD, DALI_FAILS_ON, GOOD, HUGE, ODD, crash_on_bmp, encoded_image, rotated_image


@pytest.fixture
def odd(tmp_path):
    """A folder of every odd image, and a good JPEG."""
    (tmp_path / "odd").mkdir()
    for i, (extension, data) in enumerate([GOOD["jpeg"], *ODD.values()]):
        (tmp_path / "odd" / f"{i:02d}.{extension}").write_bytes(data)
    return tmp_path / "odd"


def test_training_reads_the_pixels_that_pillow_decodes(odd, tmp_path):
    shards = ShardsFolder(tmp_path / "shards")
    assert pack_into(odd, shards.folder).images == 1 + len(ODD)
    table = pl.read_parquet(shards.images)
    (batch,) = decode_all(ShardSet.open(shards), 30, device=torch.device("cpu"))
    for path, image in zip(table["path"], batch, strict=True):
        decoded = np.asarray(Image.open(odd / path).convert("RGB"))[:, 5:35]
        assert np.array_equal(image.numpy(), decoded), path
    assert verify(shards, progress=False) == ([], len(table))


def test_the_table_describes_the_bytes_in_the_shard(odd, tmp_path):
    pack_into(odd, tmp_path / "shards")
    table = pl.read_parquet(tmp_path / "shards" / "images.parquet")
    members = tar.read_members(tmp_path / "shards" / "shard-000000.tar", table["key"])
    for key, size, sha256 in table.select("key", "bytes", "sha256").iter_rows():
        assert (len(members[key]), hashlib.sha256(members[key]).hexdigest()) == (size, sha256)


def test_verify_names_what_dali_cannot_decode_in_a_pack_without_the_check(odd, tmp_path):
    shards = ShardsFolder(tmp_path / "shards")
    pack_into(odd, shards.folder, check=False)
    table = pl.read_parquet(shards.images).sort("path")
    keys = {name: table["key"][1 + i] for i, name in enumerate(ODD)}
    faults, images = verify(shards, workers=2, progress=False)
    assert images == 1 + len(ODD)
    assert {fault.key for fault in faults} == {keys[name] for name in DALI_FAILS_ON}
    assert {fault.what for fault in faults} == {
        "can't be decoded (DALI can't decode it); it was packed with --no-check"
    }
    first = find_undecodable(shards.tars(), workers=2)
    assert first
    assert first.key == min(fault.key for fault in faults)


def test_find_undecodable_looks_at_plainly_safe_images_too(tmp_path):
    with tar.TarWriter(tmp_path / "a.tar") as writer:
        writer.add("0", "jpg", GOOD["jpeg"][1])
        writer.add("1", "png", GOOD["rgba"][1][:-30])
    fault = find_undecodable([tmp_path / "a.tar"], workers=1)
    assert fault
    assert (fault.file, fault.key) == ("a.tar", "1")
    with tar.TarWriter(tmp_path / "b.tar") as writer:
        writer.add("0", "jpg", GOOD["jpeg"][1])
    assert find_undecodable([tmp_path / "b.tar"], workers=1) is None


def test_a_crash_of_the_decoder_names_the_image_and_no_other(monkeypatch):
    with DaliDecoder(1) as dali:
        monkeypatch.setattr(dali_decoder, "decoding_error", crash_on_bmp)
        assert dali.find_error(GOOD["jpeg"][1]) is None
        assert dali.find_error(GOOD["bmp"][1]) == "it crashes the decoder"
        assert dali.find_error(GOOD["jpeg"][1]) is None


def test_a_crash_of_a_worker_is_reported_and_visible():
    code = """
from shards.processes import worker_pool
from tests.shards.sample_images import crash_on_bmp
with worker_pool(1, preload="shards.worker") as pool:
    pool.submit(crash_on_bmp, b"BM").result()
"""
    errors = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr
    assert "Fatal Python error: Segmentation fault" in errors
    assert "in crash_on_bmp" in errors
    assert "FairfaceError: a worker process crashed" in errors


def test_headers_with_any_size_do_not_end_the_pack(tmp_path):
    (tmp_path / "data").mkdir()
    for name, data in HUGE.items():
        (tmp_path / "data" / f"{name}.png").write_bytes(data)
    (tmp_path / "data" / "good.jpg").write_bytes(GOOD["jpeg"][1])
    assert pack_into(tmp_path / "data", tmp_path / "shards").rejected == {"too_large": len(HUGE)}
    rejected = pl.read_parquet(tmp_path / "shards" / "images.parquet").filter(status="rejected")
    assert rejected["width"].null_count() == len(HUGE)


@pytest.mark.parametrize("option", ["--check", "--no-check"])
def test_warnings_of_the_decoders_stay_off_the_screen(tmp_path, option):
    (tmp_path / "data").mkdir()
    damaged = bytearray(encoded_image("TIFF", compression="tiff_lzw"))
    damaged[40:200] = b"\xff\0\xff\xaa" * 40
    images = [GOOD["jpeg"][1], *BAD.values(), *(data for _, data in ODD.values()), bytes(damaged)]
    images += [image[:-200] for _, image in GOOD.values()]
    images.append(rotated_image(6).replace(b"\x01\x12\x00\x03\x00\x00\x00\x01", b"\x01\x12\x00\x03\xff\x00\x00\x01"))
    for i, data in enumerate(images):
        (tmp_path / "data" / f"{i}.jpg").write_bytes(data)
    options = () if option == "--check" else (option,)
    done = subprocess.run(command(tmp_path / "data", tmp_path, *options), capture_output=True, text=True)
    assert done.returncode == 0
    assert [line for line in done.stderr.splitlines() if "packing" not in line and line] == []
    words = [sys.executable, "-m", "pipeline.cli", "verify", "--out", str(tmp_path)]
    lines = subprocess.run(words, capture_output=True, text=True).stderr.splitlines()
    expected = (f"{tmp_path}/shards/shard-", "... and", "Error:", "checking")
    assert [line for line in lines if line and not line.startswith(expected)] == []
