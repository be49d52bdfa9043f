"""Intervals that hold what they promise, and verdicts that follow from them."""

import numpy as np
import polars as pl
import pytest

import sql
from reports import estimate

# the FairFace Generator's published tables: annotated training images, and CLIP's labels of its samples
TRAINED = np.array([299, 1364, 791, 13245, 51413, 39340, 17562, 7155, 2796, 1801])
DRAWN = np.array([0, 7, 131, 1472, 0, 0, 267, 8, 113, 2])


def test_wilson_by_hand():
    low, high = estimate.wilson([0, 5, 10, 0], [10, 10, 10, 0])
    # 0 of 10: z^2 / (n + z^2) = 3.8415 / 13.8415; 5 of 10: 0.5 -+ 1.96 * sqrt(2.5 + 0.9604) / 13.8415
    assert low == pytest.approx([0, 0.23659, 0.72247, 0], abs=1e-4)
    assert high == pytest.approx([0.27753, 0.76341, 1, 1], abs=1e-4)


def test_ratio_interval_repeats_koopmans_example():
    low, high = estimate.ratio_interval(36, 40, 16, 80)
    assert (float(low), float(high)) == pytest.approx((2.94, 7.15), abs=0.01)
    swapped = estimate.ratio_interval(16, 80, 36, 40)
    assert (1 / float(swapped[1]), 1 / float(swapped[0])) == pytest.approx((float(low), float(high)))


def test_ratio_interval_at_zero_counts():
    low, high = estimate.ratio_interval([0, 5, 0, 50], [100, 100, 100, 50], [5, 0, 0, 80], [100, 100, 100, 80])
    assert low[[0, 2]].tolist() == [0, 0]
    assert np.isinf(high[[1, 2]]).all()
    assert 0 < high[0] < 1 < low[1]
    assert low[3] < 1 < high[3]


@pytest.mark.parametrize(
    ("n", "m", "p", "q"),
    [
        (2000, 6000, 0.6, 0.6),
        (2000, 6000, 0.03, 0.02),
        (500, 135766, 0.01, 0.015),
        (200, 200, 0.05, 0.1),
        (100, 2000, 0.95, 0.9),
    ],
)
def test_ratio_interval_covers_the_truth(n, m, p, q):
    generator = np.random.default_rng(0)
    low, high = estimate.ratio_interval(generator.binomial(n, p, 5000), n, generator.binomial(m, q, 5000), m)
    covered = np.mean((low <= p / q) & (p / q <= high))
    assert 0.935 <= covered <= 0.975


@pytest.mark.parametrize(
    ("low", "high", "says"),
    [
        (0.81, 1.2, "preserved"),
        (1.02, 1.2, "preserved"),
        (1.02, 1.3, "amplified"),
        (0.5, 0.99, "reduced"),
        (0.0, 0.4, "reduced"),
        (0.7, 1.1, "inconclusive"),
        (0.0, np.inf, "inconclusive"),
        (1.5, np.inf, "amplified"),
    ],
)
def test_verdict(low, high, says):
    assert estimate.verdict(low, high) == says


def test_distances_of_the_published_tables():
    ten = estimate.distance_rows(DRAWN, TRAINED, 0)[0]
    groups = [np.array([t[:3].sum(), t[3:6].sum(), t[6:].sum()]) for t in (DRAWN, TRAINED)]
    three = estimate.distance_rows(*groups, 0)[0]
    assert ten["measure"] == three["measure"] == "total_variation"
    assert ten["value"] == pytest.approx(0.738, abs=5e-4)
    assert three["value"] == pytest.approx(0.051, abs=5e-4)
    assert ten["low"] < ten["value"] < ten["high"]
    assert three["value"] > three["null_floor"] > 0


def test_distances_at_their_ends():
    apart = estimate.distance_rows(np.array([100, 0]), np.array([0, 100]), 0)
    assert [row["value"] for row in apart] == pytest.approx([1, 1, np.sqrt(2)])
    same = estimate.distance_rows(np.array([50, 50]), np.array([500, 500]), 0)
    assert all(row["value"] == row["low"] == 0 < row["null_floor"] for row in same)
    uniform = estimate.distance_rows(np.array([75, 25]), None, 0)
    assert [uniform[0]["value"], uniform[0]["against"]] == [0.25, "uniform"]


