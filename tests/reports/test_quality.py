"""Distances and coverage by brute force, their floors and intervals in small worlds whose truth is known."""

import math
import tracemalloc

import numpy as np
import polars as pl
import pytest

from reports import embeddings, quality
from shards.errors import FairfaceError


def unit(rows, dtype=np.float32):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(dtype)


def faces(generator, n, shift=0.0, dimensions=8, dtype=np.float32):
    """Rows around a mean, moved by `shift` across it."""
    rows = generator.normal(size=(n, dimensions)) / np.arange(1, dimensions + 1) ** 0.5
    rows[:, :2] += 1.5, shift
    return unit(rows, dtype)


def one(real, generated, seed=0, **options):
    """The row of the one group that all images are of."""
    return quality.rows(real, generated, ["a"] * len(real), ["a"] * len(generated), ["a"], seed, **options)[0]


def kernels(x, y, bandwidth):
    return [quality.gaussian(quality.squared(a, b), bandwidth) for a, b in ((x, x), (y, y), (x, y))]


def test_distance_is_the_double_loop():
    generator = np.random.default_rng(0)
    x, y = faces(generator, 7), faces(generator, 5, 0.4)

    def k(a, b):
        return math.exp(-sum((float(p) - float(q)) ** 2 for p, q in zip(a, b, strict=True)) / (2 * 0.9**2))

    within = [np.mean([k(a, b) for i, a in enumerate(side) for j, b in enumerate(side) if i != j]) for side in (x, y)]
    direct = sum(within) - 2 * np.mean([k(a, b) for a in x for b in y])
    assert quality.kernel_distance(x, y, 0.9) == pytest.approx(direct, abs=1e-12)
    assert quality.kernel_distance(x, -x, 0.01) == pytest.approx(0, abs=1e-9)  # nothing is near anything
    apart = quality.kernel_distance(np.tile(x[:1], (9, 1)), np.tile(-x[:1], (9, 1)), 0.1)
    assert apart == pytest.approx(2)


def test_distance_of_equal_distributions_is_0_on_average():
    generator = np.random.default_rng(1)
    found = [quality.kernel_distance(faces(generator, 12), faces(generator, 12), 1.0) for _ in range(600)]
    assert abs(np.mean(found)) < 4 * np.std(found) / math.sqrt(600)
    assert 0.4 < np.mean(np.less(found, 0)) < 0.8


def test_distance_grows_with_a_shift():
    x, *others = (faces(np.random.default_rng(seed), 300, seed * 0.2) for seed in range(5))
    found = [quality.kernel_distance(x, other, 1.0) for other in others]
    assert sorted(found) == found
    assert found[-1] > 3 * found[0] > 0


def test_bandwidth_is_the_median_distance_of_real_images(monkeypatch):
    corners = np.eye(3)[[0, 0, 1]]
    assert quality.median_bandwidth(corners, 0) == pytest.approx(math.sqrt(2))  # a copy has no distance
    angles = np.array([0, 0.1, 0.4])
    row = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float16)
    assert quality.median_bandwidth(row, 0) == pytest.approx(2 * math.sin(0.15), abs=1e-3)
    real = faces(np.random.default_rng(2), 3000)
    assert quality.median_bandwidth(real, 0) == pytest.approx(quality.median_bandwidth(real, 1), rel=0.05)
    with pytest.raises(FairfaceError, match="all the same"):
        quality.median_bandwidth(np.tile(real[:1], (30, 1)), 0)


def truth(variances, spread, shift, bandwidth):
    """Squared MMD of two normal distributions with diagonal covariances, the second scaled by `spread`."""

    def mean_kernel(sums, difference):
        wide = bandwidth**2 + sums
        return np.prod(bandwidth / np.sqrt(wide)) * np.exp(-(difference**2 / wide).sum() / 2)

    other, still = variances * spread**2, 0 * variances
    same = mean_kernel(2 * variances, still) + mean_kernel(2 * other, still)
    return same - 2 * mean_kernel(variances + other, shift)


