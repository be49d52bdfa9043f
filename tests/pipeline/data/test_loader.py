"""The feeds return the packed images in an order that depends on seed and epoch alone."""

from itertools import islice

import pytest
import torch

from pipeline.data import loader
from pipeline.data.loader import FeedConfig, load_resident, resident_feed, streaming_feed, to_unit_range
from pipeline.data.sampler import NaturalSampler, RankSlice
from pipeline.data.shard_set import ShardSet
from shards import tar
from shards.errors import FairfaceError

CPU = torch.device("cpu")


def start_feed(feed: loader.Feed, shards: ShardSet, seed: int) -> loader.Batches:
    """batches(first_step) of a feed at 32x32."""
    config = FeedConfig(image_size=32, batch_size=32, device=CPU, progress=False)
    return feed(shards, NaturalSampler(shards.sizes, seed), config)


@pytest.mark.parametrize("feed", [resident_feed, streaming_feed])
def test_batches_are_a_function_of_seed_and_step(shards, feed):
    batches = start_feed(feed, shards, 7)
    first = [batch.clone() for batch in islice(batches(0), 17)]
    assert all(batch.shape == (32, 32, 32, 3) for batch in first)
    resumed = [batch.clone() for batch in islice(batches(12), 5)]  # the middle of the second epoch
    assert all(torch.equal(a, b) for a, b in zip(first[12:], resumed, strict=True))
    other = next(start_feed(feed, shards, 8)(0))
    assert not torch.equal(first[0], other)


def test_both_feeds_return_the_same_batches(shards):
    pairs = zip(start_feed(resident_feed, shards, 3)(5), start_feed(streaming_feed, shards, 3)(5), strict=False)
    assert all(torch.equal(one, other) for one, other in islice(pairs, 9))  # across the end of an epoch


@pytest.mark.parametrize("feed", [resident_feed, streaming_feed])
def test_an_epoch_has_no_image_twice(shards, feed):
    epoch = torch.cat([batch.clone() for batch in islice(start_feed(feed, shards, 0)(0), 7)])
    assert len(epoch) == 224
    assert len(torch.unique(epoch.flatten(1), dim=0)) == 224


def test_images_are_scaled_to_the_unit_range_and_flipped():
    images = torch.arange(2 * 4 * 4 * 3, dtype=torch.uint8).reshape(2, 4, 4, 3)
    plain = to_unit_range(images)
    assert plain.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(plain, images.permute(0, 3, 1, 2) / 127.5 - 1)
    mirrored = to_unit_range(images, torch.tensor([True, False]))
    assert torch.equal(mirrored[0], plain[0].flip(2))
    assert torch.equal(mirrored[1], plain[1])


def test_images_that_do_not_fit_in_memory_are_streamed(shards, monkeypatch):
    monkeypatch.setattr(loader, "free_memory", lambda _: 240 * 32 * 32 * 3 * 3)
    assert loader.choose_feed(shards, 32, device=CPU) == "resident"
    assert loader.choose_feed(shards, 64, device=CPU) == "streaming"


@pytest.mark.parametrize("damage", ["zeros", "one bit", "index"])
def test_a_shard_that_was_damaged_after_packing_is_named_before_dali_reads_it(damageable, damage):
    path = damageable.folder / "shard-000001.tar"
    key, (offset, size) = list(tar.read_index(path).items())[50]
    data = bytearray(path.read_bytes())
    if damage == "zeros":
        data[offset : offset + size] = bytes(size)
    elif damage == "one bit":
        data[offset + size // 2] ^= 1
    else:
        index = path.with_suffix(".idx")
        index.write_text(index.read_text().replace(f"jpg {offset} ", f"jpg {offset + 1} "))
    path.write_bytes(data)
    shards = ShardSet.open(damageable)
    name = "shard-000001." + ("idx" if damage == "index" else "tar")
    for feed in (resident_feed, streaming_feed):
        with pytest.raises(FairfaceError, match=rf"{name} at byte .*{key}.*`fairface verify --out .*--force`"):
            next(start_feed(feed, shards, 0)(0))


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_the_slices_of_all_ranks_are_the_images(shards, world_size):
    slices = [
        load_resident(shards, 32, device=CPU, progress=False, rank_slice=RankSlice(rank, world_size))
        for rank in range(world_size)
    ]
    assert torch.equal(torch.cat(slices), load_resident(shards, 32, device=CPU, progress=False))
