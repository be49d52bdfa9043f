"""Rates by generator, and of detectors on generators that they were not trained on, against counts in Python."""

import numpy as np
import polars as pl
import pytest

import sql
from reports.estimation.intervals import wilson
from shards.workspace import TRIVIAL_DETECTORS, Workspace
from tests.reports.fake_detectors import add_detector, name_generators
from tests.reports.fake_workspace import make


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Images of three generators with the logits of a detector without DMs, and of two that were trained on all."""
    out = make(tmp_path_factory.mktemp("out"), n=4, m=600)
    images, rng = name_generators(out), np.random.default_rng(0)
    fake, diffusion = (images["target"] == "fake").to_numpy(), (images["family"] == "DMs").to_numpy()
    part = np.round(fake * 2 - diffusion * 1.5 - 1 + rng.normal(size=600), 1)  # with ties
    entire = np.round(fake * 2 - diffusion * 0.5 - 1 + rng.normal(size=600), 1)
    add_detector(out, "part", part, images=images, held_out=["DMs"], backbone=None, feed="streaming")
    add_detector(out, "entire", entire, images=images, steps=290)
    add_detector(out, "longer", entire + 1, images=images, steps=900)
    add_detector(out, "other", entire, images=images, lr=1)
    table = images.with_columns(part=pl.Series(part), entire=pl.Series(entire))
    return sql.connect(Workspace(out)), table


def auc(fakes: pl.Series, reals: pl.Series) -> float:
    """The share of pairs in the right order, ties counting half."""
    difference = fakes.to_numpy()[:, None] - reals.to_numpy()[None]
    return float(((difference > 0) + (difference == 0) / 2).mean())


def delong_variance(scores: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """The variance of an AUC, or of the difference of two, from fakes' and real faces' logits by each detector."""
    sides: list[np.ndarray] = []
    for side in (0, 1):
        placements = []
        for fakes, reals in scores:
            order = np.sign(fakes[:, None] - reals[None]) / 2 + 0.5
            placements.append(order.mean(1 - side))
        sides.append(placements[0] - (placements[1] if len(placements) > 1 else 0))
    return sum(float(side.var(ddof=1)) / len(side) for side in sides)


def test_rates_by_generator_are_counted(world):
    connection, table = world
    rows = sql.ask(connection, "generators", detector="part", attribute="gender")
    assert rows["family"].unique().sort().to_list() == ["DMs", "GANs"]
    assert rows.filter(family="GANs")["method"].unique().sort().to_list() == ["ProGAN", "StyleGAN", "all"]
    row = rows.filter(family="GANs", method="StyleGAN", group="male").row(0, named=True)
    counted = table.filter(subset="StyleGAN", gender="male")
    called = (counted["part"] >= 0).sum()
    assert (row["fakes"], row["called_fake"], row["tpr"]) == (len(counted), called, called / len(counted))
    assert (row["low"], row["high"]) == tuple(map(pytest.approx, map(float, wilson(called, len(counted)))))
    by_family = rows.filter(method="all", group="male")
    assert dict(by_family.select("family", "is_held_out").iter_rows()) == {"DMs": True, "GANs": False}
    assert sql.ask(connection, "generators")["attribute"].unique().to_list() == ["all"]


def test_the_wilson_interval_has_no_certain_end(world):
    connection, _ = world
    text = "select wilson_low(0, 9) as a, wilson_high(0, 9) as b, wilson_low(9, 9) as c, wilson_high(9, 9) as d"
    a, b, c, d = sql.select(connection, text).row(0)
    (low,), (high,) = wilson([0], [9])
    assert (a, d, b) == (0, 1, pytest.approx(high))
    assert c == pytest.approx(1 - high)
    assert low == pytest.approx(0)


@pytest.mark.parametrize(("attribute", "group"), [("all", "all"), ("gender", "female"), ("skin_group", "dark")])
def test_figures_on_held_out_fakes_are_those_of_brute_force(world, attribute, group):
    connection, table = world
    row = sql.ask(connection, "hold_out", attribute=attribute).filter(group=group).row(0, named=True)
    assert (row["detector"], row["held_out"], row["full_detector"]) == ("part", "DMs", "entire")
    faces = table if group == "all" else table.filter(pl.col(attribute) == group)
    fakes, reals = faces.filter(family="DMs"), faces.filter(target="real")
    assert (row["fakes"], row["reals"]) == (len(fakes), len(reals))
    assert row["tpr"] == pytest.approx((fakes["part"] >= 0).mean())
    assert row["full_tpr"] == pytest.approx((fakes["entire"] >= 0).mean())
    assert row["tpr_difference"] == pytest.approx(row["tpr"] - row["full_tpr"])
    assert row["auc"] == pytest.approx(auc(fakes["part"], reals["part"]))
    assert row["full_auc"] == pytest.approx(auc(fakes["entire"], reals["entire"]))
    both = [(fakes[name].to_numpy(), reals[name].to_numpy()) for name in ("part", "entire")]
    error = delong_variance(both) ** 0.5
    assert row["auc_difference_low"] == pytest.approx(row["auc"] - row["full_auc"] - 1.959964 * error)
    logit = np.log(row["auc"] / (1 - row["auc"]))
    width = 1.959964 * delong_variance(both[:1]) ** 0.5 / row["auc"] / (1 - row["auc"])
    assert row["auc_low"] == pytest.approx(1 / (1 + np.exp(width - logit)))
    assert row["auc_high"] == pytest.approx(1 / (1 + np.exp(-width - logit)))
    # Bonett and Price
    gained = ((fakes["part"] >= 0) & (fakes["entire"] < 0)).sum()
    lost = ((fakes["part"] < 0) & (fakes["entire"] >= 0)).sum()
    one, other = (gained + 1) / (len(fakes) + 2), (lost + 1) / (len(fakes) + 2)
    width = 1.959964 * ((one + other - (one - other) ** 2) / (len(fakes) + 2)) ** 0.5
    assert row["tpr_difference_low"] == pytest.approx(one - other - width)
    assert row["tpr_difference_high"] == pytest.approx(one - other + width)


def test_trivial_detectors_are_evaluated_on_the_same_fakes(world):
    connection, _ = world
    rows = sql.ask(connection, "hold_out", attribute="gender")
    sizes = rows.group_by("group").agg(pl.col("fakes").n_unique(), pl.col("reals").n_unique())
    assert set(sizes["fakes"]) == set(sizes["reals"]) == {1}
    assert rows["detector"].unique(maintain_order=True).to_list() == ["part", *TRIVIAL_DETECTORS]
    assert set(rows["held_out"]) == {"DMs"}
    for row in rows.filter(detector="(majority)").to_dicts():
        assert (row["tpr"], row["auc"], row["auc_low"], row["auc_high"]) == (1, 0.5, None, None)
        assert row["tpr_low"] < 1
        assert row["full_detector"] is row["tpr_difference_low"] is row["auc_difference_high"] is None
    text = """select avg(called_fake::int) as tpr from generator_predictions
        where detector = '(random)' and gender = 'male' and family = 'DMs'"""
    guessed = rows.filter(detector="(random)", group="male").row(0, named=True)
    assert guessed["tpr"] == pytest.approx(sql.select(connection, text)["tpr"][0])
    assert guessed["auc_low"] < guessed["auc"] < guessed["auc_high"]


def test_equal_placements_give_no_interval(tmp_path):
    out = make(tmp_path, n=4, m=100)
    images = name_generators(out)
    logits = np.where(images["target"] == "fake", 1.0, -1.0)
    add_detector(out, "part", logits, images=images, held_out=["DMs"])
    add_detector(out, "entire", logits, images=images)
    row = sql.ask(sql.connect(Workspace(out)), "hold_out", detector="part", attribute="all").row(0, named=True)
    assert (row["auc_difference"], row["auc_difference_low"], row["auc_difference_high"]) == (0, None, None)
    assert row["tpr_difference_low"] < 0 < row["tpr_difference_high"]


def test_the_worst_group_of_each_attribute_is_marked(world):
    connection, _ = world
    rows = sql.ask(connection, "hold_out", detector="part")
    assert not rows.filter(attribute="all")["is_worst_group"].any()
    for _, table in rows.filter(pl.col("attribute") != "all").group_by("attribute"):
        assert table.filter("is_worst_group")["tpr"].to_list()[0] == table["tpr"].min()


def test_without_a_detector_that_was_trained_on_all_there_is_no_comparison(world, tmp_path):
    out = make(tmp_path, n=4, m=100)
    images = name_generators(out)
    logits = np.where(images["target"] == "fake", 1.0, -1.0)
    add_detector(out, "part", logits, images=images, held_out=["ProGAN"])
    rows = sql.ask(sql.connect(Workspace(out)), "hold_out")
    row = rows.row(0, named=True)
    assert (row["tpr"], row["auc"], row["fakes"]) == (1, 1, 25)
    assert (row["full_detector"], row["full_tpr"], row["full_auc"], row["tpr_difference_low"]) == (None,) * 4
    assert (row["auc_low"], row["tpr_high"]) == (None, 1)
    family = sql.ask(sql.connect(Workspace(out)), "generators", detector="part").filter(family="GANs", method="all")
    assert family["is_held_out"].to_list() == [None]


@pytest.mark.parametrize("question", ["utility", "fairness", "robustness", "worst_groups"])
def test_every_table_says_what_a_detector_was_trained_without(world, question):
    rows = sql.ask(world[0], question)
    named = rows.filter(~pl.col("detector").str.starts_with("("))
    assert dict(named.select("detector", "held_out").unique().iter_rows()) == {
        "part": "DMs", "entire": None, "longer": None, "other": None,
    }  # fmt: skip
