"""The comparison of training recipes: its metrics, its rows, and a trial from training to metrics."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from pipeline.bench import gan
from pipeline.bench.context import BenchContext, TrialsConfig
from pipeline.bench.gan_metrics import fidelity, frechet_distance, share_metrics
from shards.errors import FairfaceError
from shards.workspace import Workspace
from tests.pipeline.gan.helpers import CPU, TINY


def test_the_frechet_distance_of_normal_distributions():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20_000, 3))
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x, x + np.array([3, 0, 4])) == pytest.approx(25)
    # for zero means and diagonal covariances: the sum of squared differences of standard deviations
    assert frechet_distance(x, x * [2, 3, 1]) == pytest.approx(1 + 4, rel=0.05)


def test_recall_and_coverage_fall_where_modes_are_missing():
    rng = np.random.default_rng(0)
    real, other = rng.normal(size=(2, 400, 4))
    half = np.where(other[:, :1] > 0, other, -other)  # only one side
    equal, collapsed = fidelity(real, other), fidelity(real, half)
    assert equal["coverage"] > 0.9 > 0.7 > collapsed["coverage"]
    assert equal["recall"] > 0.8 > 0.7 > collapsed["recall"]


def test_shares_are_compared_by_attribute_and_for_rare_groups():
    table = pl.DataFrame(
        {
            "attribute": ["a", "a", "b", "b", "b"],
            "group": ["x", "y", "p", "q", "r"],
            "train_share": [0.5, 0.5, 0.92, 0.04, 0.04],
            "generated_share": [0.6, 0.4, 0.9, 0.01, 0.09],
        }
    )
    metrics = share_metrics(table)
    assert metrics["tv a"] == pytest.approx(0.1)
    assert metrics["tv b"] == pytest.approx(0.05)
    assert metrics["rare"] == pytest.approx((0.25 + 1) / 2)


def test_a_trial_trains_samples_labels_and_measures(packed, tmp_path):
    (tmp_path / "shards").mkdir()
    for path in (packed / "shards").iterdir():
        (tmp_path / "shards" / path.name).write_bytes(path.read_bytes())
    options = replace(TINY, image_size=64, feed="resident", loss="relativistic", regularizer="r1")
    metrics = gan.run_trial(Workspace(tmp_path), gan.Trial("sketch", options, steps=2, device="cpu"))
    assert {"tv gender", "tv age", "tv skin_tone", "derived tv skin_group", "rare"} <= metrics.keys()
    assert {"frechet", "coverage", "recall"} <= metrics.keys()
    assert metrics["derived tv skin_group"] <= metrics["tv skin_tone"]
    assert metrics["frechet"] > metrics["frechet floor"]  # after two steps
    assert metrics["worst coverage"] <= metrics["coverage of gender female"]
    assert metrics["recall of gender male"] >= 0


def test_a_row_shows_the_mean_over_seeds_and_their_range():
    measured = {"published": [{"tv a": 0.2}, {"tv a": 0.4}], "sketch": [{"tv a": 0.1}, {"tv a": 0.1}]}
    first, second = gan.recipe_rows("faces", measured, rates={"published": 300, "sketch": 280})
    assert (first.value, first.ratio) == (pytest.approx(300), 1)
    assert second.ratio == pytest.approx(3)
    assert second.title == "faces: sketch: total variation, vs published"
    assert first.note == "2 seeds, 300 img/s; tv a 0.300 (0.200-0.400)"


def test_a_row_shows_the_scores_of_every_group():
    groups = ("coverage of a x", "recall of a x", "coverage of a y", "recall of a y")
    values = {"published": (0.4, 0.5, 0.2, 0.1), "sketch": (0.8, 0.7, 0.4, 0.3)}
    measured = {name: [{"tv a": 0.1, **dict(zip(groups, scores, strict=True))}] for name, scores in values.items()}
    _, _, whole, row = gan.recipe_rows("faces", measured, rates={"published": 300, "sketch": 280})
    assert (row.value, row.baseline, row.ratio) == (pytest.approx(600), pytest.approx(300), pytest.approx(2))
    assert row.note == "coverage and recall relative to training images: a x 0.80 and 0.70; a y 0.40 and 0.30"
    assert "coverage" not in whole.note


def test_an_unknown_recipe_is_refused(tmp_path):
    context = BenchContext(tmp_path, torch.device("cpu"), trials=TrialsConfig(recipes=("nobody's",)))
    with pytest.raises(FairfaceError, match="no recipe nobody's: choose from published; "):
        next(gan.bench_gan(context))


def test_rates_of_all_recipes_are_measured(monkeypatch):
    monkeypatch.setattr(gan, "RATE_STEPS", 2)
    rates = gan.step_rates({"published": TINY, "other": replace(TINY, loss="hinge")}, CPU)
    assert rates.keys() == {"published", "other"}
    assert min(rates.values()) > 0
