"""Intervals that hold what they promise, and verdicts that follow from them."""

import json

import numpy as np
import polars as pl
import pytest

import sql
from reports import distances, estimate, groups, intervals
from reports.reading import Reading, verdict
from shards.errors import FairfaceError

# the FairFace Generator's published tables: annotated training images, and CLIP's labels of its samples
TRAINED = np.array([299, 1364, 791, 13245, 51413, 39340, 17562, 7155, 2796, 1801])
DRAWN = np.array([0, 7, 131, 1472, 0, 0, 267, 8, 113, 2])


def test_wilson_by_hand():
    low, high = intervals.wilson([0, 5, 10, 0], [10, 10, 10, 0])
    # 0 of 10: z^2 / (n + z^2) = 3.8415 / 13.8415; 5 of 10: 0.5 -+ 1.96 * sqrt(2.5 + 0.9604) / 13.8415
    assert low == pytest.approx([0, 0.23659, 0.72247, 0], abs=1e-4)
    assert high == pytest.approx([0.27753, 0.76341, 1, 1], abs=1e-4)


def test_ratio_interval_repeats_koopmans_example():
    low, high = intervals.ratio_interval(36, 40, 16, 80)
    assert (float(low), float(high)) == pytest.approx((2.94, 7.15), abs=0.01)
    swapped = intervals.ratio_interval(16, 80, 36, 40)
    assert (1 / float(swapped[1]), 1 / float(swapped[0])) == pytest.approx((float(low), float(high)))


def test_ratio_interval_at_zero_counts():
    low, high = intervals.ratio_interval([0, 5, 0, 50], [100, 100, 100, 50], [5, 0, 0, 80], [100, 100, 100, 80])
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
    low, high = intervals.ratio_interval(generator.binomial(n, p, 5000), n, generator.binomial(m, q, 5000), m)
    covered = np.mean((low <= p / q) & (p / q <= high))
    assert 0.935 <= covered <= 0.975


@pytest.mark.parametrize(
    ("low", "high", "raw", "says"),
    [
        (0.81, 1.2, 1.0, "preserved"),
        (0.81, 1.2, 1.3, "inconclusive"),  # the labels as they are say otherwise
        (1.02, 1.2, 1.1, "preserved"),
        (1.02, 1.3, 1.1, "amplified"),
        (1.02, 1.3, 0.9, "inconclusive"),
        (0.5, 0.99, 0.8, "reduced"),
        (0.5, 0.99, 1.01, "inconclusive"),
        (0.0, 0.4, 0.0, "reduced"),
        (0.7, 1.1, 0.9, "inconclusive"),
        (0.0, np.inf, None, "inconclusive"),
        (1.5, np.inf, np.inf, "amplified"),
    ],
)
def test_verdict(low, high, raw, says):
    assert verdict(low, high, raw) == says


def between(count, reference, seed):
    """Rows of distances between counts, or to equal shares."""
    p, q = (
        count / count.sum(),
        np.full(len(count), 1 / len(count)) if reference is None else reference / reference.sum(),
    )
    m = None if reference is None else reference.sum()
    return distances.rows(p, q, distances.counted(count.sum(), m, np.random.default_rng(seed)))


def test_distances_of_the_published_tables():
    ten = between(DRAWN, TRAINED, 0)[0]
    groups = [np.array([t[:3].sum(), t[3:6].sum(), t[6:].sum()]) for t in (DRAWN, TRAINED)]
    three = between(*groups, 0)[0]
    assert ten["measure"] == three["measure"] == "total_variation"
    assert ten["value"] == pytest.approx(0.738, abs=5e-4)
    assert three["value"] == pytest.approx(0.051, abs=5e-4)
    assert ten["low"] < ten["value"] < ten["high"]
    assert three["value"] > three["null_floor"] > 0


def test_distances_at_their_ends():
    apart = between(np.array([100, 0]), np.array([0, 100]), 0)
    assert [row["value"] for row in apart[:3]] == pytest.approx([1, 1, np.sqrt(2)])
    *same, diversity = between(np.array([50, 50]), np.array([500, 500]), 0)
    assert all(row["value"] == row["low"] == 0 < row["null_floor"] for row in same)
    assert all(row["high"] > 0 for row in same)
    assert diversity["value"] == pytest.approx(diversity["high"]) == pytest.approx(1)
    assert 1 > diversity["null_floor"] > 0.9
    uniform = between(np.array([75, 25]), None, 0)
    assert uniform[0]["value"] == 0.25
    assert uniform[3]["value"] == pytest.approx(0.811278, abs=1e-6)  # H(1/4), by hand
    assert between(np.array([100, 0]), np.array([50, 50]), 0)[3]["value"] == 0
    assert between(np.array([60, 40]), np.array([50, 0]), 0)[3]["value"] is None  # of a reference without diversity
    sure = between(np.array([20, 0]), None, 0)[0]
    assert (sure["value"], sure["high"]) == (0.5, 0.5)
    assert 0.3 < sure["low"] < 0.45  # 20 of 20 may be 17 in 20