@pytest.mark.parametrize(
    ("p", "q"), [((0.62, 0.38), (0.6, 0.4)), ((0.1, 0.3, 0.3, 0.2, 0.1), (0.12, 0.3, 0.28, 0.2, 0.1))]
)
def test_distance_intervals_cover_the_truth(p, q):
    generator, p, q = np.random.default_rng(1), np.array(p), np.array(q)
    covered = []
    for seed in range(70):
        rows = estimate.distance_rows(generator.multinomial(2000, p), generator.multinomial(4000, q), seed)
        truths = [estimate.MEASURES[row["measure"]](p, q) for row in rows]
        covered.append([row["low"] <= truth <= row["high"] for row, truth in zip(rows, truths, strict=True)])
    assert (np.mean(covered, axis=0) >= 0.88).all()  # 95 % less three standard errors of 70 worlds


def test_every_class_has_a_row_and_shares_add_up(world):
    out = world()
    connection = sql.connect(out)
    tables = estimate.write(out, connection, "first")
    rows = tables["estimates"]
    assert rows.group_by("attribute").len().sort("len")["len"].to_list() == [2, 3, 5, 6, 10]
    sums = rows.group_by("attribute").agg(pl.col("share", "reference", "annotated").sum())
    assert np.allclose(sums.select("share", "reference", "annotated"), 1)
    assert (
        rows.select((pl.col("share_low") <= pl.col("share")) & (pl.col("share") <= pl.col("share_high")))
        .to_series()
        .all()
    )
    assert set(tables["confusion"].filter(pl.col("annotated") != pl.col("labelled"))["count"]) == set()
    assert set(estimate.quality(tables["confusion"])["balanced_accuracy"]) == {1.0}
    assert sql.ask(sql.connect(out), "comparison").height == 26
    assert not list((out / "report").glob(".*"))


def test_quality_by_hand():
    cells = [("young", "young", 90), ("young", "adult", 10), ("adult", "adult", 5), ("adult", "young", 5)]
    matrix = pl.DataFrame([{"attribute": "age", "annotated": a, "labelled": b, "count": c} for a, b, c in cells])
    row = estimate.quality(matrix).row(0, named=True)
    assert (row["n"], row["accuracy"], row["balanced_accuracy"]) == pytest.approx((110, 95 / 110, 0.7))


def test_an_unannotated_set_has_null_annotated_shares(world):
    out = world(annotated=False)
    tables = estimate.write(out, sql.connect(out), "first")
    assert tables["estimates"]["annotated"].null_count() == 26
    assert tables["confusion"].is_empty()


def test_runs_stand_beside_each_other_until_they_are_gone(world):
    out = world()
    estimate.write(out, sql.connect(out), "first")
    (out / "runs" / "second").mkdir()
    for name in ("config.json", "steps.parquet"):
        (out / "runs" / "second" / name).write_bytes((out / "runs" / "first" / name).read_bytes())
    labels = pl.read_parquet(out / "runs" / "first" / "labels.parquet").with_columns(run=pl.lit("second"))
    labels.write_parquet(out / "runs" / "second" / "labels.parquet")
    estimate.write(out, sql.connect(out), "second")
    assert set(pl.read_parquet(out / "report" / "estimates.parquet")["run"]) == {"first", "second"}
    (out / "runs" / "first" / "config.json").unlink()
    estimate.write(out, sql.connect(out), "second")
    assert set(pl.read_parquet(out / "report" / "estimates.parquet")["run"]) == {"second"}


def test_a_perfect_generator_is_seldom_accused_and_a_shifted_one_found():
    generator, n, m = np.random.default_rng(0), 2000, 6000
    shares = np.array([0.5, 0.5, 0.08, 0.71, 0.21, 0.1, 0.26, 0.37, 0.14, 0.13])
    sizes = n + 0 * shares, m + 0 * shares
    worlds = [(generator.binomial(n, shares), generator.binomial(m, shares)) for _ in range(400)]
    accused = [estimate.shifted(drawn, sizes[0], seen, sizes[1]).any() for drawn, seen in worlds]
    assert np.mean(accused) < 0.08
    moved = shares.copy()
    moved[0] += 0.1
    found = estimate.shifted(n * moved, sizes[0], m * shares, sizes[1])
    assert found.tolist() == [True] + [False] * 9