@pytest.mark.parametrize("n", [20, 80])
@pytest.mark.parametrize(
    ("decay", "spread", "shift"), [(1, 1, 0), (1, 1, 0.15), (1.5, 1, 0.5), (1.5, 1, 1), (0, 1, 2), (1, 0.5, 0)]
)
def test_interval_covers_the_truth(n, decay, spread, shift):
    generator, variances = np.random.default_rng(3), 1 / np.arange(1.0, 17) ** decay
    bandwidth, moved = math.sqrt(2 * variances.sum()), np.zeros(16)
    moved[0] = shift * math.sqrt(variances.sum()) / 2
    expected, found, seen, parted = truth(variances, spread, moved, bandwidth), [], [], []
    for _ in range(200):
        x, y = generator.normal(size=(2, n, 16)) * np.sqrt(variances)
        parts = kernels(x, y * spread + moved, bandwidth)
        found.append(quality.interval(*parts))
        seen.append(quality.unbiased(*parts))
        parted.append(quality.variances(*parts))
    first, second = np.mean(parted, axis=0)
    assert first + second == pytest.approx(np.var(seen), rel=0.4)
    if shift == 0 and spread == 1:
        assert abs(first) < 0.4 * second
    low, high = np.array(found).T
    assert np.mean(seen) == pytest.approx(expected, abs=4 * np.std(seen) / math.sqrt(200))
    assert np.mean((low <= expected) & (expected <= high)) >= 0.9  # 95 % less three standard errors
    assert (low <= seen).all()
    assert (seen <= high).all()
    assert np.mean(low > 0) < 0.1 or expected > 0
    if shift == 2:  # far apart, the interval is estimate +- 1.96 sd and no wider
        assert np.mean(high - low) == pytest.approx(2 * 1.96 * np.std(seen), rel=0.2)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_coverage_is_the_brute_force(k):
    generator = np.random.default_rng(4)
    real, generated = faces(generator, 40), faces(generator, 12, 1.0)
    hits = 0
    for i, x in enumerate(real):
        radius = sorted(np.linalg.norm(x - other) for j, other in enumerate(real) if j != i)[k - 1]
        hits += any(np.linalg.norm(x - y) <= radius for y in generated)
    assert quality.coverage(real, generated, k) == hits / 40
    assert 0 < hits < 40


def test_coverage_at_its_ends():
    generator = np.random.default_rng(5)
    real = faces(generator, 300, dimensions=32)
    fresh = [quality.coverage(real, faces(generator, 300, dimensions=32)) for _ in range(20)]
    assert np.mean(fresh) == pytest.approx(quality.expected_coverage(300), abs=0.015)
    assert quality.coverage(real, real.astype(np.float64)) == 1
    collapsed = np.tile(faces(generator, 1, dimensions=32), (300, 1))
    assert quality.coverage(real, collapsed) < 0.1
    assert quality.coverage(real, faces(generator, 300, 9.0, dimensions=32)) < 0.1
    assert quality.coverage(real, real[:0]) == 0
    twins = np.repeat(real[:10], 6, axis=0)  # balls of radius 0, that copies lie in
    assert quality.coverage(twins, real[:3].astype(np.float16)) == 0
    assert quality.coverage(twins, real[:3]) == 0.3
    with pytest.raises(ValueError, match="more than 5 real images, here are 5"):
        quality.coverage(real[:5], real)


def test_expected_coverage_by_hand(monkeypatch):
    monkeypatch.setattr(quality, "K", 1)
    assert quality.expected_coverage(2) == pytest.approx(2 / 3)  # of 3 others, 1 is real: is it the nearest?
    monkeypatch.setattr(quality, "K", 5)
    assert quality.expected_coverage(10**6) == pytest.approx(1 - 2**-5, abs=1e-5)


def test_variance_of_unequal_sides_is_unbiased():
    generator, seen, parted = np.random.default_rng(10), [], []
    for _ in range(3000):
        parts = kernels(faces(generator, 6, dimensions=2), faces(generator, 8, 0.1, dimensions=2), 0.8)
        seen.append(quality.unbiased(*parts))
        parted.append(quality.variances(*parts))
    assert np.sum(np.mean(parted, axis=0)) == pytest.approx(np.var(seen), rel=0.09)


