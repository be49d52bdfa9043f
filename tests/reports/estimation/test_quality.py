"""Quality by group: floors of real images, the failing group alone, independence of order, refusals, memory."""

import tracemalloc

import numpy as np
import pytest

from reports.estimation import quality
from reports.estimation.kernel_distance import kernel_distance, median_bandwidth
from reports.estimation.quality import QUALITY_COLUMNS, EmbeddedImages, quality_rows
from shards.errors import FairfaceError
from tests.reports.estimation.embedded_images import random_embeddings, unit_rows

pytestmark = pytest.mark.usefixtures("full_computations")


def single_group_row(real, generated, seed=0, **options):
    """The row of the single group of all images."""
    sides = [EmbeddedImages(side, ["a"] * len(side)) for side in (real, generated)]
    return quality_rows(*sides, groups=["a"], seed=seed, **options)[0]


def five_groups(seed=1, dtype=np.float32):
    """Real and generated images of five groups and of no group, and the groups; the generator fails `dark` alone."""
    generator, odd = np.random.default_rng(seed), "a 'b\"; -- ü\n日\x00"
    sizes = {"light": (300, 90), "dark": (400, 120), "NULL": (70, 200), odd: (20, 30), "few": (30, 19), None: (50, 60)}
    sides = [], []
    for group, counts in sizes.items():
        for side, count, shift in zip(sides, counts, (0, 0.8 if group == "dark" else 0), strict=True):
            side.append((random_embeddings(generator, count, shift, dtype=dtype), [group] * count))
    joined = [(np.concatenate([f for f, _ in side]), [g for _, names in side for g in names]) for side in sides]
    orders = [generator.permutation(len(names)) for _, names in joined]
    images = [
        EmbeddedImages(f[order], [names[i] for i in order]) for (f, names), order in zip(joined, orders, strict=True)
    ]
    return images, ["light", "dark", "NULL", odd, "few"]


@pytest.mark.parametrize(("n", "reals"), [(40, 300), (40, 80), (40, 50)])
def test_other_real_images_stay_below_the_floors(n, reals):
    generator, repetitions, exceeded = np.random.default_rng(8), 200, []
    for seed in range(repetitions):
        row = single_group_row(random_embeddings(generator, reals), random_embeddings(generator, n), seed)
        assert row["kernel_low"] <= row["kernel_distance"] <= row["kernel_high"]
        is_above, is_below = row["kernel_distance"] > row["kernel_floor"], row["coverage"] < row["coverage_floor"]
        exceeded.append((is_above, is_below, row["kernel_low"] > 0, row["vendi"] < row["vendi_floor"]))
    distance, coverage, interval, diversity = np.mean(exceeded, axis=0)
    assert 0.005 <= distance <= 0.1  # 5 % and three standard errors
    assert coverage <= 0.1
    assert interval <= 0.1
    assert diversity <= 0.1


def test_only_the_shifted_group_is_above_its_floor():
    images, groups = five_groups()
    rows = quality_rows(*images, groups=groups, seed=0)
    assert [list(row) for row in rows] == [["group", "n", *QUALITY_COLUMNS]] * 5
    assert [row["group"] for row in rows] == groups
    assert [row["n"] for row in rows] == [90, 120, 70, 20, 19]
    assert [row["kernel_distance"] > row["kernel_floor"] for row in rows[:4]] == [False, True, False, False]
    assert [row["coverage"] < row["coverage_floor"] for row in rows[:4]] == [False, True, False, False]
    assert [row["kernel_low"] > 0 for row in rows[:4]] == [False, True, False, False]
    assert {rows[4][name] for name in QUALITY_COLUMNS} == {None}  # too few images
    values = [row[name] for row in rows[:4] for name in QUALITY_COLUMNS]
    assert {type(value) for value in values} == {float}


def test_rows_are_a_function_of_seed_and_group():
    images, groups = five_groups()
    rows = quality_rows(*images, groups=groups, seed=5)
    assert quality_rows(*images, groups=groups[::-1], seed=5) == rows[::-1]
    copies = [f"{group[0]}{group[1:]}" for group in groups]  # equal, not identical
    assert quality_rows(*images, groups=copies, seed=5) == rows
    assert quality_rows(*images, groups=[None, "dark"], seed=5) == rows[1:2]
    assert quality_rows(*images, groups=groups, seed=6)[0] != rows[0]
    absent = {"group": "absent", "n": 0, **dict.fromkeys(QUALITY_COLUMNS)}
    assert quality_rows(*images, groups=["absent"], seed=5) == [absent]
    assert quality_rows(*images, groups=[], seed=5) == []
    narrow = quality_rows(*five_groups(dtype=np.float16)[0], groups=groups, seed=5)
    assert [row["kernel_distance"] for row in narrow[:4]] == pytest.approx(
        [row["kernel_distance"] for row in rows[:4]], abs=1e-3
    )


