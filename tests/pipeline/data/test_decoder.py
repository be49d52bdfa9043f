"""DALI decodes the packed images as torchvision would, and an image that it cannot decode is named."""

import hashlib
import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from pipeline.data.decoder import decode_all
from pipeline.data.loader import load_resident
from pipeline.data.shard_set import ConcatShards, ShardSet
from shards import pack, tar
from shards.documents import ShardEntry
from shards.errors import FairfaceError
from shards.plan import PackConfig
from shards.workspace import ShardsFolder, Workspace
from tests.shards.sample_images import GOOD, ODD

CPU = torch.device("cpu")


def test_images_are_in_tar_order_and_resized_as_by_torchvision(shards):
    images = load_resident(shards, 32, device=CPU, progress=False)
    assert (images.shape, images.dtype) == ((240, 32, 32, 3), torch.uint8)
    path = shards.folder / shards.names[1]
    keys = list(tar.read_index(path))[:8]
    resize = v2.Compose([v2.Resize(32, antialias=True), v2.CenterCrop(32)])
    for i, data in enumerate(tar.read_members(path, keys).values()):
        expected = torch.from_numpy(np.array(resize(Image.open(io.BytesIO(data)).convert("RGB"))))
        assert (images[100 + i].float() - expected.float()).abs().mean() < 1.0


def test_the_last_batch_is_cut_not_padded(shards):
    assert [len(batch) for batch in decode_all(shards, 32, device=CPU, batch_size=100)] == [100, 100, 40]


def test_a_shard_that_is_damaged_after_it_was_verified_is_named_too(damageable):
    path = damageable.folder / "shard-000002.tar"
    (offset, size), *_ = tar.read_index(path).values()
    data = bytearray(path.read_bytes())
    data[offset : offset + size] = bytes(size)
    path.write_bytes(data)
    program = f"""
import pathlib, torch
from pipeline.data.decoder import decode_all
from pipeline.data.shard_set import ConcatShards, ShardSet
from shards.plan import PackConfig
from shards.workspace import ShardsFolder, Workspace
shards = ShardSet.open(ShardsFolder(pathlib.Path({str(damageable.folder)!r})))
shards.verified = True
list(decode_all(shards, 32, device=torch.device("cpu")))
"""
    for _ in range(40):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
        if done.returncode >= 0:  # DALI 2.4 often crashes instead (three times in four on some machines)
            break
    assert done.returncode == 1
    assert re.search(r"FairfaceError: .*shard-000002\.tar at byte 0, key .*fairface verify", done.stderr)


def write_pack(folder: Path, images: list[tuple[str, bytes]]) -> ShardSet:
    """A shard with these images (extension, bytes), as if the packer had accepted them."""
    path, rows = folder / "shard-000000.tar", []
    with tar.TarWriter(path) as writer:
        for i, (extension, data) in enumerate(images):
            writer.add(f"{i:09d}", extension, data)
            sha256 = hashlib.sha256(data).hexdigest()
            rows.append({"shard": path.name, "key": f"{i:09d}", "bytes": len(data), "sha256": sha256})
    table = ShardsFolder(folder).images
    pl.DataFrame(rows).with_columns(status=pl.lit("packed")).write_parquet(table)
    entry = ShardEntry(name=path.name, images=len(images), bytes=path.stat().st_size)
    return ShardSet(folder, [entry], table=table, command="fairface shards --force")


@pytest.mark.parametrize("name", ["run-length bmp of 4 bits", "signed tiff"])
def test_an_image_that_dali_cannot_decode_is_named(tmp_path, name):
    safe, odd = GOOD["jpeg"], ODD[name]
    Image.open(io.BytesIO(odd[1])).load()  # Pillow decodes it
    shards = write_pack(tmp_path, [safe, safe, safe, odd, safe])
    with pytest.raises(FairfaceError, match=r"shard-000000\.tar at byte [\d,]+, key 000000003: .*fairface shards"):
        list(decode_all(shards, 32, device=CPU))
    with pytest.raises(FairfaceError, match="key 000000003: "):
        list(decode_all(ConcatShards([shards, shards]), 32, device=CPU))


def test_the_images_of_an_unchecked_pack_are_decoded_before_they_are_used(tmp_path):
    root, workspace = tmp_path / "images", Workspace(tmp_path / "out")
    root.mkdir()
    for i, (extension, data) in enumerate([GOOD["jpeg"], ODD["signed tiff"]]):
        (root / f"{i}.{extension}").write_bytes(data)
    pack.pack(root, workspace.shards, PackConfig(check=False), progress=False)
    shards = ShardSet.open(workspace.shards)
    with pytest.raises(FairfaceError, match=r"key 0000000\d.*can't be decoded"):
        list(decode_all(shards, 32, device=CPU))
    subset, _ = shards.covering(range(1))
    with pytest.raises(FairfaceError, match="can't be decoded"):
        subset.verify()