@pytest.mark.parametrize("seed", range(8))
def test_floors_are_those_of_the_halves(seed, monkeypatch):
    monkeypatch.setattr(quality, "SPLITS", 1)
    real = faces(np.random.default_rng(6), 60, dimensions=3)
    parts = quality.squared(real, real), quality.gaussian(quality.squared(real, real), 0.8)
    half = np.random.default_rng(seed).permuted(np.arange(60)[None] < 30, axis=1)[0]
    distance = quality.kernel_distance(real[half], real[~half], 0.8)
    share = quality.coverage(real[half], real[~half])
    floor, least = quality.floors(*parts, 30, np.random.default_rng(seed))
    assert (floor, least) == pytest.approx((distance, share), abs=1e-6)
    floor, least = quality.floors(*parts, 60, np.random.default_rng(seed))
    assert floor == pytest.approx(distance / 2, abs=1e-6)
    spread = quality.expected_coverage(60) + (share - quality.expected_coverage(30)) / math.sqrt(2)
    assert least == pytest.approx(math.floor(spread * 60) / 60)


@pytest.mark.parametrize(("n", "reals"), [(40, 300), (40, 80), (40, 50)])
def test_fresh_real_images_stay_under_the_floors(n, reals):
    generator, worlds, seen = np.random.default_rng(8), 200, []
    for seed in range(worlds):
        row = one(faces(generator, reals), faces(generator, n), seed)
        assert row["kernel_low"] <= row["kernel_distance"] <= row["kernel_high"]
        seen.append(
            (
                row["kernel_distance"] > row["kernel_floor"],
                row["coverage"] < row["coverage_floor"],
                row["kernel_low"] > 0,
            )
        )
    over, missed, apart = np.mean(seen, axis=0)
    assert 0.005 <= over <= 0.1  # 5 % and three standard errors
    assert missed <= 0.1
    assert apart <= 0.1


def world(seed=1, dtype=np.float32):
    """Real and generated images of five groups and of none; the generator fails `dark` alone."""
    generator, odd = np.random.default_rng(seed), "a 'b\"; -- ü\n日\x00"
    sizes = {"light": (300, 90), "dark": (400, 120), "NULL": (70, 200), odd: (20, 30), "few": (30, 19), None: (50, 60)}
    sides = [], []
    for group, counts in sizes.items():
        for side, count, shift in zip(sides, counts, (0, 0.8 if group == "dark" else 0), strict=True):
            side.append((faces(generator, count, shift, dtype=dtype), [group] * count))
    joined = [(np.concatenate([f for f, _ in side]), [g for _, names in side for g in names]) for side in sides]
    orders = [generator.permutation(len(names)) for _, names in joined]
    (real, ours), (fake, theirs) = (
        (f[order], [names[i] for i in order]) for (f, names), order in zip(joined, orders, strict=True)
    )
    return (real, fake, ours, theirs), ["light", "dark", "NULL", odd, "few"]


def test_only_the_shifted_group_is_over_its_floor():
    images, groups = world()
    rows = quality.rows(*images, groups, seed=0)
    assert [list(row) for row in rows] == [["group", "n", *quality.FIGURES]] * 5
    assert [row["group"] for row in rows] == groups
    assert [row["n"] for row in rows] == [90, 120, 70, 20, 19]
    assert [row["kernel_distance"] > row["kernel_floor"] for row in rows[:4]] == [False, True, False, False]
    assert [row["coverage"] < row["coverage_floor"] for row in rows[:4]] == [False, True, False, False]
    assert [row["kernel_low"] > 0 for row in rows[:4]] == [False, True, False, False]
    assert {rows[4][name] for name in quality.FIGURES} == {None}  # too few to say
    figures = [row[name] for row in rows[:4] for name in quality.FIGURES]
    assert {type(value) for value in figures} == {float}


def test_rows_are_a_function_of_seed_and_group():
    images, groups = world()
    rows = quality.rows(*images, groups, 5)
    assert quality.rows(*images, groups[::-1], 5) == rows[::-1]
    assert quality.rows(*images, [f"{group[0]}{group[1:]}" for group in groups], 5) == rows  # equal, not the same
    assert quality.rows(*images, [None, "dark"], 5) == rows[1:2]
    assert quality.rows(*images, groups, 6)[0] != rows[0]
    assert quality.rows(*images, ["absent"], 5) == [{"group": "absent", "n": 0, **dict.fromkeys(quality.FIGURES)}]
    assert quality.rows(*images, [], 5) == []
    narrow = quality.rows(*world(dtype=np.float16)[0], groups, 5)
    assert [row["kernel_distance"] for row in narrow[:4]] == pytest.approx(
        [row["kernel_distance"] for row in rows[:4]], abs=1e-3
    )


