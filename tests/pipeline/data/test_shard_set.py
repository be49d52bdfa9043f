"""Shard sets: which tars hold which images, and what is said about missing or cut ones."""

from pathlib import Path

import pytest

from pipeline.data.shard_set import ConcatShards, ShardSet
from shards.errors import FairfaceError
from shards.workspace import ShardsFolder


def test_missing_shards_are_named_with_the_command_that_writes_them(tmp_path):
    with pytest.raises(FairfaceError, match="fairface shards"):
        ShardSet.open(ShardsFolder(tmp_path))


def test_a_cut_shard_is_named_with_the_commands_that_help(damageable):
    path = damageable.folder / "shard-000001.tar"
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(FairfaceError, match=r"shard-000001\.tar.*fairface verify.*fairface shards --force"):
        ShardSet.open(damageable)


@pytest.mark.parametrize(
    ("indices", "images", "first"),
    [(range(1), 100, 0), (range(101), 200, 0), (range(99, 100), 100, 0), (range(150, 240), 140, 100)],
)
def test_a_range_of_images_is_covered_by_the_tars_that_hold_it(shards, indices, images, first):
    subset, start = shards.covering(indices)
    assert (subset.images, start) == (images, first)


def test_combined_packs_are_found_below_a_relative_folder(damageable, monkeypatch):
    monkeypatch.chdir(damageable.folder.parent)
    shards = ShardSet.open(ShardsFolder(Path(damageable.folder.name)))
    both = ConcatShards([shards, shards])
    both.check_files()
    covered, first = both.covering(range(both.images - 1, both.images))
    covered.check_files()
    assert (covered.images, first) == (40, 440)