@pytest.mark.parametrize(
    ("p", "q"), [((0.62, 0.38), (0.6, 0.4)), ((0.1, 0.3, 0.3, 0.2, 0.1), (0.12, 0.3, 0.28, 0.2, 0.1))]
)
def test_distance_intervals_cover_the_truth(p, q):
    generator, p, q = np.random.default_rng(1), np.array(p), np.array(q)
    covered = []
    for seed in range(70):
        rows = between(generator.multinomial(2000, p), generator.multinomial(4000, q), seed)
        truths = [getattr(distances, row["measure"])(p, q) for row in rows]
        covered.append([row["low"] <= truth <= row["high"] for row, truth in zip(rows, truths, strict=True)])
    assert (np.mean(covered, axis=0) >= 0.88).all()  # 95 % less three standard errors of 70 worlds


def test_every_class_has_a_row_and_shares_add_up(world):
    out = world()
    connection = sql.connect(out)
    tables = estimate.write(out, connection, "first")
    rows = tables["estimates"]
    assert rows.group_by("attribute").len().sort("len")["len"].to_list() == [2, 3, 5, 6, 10, 30]
    sums = rows.group_by("attribute").agg(pl.col("share", "reference", "annotated").sum())
    assert np.allclose(sums.select("share", "reference", "annotated"), 1)
    assert (
        rows.select((pl.col("share_low") <= pl.col("share")) & (pl.col("share") <= pl.col("share_high")))
        .to_series()
        .all()
    )
    assert set(tables["confusion"].filter(pl.col("annotated") != pl.col("labelled"))["count"]) == set()
    assert set(estimate.accuracy(tables["confusion"])["balanced_accuracy"]) == {1.0}
    best = rows.select("best_share", "best_reference").to_numpy()
    assert np.allclose(best, rows.select("share", "reference").to_numpy(), atol=1e-3)  # nothing was wrong
    used = tables["readings"].filter("used").select("attribute", "group", "share")
    assert used.rows() == rows.select("attribute", "group", "best_share").rows()
    assert sql.ask(sql.connect(out), "comparison").height == 56
    assert not list((out / "report").glob(".*"))


def test_quality_by_hand():
    cells = [("young", "young", 90), ("young", "adult", 10), ("adult", "adult", 5), ("adult", "young", 5)]
    matrix = pl.DataFrame(
        [{"method": "clip", "attribute": "age", "annotated": a, "labelled": b, "count": c} for a, b, c in cells]
    )
    row = estimate.accuracy(matrix).row(0, named=True)
    assert (row["n"], row["accuracy"], row["balanced_accuracy"]) == pytest.approx((110, 95 / 110, 0.7))


def test_an_unannotated_set_has_null_annotated_shares(world):
    out = world(annotated=False)
    tables = estimate.write(out, sql.connect(out), "first")
    assert tables["estimates"]["annotated"].null_count() == 56
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
    accused = [intervals.shifted(intervals.pearson(drawn, sizes[0], seen, sizes[1])).any() for drawn, seen in worlds]
    assert np.mean(accused) < 0.08
    moved = shares.copy()
    moved[0] += 0.1
    found = intervals.shifted(intervals.pearson(n * moved, sizes[0], m * shares, sizes[1]))
    assert found.tolist() == [True] + [False] * 9


def erring(out, women, run="first"):
    """Labels of a labeller that takes a quarter of the women for men, on both sides; the samples' truth is known."""
    generator = np.random.default_rng(0)
    images = pl.read_parquet(out / "shards" / "images.parquet")
    truth = {
        out / "shards" / "labels.parquet": images["gender"].to_numpy(),
        out / "runs" / run / "labels.parquet": generator.permutation(["female"] * women + ["male"] * (400 - women)),
    }
    for path, genders in truth.items():
        wrong = (genders == "female") & (generator.random(len(genders)) < 0.25)
        said = pl.Series(np.where(wrong, "male", genders))
        pl.read_parquet(path).with_columns(gender=said).write_parquet(path)
    return out


def test_a_labellers_known_errors_are_taken_out(world):
    out = erring(world(n=400, m=1200), women=320)
    rows = (
        estimate.write(out, sql.connect(out), "first")["estimates"]
        .filter(attribute="gender", group="female")
        .to_dicts()
    )
    assert rows[0]["share"] < 0.66  # of 0.8
    assert abs(rows[0]["corrected"] - 0.8) < 0.05
    assert rows[0]["corrected_low"] < 0.8 < rows[0]["corrected_high"]
    assert (rows[0]["best"], rows[0]["verdict"]) == ("corrected", "amplified")
    assert rows[0]["best_reference"] == rows[0]["annotated"]
    assert rows[0]["ratio"] == pytest.approx(rows[0]["corrected"] / rows[0]["annotated"])