def test_each_group_is_compared_with_its_own_images_at_equal_n():
    (real, generated), _ = five_groups()
    generated_dark = np.flatnonzero(np.array(generated.groups, object) == "dark")
    real_dark = np.flatnonzero(np.array(real.groups, object) == "dark")[: len(generated_dark)]
    fewer = [group if group != "dark" or i in real_dark else None for i, group in enumerate(real.groups)]
    real = EmbeddedImages(real.embeddings, fewer)
    row = quality_rows(real, generated, groups=["dark"], seed=0)[0]
    assert row["n"] == len(generated_dark) == len(real_dark)
    # n of n without replacement: all of them, each once
    sides = real.embeddings[real_dark], generated.embeddings[generated_dark]
    bandwidth = median_bandwidth(real.embeddings, seed=0)
    assert row["kernel_distance"] == pytest.approx(kernel_distance(*sides, bandwidth=bandwidth), abs=1e-12)
    assert row["coverage"] == quality.coverage(*sides)
    limited = quality_rows(real, generated, groups=["dark"], seed=0, limit=50)[0]
    assert limited["n"] == 50
    assert limited["kernel_distance"] == pytest.approx(row["kernel_distance"], rel=0.5)
    assert limited["kernel_high"] - limited["kernel_low"] > row["kernel_high"] - row["kernel_low"]
    assert quality_rows(real, generated, groups=["dark"], seed=0, limit=19)[0]["kernel_distance"] is None


def test_n_images_of_each_side_are_compared_and_at_most_2n_give_the_floors(monkeypatch):
    sizes, group_quality = [], quality.group_quality

    def record_sizes(real, generated, **options):
        sizes.append((len(real), len(generated)))
        return group_quality(real, generated, **options)

    monkeypatch.setattr(quality, "group_quality", record_sizes)
    images, groups = five_groups()
    quality_rows(*images, groups=groups, seed=0)
    quality_rows(*images, groups=groups[:1], seed=0, limit=40)
    assert sizes == [(180, 90), (240, 120), (70, 70), (20, 20), (80, 40)]


def test_a_collapsed_generator_covers_next_to_nothing():
    generator = np.random.default_rng(9)
    real = random_embeddings(generator, 200, dimensions=32)
    row = single_group_row(real, np.tile(random_embeddings(generator, 1, dimensions=32), (100, 1)))
    assert row["coverage"] < 0.1 < 0.8 < row["coverage_floor"]
    assert row["kernel_low"] > row["kernel_floor"]


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, 3.0])
@pytest.mark.parametrize("side", ["real", "generated"])
def test_a_row_that_is_not_of_length_1_is_refused(side, value, monkeypatch):
    monkeypatch.setattr(quality, "CHECKED_ROWS", 8)
    sides = {
        name: random_embeddings(np.random.default_rng(seed), 30, dtype=np.float16)
        for seed, name in enumerate(("real", "generated"))
    }
    sides[side][21] = value
    with pytest.raises(FairfaceError, match=f"{side}: embedding 21 has length .* and not 1"):
        single_group_row(sides["real"], sides["generated"])


def test_shapes_that_do_not_fit_are_refused():
    real = random_embeddings(np.random.default_rng(0), 30)
    images = EmbeddedImages(real, ["a"] * 30)
    with pytest.raises(ValueError, match=r"real: embeddings of shape \[30, 8\] for the groups of 29 images"):
        quality_rows(EmbeddedImages(real, ["a"] * 29), images, groups=["a"], seed=0)
    with pytest.raises(FairfaceError, match="8 and 7 dimensions"):
        single_group_row(real, unit_rows(real[:, :7]))
    with pytest.raises(ValueError, match=r"shape \[30\]"):
        single_group_row(real, real[:, 0])


def test_memory_is_that_of_one_group():
    real = np.tile(random_embeddings(np.random.default_rng(0), 500, dtype=np.float16), (40, 1))
    tracemalloc.start()
    single_group_row(real, real, limit=50)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64e6  # all by all would take 1.6 GB in float32
