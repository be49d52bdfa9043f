"""The order of images: each once an epoch, or groups in target shares; a function of seed, epoch and rank."""

from collections import Counter
from itertools import islice

import polars as pl
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline.data import sampler as sampler_module
from pipeline.data.sampler import (
    BalancedSampler,
    NaturalSampler,
    RankSlice,
    apportion,
    iterate_batches,
    read_shares,
    target_shares,
)
from shards.errors import FairfaceError

tar_sizes = st.lists(st.integers(1, 40), min_size=1, max_size=12)


@given(tar_sizes, st.integers(1, 4), st.integers(0, 3), st.integers(1, 200))
def test_an_epoch_of_all_ranks_has_every_image_at_most_once(sizes, world_size, epoch, window):
    assume(sum(sizes) >= world_size)
    slices = [RankSlice(rank, world_size) for rank in range(world_size)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler_module, "SHUFFLE_WINDOW", window)
        by_rank = [NaturalSampler(sizes, 1, rank_slice=rank_slice).indices(epoch) for rank_slice in slices]
    indices = torch.cat(by_rank).tolist()
    assert len({len(own) for own in by_rank}) == 1
    assert len(indices) == sum(sizes) // world_size * world_size
    assert len(set(indices)) == len(indices)
    assert set(indices) <= set(range(sum(sizes)))


def test_epochs_seeds_and_windows_differ_and_repeat(monkeypatch):
    sampler = NaturalSampler([50, 50, 50], 3)
    assert torch.equal(sampler.indices(4), NaturalSampler([50, 50, 50], 3).indices(4))
    assert not torch.equal(sampler.indices(4), sampler.indices(5))
    assert not torch.equal(sampler.indices(4), NaturalSampler([50, 50, 50], 4).indices(4))
    monkeypatch.setattr(sampler_module, "SHUFFLE_WINDOW", 60)
    indices = sampler.indices(0)
    assert len({int(index) // 50 for index in indices[:100]}) == 2  # two tars fill a window
    assert len({int(index) // 50 for index in indices[100:]}) == 1


def test_batches_resume_at_any_step():
    sampler = NaturalSampler([23], 0)
    batches = list(islice(iterate_batches(sampler, 5, first_step=0), 13))
    resumed = iterate_batches(sampler, 5, first_step=6)
    assert all(torch.equal(a, b) for a, b in zip(resumed, batches[6:], strict=False))
    assert [len(batch) for batch in batches] == [5] * 13


GROUPS = pl.Series(["a"] * 70 + ["b"] * 20 + ["c"] * 3 + [None] * 7)


def group_counts(shares: dict[str, float]) -> Counter:
    """How often each group occurs in the first epoch."""
    return Counter(GROUPS[int(i)] for i in BalancedSampler(GROUPS, shares, seed=0).indices(0))


def test_groups_occur_in_their_shares_and_unlabelled_images_never():
    assert group_counts(target_shares("uniform", GROUPS, column="x")) == {"a": 31, "b": 31, "c": 31}
    assert group_counts(target_shares({"a": 1, "c": 3}, GROUPS, column="x")) == {"a": 23, "c": 70}


def test_every_image_of_a_group_is_read_before_one_is_read_again():
    sampler = BalancedSampler(GROUPS, target_shares("uniform", GROUPS, column="x"), seed=0)
    for epochs in range(1, 6):
        counts = Counter(index for epoch in range(epochs) for index in sampler.indices(epoch).tolist())
        for members in (range(70), range(70, 90), range(90, 93)):
            reads = [counts[index] for index in members]
            assert max(reads) - min(reads) <= 1


def test_balanced_orders_repeat_and_differ():
    sampler = BalancedSampler(GROUPS, {"a": 0.5, "b": 0.5}, seed=0)
    assert torch.equal(sampler.indices(3), BalancedSampler(GROUPS, {"a": 0.5, "b": 0.5}, seed=0).indices(3))
    assert not torch.equal(sampler.indices(3), sampler.indices(4))


def test_balanced_ranks_read_only_their_own_slices():
    groups, shares = pl.Series(["a", "b"] * 50), {"a": 1.0, "b": 1.0}
    by_rank = [BalancedSampler(groups, shares, seed=0, rank_slice=RankSlice(rank, 2)).indices(0) for rank in (0, 1)]
    assert [set(indices.tolist()) for indices in by_rank] == [set(range(50)), set(range(50, 100))]


def test_impossible_balances_are_refused():
    with pytest.raises(FairfaceError, match="no image belongs to d; choose from a, b, c"):
        target_shares({"d": 1.0}, GROUPS, column="x")
    with pytest.raises(FairfaceError, match="no image has the label"):
        target_shares("uniform", pl.Series([None], dtype=pl.String), column="x")
    for rank in (0, 1):  # every rank raises the same error
        with pytest.raises(FairfaceError, match="3 images: too few for 2 processes"):
            BalancedSampler(GROUPS, {"c": 1.0}, seed=0, rank_slice=RankSlice(rank, 2))


@given(st.dictionaries(st.text(max_size=3), st.floats(0.01, 1), min_size=1, max_size=9), st.integers(0, 10**6))
def test_apportioned_counts_sum_up_and_are_within_one_of_their_share(shares, count):
    counts, total = apportion(shares, count), sum(shares.values())
    assert sum(counts.values()) == count
    assert all(abs(counts[group] - count * share / total) < 1 for group, share in shares.items())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "columns group and share"),
        ("group,share\nx,much\n", "columns group and share"),
        ("group,share\nx,1\nx,2\n", "one share"),
        ("group,share\nx,-1\n", "at least 0"),
        ("group,share\nx,\n", "at least 0"),
        ("group,share\nx,inf\n", "at least 0"),
        ("group,share\nx,0\n", "above 0"),
        ("group,share\nx,1e308\ny,1e308\n", "must be finite"),
        (None, "neither natural, uniform nor a file"),
    ],
)
def test_files_of_shares_are_read_or_refused(tmp_path, text, message):
    path = tmp_path / "shares.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(FairfaceError, match=message):
        read_shares(path)
    path.write_text("group,share\nfemale-dark, 2\nmale-light,0\n")
    assert read_shares(path) == {"female-dark": 2.0, "male-light": 0.0}