def test_why_nothing_was_corrected_is_said(world):
    out = world()
    path = out / "shards" / "images.parquet"
    images = pl.read_parquet(path).with_columns(gender=pl.lit("male"), age=pl.lit(None, pl.String))
    images.write_parquet(path)
    rows = estimate.write(out, sql.connect(out), "first")["estimates"]
    notes = dict(rows.select("attribute", "note").unique().iter_rows())
    assert notes["gender"] == "no calibration images of female"
    assert notes["age"] == "no annotated faces to measure the labeller's errors on"
    assert notes["skin_group"] is None
    assert rows.filter(attribute="gender")["corrected"].null_count() == 2
    assert set(rows.filter(attribute="gender")["best"]) == {"raw"}


def test_labels_that_tell_nothing_apart_are_not_inverted():
    flat = np.full((2, 2), 200)
    reading = Reading("gender", "clip", ["female", "male"], *(np.array([300.0, 300.0]) for _ in range(3)), flat)
    assert reading.found is None
    assert "condition number" in reading.note


def test_a_balanced_runs_reference_is_what_it_was_shown(world):
    out = world()
    path = out / "runs" / "first" / "config.json"
    config = json.loads(path.read_text())
    config["options"] |= {"balance": "uniform", "balance_by": "gender"}
    path.write_text(json.dumps(config))
    rows = estimate.write(out, sql.connect(out), "first")["estimates"]
    gender = rows.filter(attribute="gender")
    assert gender["reference"].to_list() == pytest.approx([0.5, 0.5])
    images = pl.read_parquet(out / "shards" / "images.parquet")
    counts = dict(images["gender"].value_counts().iter_rows())
    n = 1200**2 / sum(600**2 / counts[g] for g in counts)  # Kish: (sum w)^2 / sum w^2
    assert gender["reference_n"].to_list() == [round(n)] * 2
    weight = {g: 600 / counts[g] for g in counts}
    young = sum(weight[g] for g, a in images.select("gender", "age").iter_rows() if a == "young") / 1200
    assert rows.filter(attribute="age", group="young")["reference"].item() == pytest.approx(young)
    config["options"] |= {"balance": {"female": 3.0}}
    path.write_text(json.dumps(config))
    rows = estimate.write(out, sql.connect(out), "first")["estimates"]
    assert rows.filter(attribute="gender")["reference"].to_list() == [1.0, 0.0]


def test_images_that_a_conditional_run_left_out_are_no_reference(world):
    out = world()
    path, config = out / "shards" / "images.parquet", json.loads((out / "runs" / "first" / "config.json").read_text())
    images = pl.read_parquet(path)
    images.with_columns(gender=pl.when(pl.col("key") < "000000300").then("gender")).write_parquet(path)
    config["options"] |= {"conditional": "gender"}
    (out / "runs" / "first" / "config.json").write_text(json.dumps(config))
    rows = estimate.write(out, sql.connect(out), "first")["estimates"]
    assert set(rows.filter(attribute="age")["reference_n"]) == {300}


def test_how_many_faces_would_settle_it(world):
    rows = estimate.write(out := world(women=0.63), sql.connect(out), "first")["estimates"]
    open_ones = rows.filter(verdict="inconclusive")
    assert len(open_ones) > 3
    needed = open_ones.drop_nulls("n_needed")
    assert (needed["n_needed"] > 400).all()
    assert rows.filter(pl.col("verdict") != "inconclusive")["n_needed"].null_count() == len(rows) - len(open_ones)


def test_the_probe_counts_where_it_is_better(world):
    out = world()
    for folder in (out / "shards", out / "runs" / "first"):
        labels = pl.read_parquet(folder / "labels.parquet")
        probe = labels.with_columns(method=pl.lit("probe"), labeller=pl.lit("p"), gender=pl.lit("male"))
        probe.write_parquet(folder / "probe.parquet")
    judged = pl.DataFrame({"attribute": ["gender"], "method": ["probe"], "labeller": ["p"], "chosen": [True]})
    judged.write_parquet(out / "shards" / "labellers.parquet")
    tables = estimate.write(out, sql.connect(out), "first")
    methods = dict(tables["estimates"].select("attribute", "method").unique().iter_rows())
    assert methods == {"gender": "probe"} | dict.fromkeys(groups.DIVIDED[1:], "clip")
    assert tables["estimates"].filter(attribute="gender")["share"].to_list() == [0.0, 1.0]
    assert set(tables["readings"].filter(attribute="gender")["method"]) == {"clip", "probe"}
    (out / "runs" / "first" / "probe.parquet").unlink()  # as of a run that was labelled before
    with pytest.raises(FairfaceError, match="fairface label --run first"):
        estimate.labelling(sql.connect(out), "first")


