"""The feeds hand over the packed images, in an order that depends on seed and epoch alone."""

import io
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from pipeline import feed
from pipeline.feed import Shards, decode, generator, load, resident, streaming, to_unit
from shards import tar

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def shards(packed) -> Shards:
    return Shards.open(packed / "shards")


def test_images_come_in_tar_order_and_look_as_torchvision_makes_them(shards):
    images = load(shards, 32, CPU, progress=False)
    assert (images.shape, images.dtype) == ((240, 32, 32, 3), torch.uint8)
    keys = list(tar.index(shards.folder / shards.names[1]))[:8]
    resize = v2.Compose([v2.Resize(32, antialias=True), v2.CenterCrop(32)])
    for i, data in enumerate(tar.read(shards.folder, shards.names[1], keys).values()):
        theirs = torch.from_numpy(np.array(resize(Image.open(io.BytesIO(data)).convert("RGB"))))
        assert (images[100 + i].float() - theirs.float()).abs().mean() < 1.0


@pytest.mark.parametrize("kind", [resident, streaming])
def test_batches_are_a_function_of_seed_and_step(shards, kind):
    batches = kind(shards, 32, 32, 7, CPU, progress=False)
    first = [batch.clone() for batch in islice(batches(0), 17)]
    assert all(batch.shape == (32, 32, 32, 3) for batch in first)
    again = [batch.clone() for batch in islice(batches(12), 5)]  # the middle of the second epoch
    assert all(torch.equal(a, b) for a, b in zip(first[12:], again, strict=True))
    other = next(kind(shards, 32, 32, 8, CPU, progress=False)(0))
    assert not torch.equal(first[0], other)


@pytest.mark.parametrize("kind", [resident, streaming])
def test_an_epoch_holds_no_image_twice(shards, kind):
    epoch = torch.cat([batch.clone() for batch in islice(kind(shards, 32, 32, 0, CPU, progress=False)(0), 7)])
    assert len(epoch) == 224
    assert len(torch.unique(epoch.flatten(1), dim=0)) == 224


def test_the_last_batch_of_a_decode_is_cut_not_padded(shards):
    assert [len(batch) for batch in decode(shards, 32, CPU, batch=100)] == [100, 100, 40]


def test_units_and_flips():
    images = torch.arange(2 * 4 * 4 * 3, dtype=torch.uint8).reshape(2, 4, 4, 3)
    plain = to_unit(images)
    assert plain.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(plain, images.permute(0, 3, 1, 2) / 127.5 - 1)
    many = images[:1].expand(400, 4, 4, 3)
    flipped = to_unit(many, generator("cpu", 1))
    mirrored = (flipped == plain[0].flip(2)).flatten(1).all(1)
    assert (mirrored | (flipped == plain[0]).flatten(1).all(1)).all()
    assert 140 < mirrored.sum() < 260


def test_generators_of_neighbouring_places_are_unrelated():
    draws = [torch.randn(1000, generator=generator("cpu", seed, step)) for seed in (0, 1) for step in (0, 1)]
    correlations = torch.corrcoef(torch.stack(draws)) - torch.eye(4)
    assert correlations.abs().max() < 0.15
    assert torch.equal(draws[0], torch.randn(1000, generator=generator("cpu", 0, 0)))


def test_what_does_not_fit_in_memory_streams(shards, monkeypatch):
    monkeypatch.setattr(feed, "free_memory", lambda _: 240 * 32 * 32 * 3 * 3)
    assert feed.choose(shards, 32, CPU) == "resident"
    assert feed.choose(shards, 64, CPU) == "streaming"


def test_missing_shards_are_named_with_the_command_that_makes_them(tmp_path):
    with pytest.raises(ValueError, match="fairface shards"):
        Shards.open(tmp_path)


def test_a_shard_that_broke_after_packing_is_a_clear_error(packed, tmp_path):
    import shutil

    shutil.copytree(packed / "shards", tmp_path / "shards")
    shards = Shards.open(tmp_path / "shards")
    path = tmp_path / "shards" / "shard-000001.tar"
    path.with_suffix(".idx").write_text(path.with_suffix(".idx").read_text().replace("jpg 512 ", "jpg 99999999 "))
    with pytest.raises(ValueError, match="fairface shards --force"):
        load(shards, 32, CPU, progress=False)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ValueError, match=r"shard-000001\.tar.*fairface shards"):
        Shards.open(tmp_path / "shards")