def test_each_group_is_compared_with_its_own_at_equal_n():
    (real, fake, ours, theirs), _ = world()
    same = np.flatnonzero(np.array(theirs, object) == "dark")
    mine = np.flatnonzero(np.array(ours, object) == "dark")[: len(same)]
    ours = [g if g != "dark" or i in mine else None for i, g in enumerate(ours)]
    row = quality.rows(real, fake, ours, theirs, ["dark"], 0)[0]
    assert row["n"] == len(same) == len(mine)
    whole = real[mine], fake[same]  # n of n without replacement: all of them, each once
    assert row["kernel_distance"] == pytest.approx(
        quality.kernel_distance(*whole, quality.median_bandwidth(real, 0)), abs=1e-12
    )
    assert row["coverage"] == quality.coverage(*whole)
    limited = quality.rows(real, fake, ours, theirs, ["dark"], 0, limit=50)[0]
    assert limited["n"] == 50
    assert limited["kernel_distance"] == pytest.approx(row["kernel_distance"], rel=0.5)
    assert limited["kernel_high"] - limited["kernel_low"] > row["kernel_high"] - row["kernel_low"]
    assert quality.rows(real, fake, ours, theirs, ["dark"], 0, limit=19)[0]["kernel_distance"] is None


def test_n_of_each_side_are_compared_and_at_most_2n_make_the_floors(monkeypatch):
    seen, figures = [], quality.figures
    monkeypatch.setattr(
        quality, "figures", lambda real, fake, *rest: seen.append((len(real), len(fake))) or figures(real, fake, *rest)
    )
    images, groups = world()
    quality.rows(*images, groups, 0)
    quality.rows(*images, groups[:1], 0, limit=40)
    assert seen == [(180, 90), (240, 120), (70, 70), (20, 20), (80, 40)]


def test_a_collapsed_generator_covers_next_to_nothing():
    generator = np.random.default_rng(9)
    row = one(faces(generator, 200, dimensions=32), np.tile(faces(generator, 1, dimensions=32), (100, 1)))
    assert row["coverage"] < 0.1 < 0.8 < row["coverage_floor"]
    assert row["kernel_low"] > row["kernel_floor"]


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, 3.0])
@pytest.mark.parametrize("side", ["real", "generated"])
def test_a_row_that_is_no_embedding_is_refused(side, value, monkeypatch):
    monkeypatch.setattr(quality, "BLOCK", 8)
    real, generated = (faces(np.random.default_rng(seed), 30, dtype=np.float16) for seed in (0, 1))
    {"real": real, "generated": generated}[side][21] = value
    with pytest.raises(FairfaceError, match=f"{side}: embedding 21 has length .* and not 1"):
        one(real, generated)


def test_shapes_that_do_not_fit_are_refused():
    real = faces(np.random.default_rng(0), 30)
    with pytest.raises(ValueError, match=r"real: embeddings of shape \[30, 8\] for the groups of 29 images"):
        quality.rows(real, real, ["a"] * 29, ["a"] * 30, ["a"], 0)
    with pytest.raises(FairfaceError, match="8 and 7 dimensions"):
        one(real, unit(real[:, :7]))
    with pytest.raises(ValueError, match=r"shape \[30\]"):
        one(real, real[:, 0])


def test_memory_is_that_of_one_group():
    real = np.tile(faces(np.random.default_rng(0), 500, dtype=np.float16), (40, 1))
    tracemalloc.start()
    one(real, real, limit=50)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64e6  # all by all would take 1.6 GB in float32


def test_only_the_embeddings_that_are_wanted_come_whatever_row_group_they_lie_in(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(100, 4)).astype(np.float16)
    table = pl.DataFrame(
        {"key": [f"{i:03d}" for i in range(100)], "embedding": pl.Series(vectors, dtype=pl.Array(pl.Float16, 4))}
    )
    table.write_parquet(tmp_path / "e.parquet", row_group_size=10)
    found = embeddings.of(tmp_path / "e.parquet", pl.Series(["099", "000", "045", "046", "nobody"]))
    assert found["key"].to_list() == ["000", "045", "046", "099"]
    assert np.array_equal(found["embedding"].to_numpy(), vectors[[0, 45, 46, 99]].astype(np.float32))
    assert sum(len(keys) for keys, _ in embeddings.chunks(tmp_path / "e.parquet")) == embeddings.count(
        tmp_path / "e.parquet"
    )