def test_quality_has_a_row_a_group_and_needs_embeddings(world):
    out = world()
    assert estimate.write(out, sql.connect(out), "first")["quality"].is_empty()
    generator = np.random.default_rng(0)
    for folder in (out / "shards", out / "runs" / "first"):
        keys = pl.read_parquet(folder / "labels.parquet")["key"]
        vectors = generator.normal(size=(len(keys), 8))
        vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
        column = pl.Series("embedding", vectors, dtype=pl.Array(pl.Float16, 8))
        pl.DataFrame({"key": keys}).with_columns(column).write_parquet(folder / "embeddings.parquet")
    rows = estimate.write(out, sql.connect(out), "first")["quality"]
    assert rows.group_by("attribute").len().sort("len")["len"].to_list() == [2, 3, 5, 6]
    women = rows.filter(attribute="gender", group="female").to_dicts()[0]
    assert women["kernel_distance"] < women["kernel_floor"] * 2
    assert women["coverage"] > 0.9


def studies(accuracy, ratio, worlds, calibration=500, n=2000):
    """Verdicts and whether the used intervals hold the truth, of studies whose labeller and generator are known."""
    rng, verdicts, held = np.random.default_rng(0), [], []
    matrix = np.array([[accuracy, 1 - accuracy], [1 - accuracy, accuracy]])
    there = np.array([0.4, 0.6])
    truth = np.array([0.4 * ratio, 1 - 0.4 * ratio])
    for _ in range(worlds):
        annotated = rng.multinomial(calibration, there)
        confusion = np.stack([rng.multinomial(m, row) for m, row in zip(annotated, matrix, strict=True)])
        sides = rng.multinomial(n, truth @ matrix), confusion.sum(0), annotated
        reading = Reading("gender", "clip", ["a", "b"], *(side.astype(float) for side in sides), confusion)
        row = reading.estimate_rows("r")[0]
        verdicts.append(row["verdict"])
        held.append(
            (
                row["best_share_low"] <= truth[0] <= row["best_share_high"],
                row["ratio_low"] <= ratio <= row["ratio_high"],
            )
        )
    return verdicts, np.mean(held, axis=0)


@pytest.mark.parametrize(("accuracy", "ratio"), [(0.65, 0.6), (0.65, 0.7), (0.9, 0.7), (0.97, 1.3)])
def test_what_is_used_holds_the_truth_and_clears_no_generator_that_changed(accuracy, ratio):
    verdicts, (shares_held, ratios_held) = studies(accuracy, ratio, 80)
    assert shares_held >= 0.9
    assert ratios_held >= 0.9
    assert verdicts.count("preserved") <= 4  # 5 %
    assert "amplified" not in verdicts or ratio > 1


def test_a_group_that_was_never_shown_and_partly_annotated_images_have_their_rows(world):
    out = erring(world(), women=320)
    path = out / "runs" / "first" / "config.json"
    config = json.loads(path.read_text())
    for balance in ({"female": 1.0}, '{"female": 1, "nobody": 2}'):
        path.write_text(json.dumps(config | {"options": {"balance": balance, "balance_by": "gender"}}))
        rows = estimate.write(out, sql.connect(out), "first")["estimates"].filter(attribute="gender")
        assert rows["ratio_low"].null_count() == 0
        assert rows["ratio_low"].is_finite().all()
    for balance, says in (({"nobody": 1.0}, "none of the packed images"), ("garbage", "a balance that is none")):
        path.write_text(json.dumps(config | {"options": {"balance": balance, "balance_by": "gender"}}))
        with pytest.raises(FairfaceError, match=says):
            estimate.write(out, sql.connect(out), "first")


def test_partly_annotated_images_are_no_reference_by_themselves(world):
    """Women are annotated far more often than men; the generator draws just what it was shown."""
    out = erring(world(women=0.6), women=240)
    path = out / "shards" / "images.parquet"
    images = pl.read_parquet(path)
    shown = (images["gender"] == "female").mean()
    known = (pl.col("gender") == "female") | (pl.col("key") < "000000400")
    images.with_columns(gender=pl.when(known).then("gender")).write_parquet(path)
    rows = estimate.write(out, sql.connect(out), "first")["estimates"].filter(attribute="gender", group="female")
    row = rows.to_dicts()[0]
    assert row["annotated"] > shown + 0.1
    assert row["best"] == "corrected"
    assert abs(row["best_reference"] - shown) < 0.06
    assert row["verdict"] in ("preserved", "inconclusive")
