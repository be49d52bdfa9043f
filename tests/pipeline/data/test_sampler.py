"""The order of images: every one once an epoch, or groups in given shares; the same for the same place."""

from collections import Counter
from itertools import islice

import polars as pl
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline.data import sampler
from pipeline.data.sampler import BalancedSampler, NaturalSampler, RankSlice, apportion, iterate_batches, target_shares
from shards.errors import FairfaceError

sizes = st.lists(st.integers(1, 40), min_size=1, max_size=12)


@given(sizes, st.integers(1, 4), st.integers(0, 3), st.integers(1, 200))
def test_an_epoch_of_all_ranks_holds_every_image_at_most_once(sizes, world, epoch, window):
    assume(sum(sizes) >= world)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler, "SHUFFLE_WINDOW", window)
        epochs = [NaturalSampler(sizes, 1, RankSlice(rank, world)).epoch(epoch) for rank in range(world)]
    every = torch.cat(epochs).tolist()
    assert len({len(part) for part in epochs}) == 1
    assert len(every) == sum(sizes) // world * world
    assert len(set(every)) == len(every)
    assert set(every) <= set(range(sum(sizes)))


def test_epochs_seeds_and_windows_differ_and_repeat(monkeypatch):
    numbers = NaturalSampler([50, 50, 50], 3)
    assert torch.equal(numbers.epoch(4), NaturalSampler([50, 50, 50], 3).epoch(4))
    assert not torch.equal(numbers.epoch(4), numbers.epoch(5))
    assert not torch.equal(numbers.epoch(4), NaturalSampler([50, 50, 50], 4).epoch(4))
    monkeypatch.setattr(sampler, "SHUFFLE_WINDOW", 60)
    epoch = numbers.epoch(0)
    assert len({int(number) // 50 for number in epoch[:100]}) == 2  # two tars fill a window
    assert len({int(number) // 50 for number in epoch[100:]}) == 1


def test_steps_go_on_where_they_were():
    numbers = NaturalSampler([23], 0)
    every = list(islice(iterate_batches(numbers, 5, 0), 13))
    assert all(torch.equal(a, b) for a, b in zip(iterate_batches(numbers, 5, 6), every[6:], strict=False))
    assert [len(batch) for batch in every] == [5] * 13


GROUPS = pl.Series(["a"] * 70 + ["b"] * 20 + ["c"] * 3 + [None] * 7)


def drawn(shares: dict[str, float], epoch: int = 0, **part) -> Counter:
    return Counter(GROUPS[int(i)] for i in BalancedSampler(GROUPS, shares, 0, **part).epoch(epoch))


def test_groups_are_drawn_in_their_shares_and_unlabelled_images_never():
    assert drawn(target_shares("uniform", GROUPS, "x")) == {"a": 31, "b": 31, "c": 31}
    assert drawn(target_shares({"a": 1, "c": 3}, GROUPS, "x")) == {"a": 23, "c": 70}


def test_every_image_of_a_group_comes_before_one_comes_again():
    sampler = BalancedSampler(GROUPS, target_shares("uniform", GROUPS, "x"), 0)
    for epochs in range(1, 6):
        counts = Counter(number for epoch in range(epochs) for number in sampler.epoch(epoch).tolist())
        for numbers in (range(70), range(70, 90), range(90, 93)):
            drawn = [counts[number] for number in numbers]
            assert max(drawn) - min(drawn) <= 1


def test_balanced_orders_repeat_and_differ():
    one = BalancedSampler(GROUPS, {"a": 0.5, "b": 0.5}, 0)
    assert torch.equal(one.epoch(3), BalancedSampler(GROUPS, {"a": 0.5, "b": 0.5}, 0).epoch(3))
    assert not torch.equal(one.epoch(3), one.epoch(4))


def test_balanced_ranks_draw_from_their_own_parts():
    groups = pl.Series(["a", "b"] * 50)
    parts = [set(BalancedSampler(groups, {"a": 1, "b": 1}, 0, RankSlice(rank, 2)).epoch(0).tolist()) for rank in (0, 1)]
    assert parts == [set(range(50)), set(range(50, 100))]


def test_what_cannot_be_drawn_is_said():
    with pytest.raises(FairfaceError, match="no image is of d; there is a, b, c"):
        target_shares({"d": 1.0}, GROUPS, "x")
    with pytest.raises(FairfaceError, match="no image has that label"):
        target_shares("uniform", pl.Series([None], dtype=pl.String), "x")
    with pytest.raises(FairfaceError, match="3 images: too few for 2 processes"):
        BalancedSampler(GROUPS, {"c": 1.0}, 0, RankSlice(1, 2))
    with pytest.raises(FairfaceError, match="3 images: too few for 2 processes"):
        BalancedSampler(GROUPS, {"c": 1.0}, 0, RankSlice(0, 2))  # every rank says the same


@given(st.dictionaries(st.text(max_size=3), st.floats(0.01, 1), min_size=1, max_size=9), st.integers(0, 10**6))
def test_apportioning_is_whole_and_near(shares, count):
    parts, total = apportion(shares, count), sum(shares.values())
    assert sum(parts.values()) == count
    assert all(abs(parts[group] - count * share / total) < 1 for group, share in shares.items())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a,b\n1,2\n", "columns group and share"),
        ("group,share\nx,much\n", "columns group and share"),
        ("group,share\nx,1\nx,2\n", "one share"),
        ("group,share\nx,-1\n", "from 0 up"),
        ("group,share\nx,\n", "from 0 up"),
        ("group,share\nx,inf\n", "from 0 up"),
        ("group,share\nx,0\n", "above 0"),
        ("group,share\nx,1e308\ny,1e308\n", "must be a number"),
        (None, "neither natural, uniform nor a file"),
    ],
)
def test_files_of_shares_are_read_or_refused(tmp_path, text, says):
    path = tmp_path / "shares.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(FairfaceError, match=says):
        sampler.read_shares(path)
    path.write_text("group,share\nfemale-dark, 2\nmale-light,0\n")
    assert sampler.read_shares(path) == {"female-dark": 2.0, "male-light": 0.0}
