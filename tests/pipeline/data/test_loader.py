"""The feeds hand over the packed images, in an order that depends on seed and epoch alone."""

import io
import re
import shutil
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from pipeline.data import loader
from pipeline.data.loader import decode_all, load_resident, resident_feed, streaming_feed, to_unit_range
from pipeline.data.random_streams import seeded_generator
from pipeline.data.sampler import NaturalSampler, RankSlice
from pipeline.data.shard_set import ShardSet
from shards import tar
from shards.errors import FairfaceError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def shards(packed) -> ShardSet:
    return ShardSet.open(packed / "shards")


def test_images_come_in_tar_order_and_look_as_torchvision_makes_them(shards):
    images = load_resident(shards, 32, CPU, progress=False)
    assert (images.shape, images.dtype) == ((240, 32, 32, 3), torch.uint8)
    keys = list(tar.index(shards.folder / shards.names[1]))[:8]
    resize = v2.Compose([v2.Resize(32, antialias=True), v2.CenterCrop(32)])
    for i, data in enumerate(tar.read(shards.folder, shards.names[1], keys).values()):
        theirs = torch.from_numpy(np.array(resize(Image.open(io.BytesIO(data)).convert("RGB"))))
        assert (images[100 + i].float() - theirs.float()).abs().mean() < 1.0


def begun(kind, shards: ShardSet, seed: int, batch: int = 32):
    """batches(step) of a feed at 32x32."""
    return kind(
        shards, NaturalSampler([shard["images"] for shard in shards.shards], seed), 32, batch, CPU, progress=False
    )


@pytest.mark.parametrize("kind", [resident_feed, streaming_feed])
def test_batches_are_a_function_of_seed_and_step(shards, kind):
    batches = begun(kind, shards, 7)
    first = [batch.clone() for batch in islice(batches(0), 17)]
    assert all(batch.shape == (32, 32, 32, 3) for batch in first)
    again = [batch.clone() for batch in islice(batches(12), 5)]  # the middle of the second epoch
    assert all(torch.equal(a, b) for a, b in zip(first[12:], again, strict=True))
    other = next(begun(kind, shards, 8)(0))
    assert not torch.equal(first[0], other)


def test_both_feeds_hand_over_the_same_batches(shards):
    pairs = zip(begun(resident_feed, shards, 3)(5), begun(streaming_feed, shards, 3)(5), strict=False)
    assert all(torch.equal(one, other) for one, other in islice(pairs, 9))  # over an epoch's end


@pytest.mark.parametrize("kind", [resident_feed, streaming_feed])
def test_an_epoch_holds_no_image_twice(shards, kind):
    epoch = torch.cat([batch.clone() for batch in islice(begun(kind, shards, 0)(0), 7)])
    assert len(epoch) == 224
    assert len(torch.unique(epoch.flatten(1), dim=0)) == 224


def test_the_last_batch_of_a_decode_is_cut_not_padded(shards):
    assert [len(batch) for batch in decode_all(shards, 32, CPU, batch=100)] == [100, 100, 40]


def test_units_and_flips():
    images = torch.arange(2 * 4 * 4 * 3, dtype=torch.uint8).reshape(2, 4, 4, 3)
    plain = to_unit_range(images)
    assert plain.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(plain, images.permute(0, 3, 1, 2) / 127.5 - 1)
    mirrored = to_unit_range(images, torch.tensor([True, False]))
    assert torch.equal(mirrored[0], plain[0].flip(2))
    assert torch.equal(mirrored[1], plain[1])


def test_generators_of_neighbouring_places_are_unrelated():
    draws = [
        torch.randn(1000, generator=seeded_generator("cpu", seed, step)) for seed in (0, 1) for step in (0, 1)
    ]
    correlations = torch.corrcoef(torch.stack(draws)) - torch.eye(4)
    assert correlations.abs().max() < 0.15
    assert torch.equal(draws[0], torch.randn(1000, generator=seeded_generator("cpu", 0, 0)))


def test_what_does_not_fit_in_memory_streams(shards, monkeypatch):
    monkeypatch.setattr(loader, "free_memory", lambda _: 240 * 32 * 32 * 3 * 3)
    assert loader.choose_feed(shards, 32, CPU) == "resident"
    assert loader.choose_feed(shards, 64, CPU) == "streaming"


def test_missing_shards_are_named_with_the_command_that_makes_them(tmp_path):
    with pytest.raises(FairfaceError, match="fairface shards"):
        ShardSet.open(tmp_path)


@pytest.fixture
def breakable(packed, tmp_path) -> Path:
    shutil.copytree(packed / "shards", tmp_path / "shards")
    return tmp_path / "shards"


@pytest.mark.parametrize("damage", ["zeros", "one bit", "index"])
def test_a_shard_that_broke_after_packing_is_named_before_dali_sees_it(breakable, damage):
    path = breakable / "shard-000001.tar"
    key, (offset, size) = list(tar.index(path).items())[50]
    data = bytearray(path.read_bytes())
    if damage == "zeros":
        data[offset : offset + size] = bytes(size)
    elif damage == "one bit":
        data[offset + size // 2] ^= 1
    else:
        index = path.with_suffix(".idx")
        index.write_text(index.read_text().replace(f"jpg {offset} ", f"jpg {offset + 1} "))
    path.write_bytes(data)
    shards = ShardSet.open(breakable)
    name = "shard-000001." + ("idx" if damage == "index" else "tar")
    for begin in (resident_feed, streaming_feed):
        with pytest.raises(FairfaceError, match=rf"{name} at byte .*{key}.*`fairface verify --out .*--force`"):
            next(begun(begin, shards, 0)(0))


def test_a_shard_that_breaks_after_it_was_looked_at_is_named_too(breakable):
    path = breakable / "shard-000002.tar"
    (offset, size), *_ = tar.index(path).values()
    data = bytearray(path.read_bytes())
    data[offset : offset + size] = bytes(size)
    path.write_bytes(data)
    text = f"""
import pathlib, torch
from pipeline.data.loader import decode
from pipeline.data.shard_set import Shards
shards = Shards.open(pathlib.Path({str(breakable)!r}))
shards.sound = True
list(decode(shards, 32, torch.device("cpu")))
"""
    for _ in range(6):
        done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=60)
        if done.returncode >= 0:  # in one of ten cases DALI 2.4 crashes before it can say anything
            break
    assert done.returncode == 1
    assert re.search(r"ValueError: .*shard-000002\.tar at byte 0, key .*fairface verify", done.stderr)


def test_a_cut_shard_is_named_with_the_commands_that_help(breakable):
    path = breakable / "shard-000001.tar"
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(FairfaceError, match=r"shard-000001\.tar.*fairface verify.*fairface shards --force"):
        ShardSet.open(breakable)


def test_a_part_of_the_images_needs_some_shards_only(shards):
    parts = [shards.holding(numbers) for numbers in (range(1), range(101), range(99, 100), range(150, 240))]
    assert [(part.images, first) for part, first in parts] == [(100, 0), (200, 0), (100, 0), (140, 100)]


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_the_parts_of_all_ranks_are_the_images(shards, world):
    parts = [load_resident(shards, 32, CPU, progress=False, part=RankSlice(rank, world)) for rank in range(world)]
    assert torch.equal(torch.cat(parts), load_resident(shards, 32, CPU, progress=False))
