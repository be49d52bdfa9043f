"""The gap of the groups' TPR on fakes that a detector was not trained on, and its floor."""

import numpy as np
import polars as pl
import pytest

import sql
from reports.estimation.detection.held_out import HELD_OUT_GAP
from reports.estimation.detection_metrics import write_metrics
from shards.workspace import Workspace
from tests.reports.fake_detectors import add_detector, name_generators
from tests.reports.fake_workspace import make

pytestmark = pytest.mark.usefixtures("full_computations")


def gap(called: np.ndarray, groups: np.ndarray) -> float:
    rates = [called[groups == group].mean() for group in np.unique(groups)]
    return float(max(rates) - min(rates))


def test_the_gap_and_its_floor_are_of_the_held_out_fakes_alone(tmp_path):
    out, rng = make(tmp_path, n=4, m=400), np.random.default_rng(1)
    images = name_generators(out)
    fake, diffusion = (images["target"] == "fake").to_numpy(), (images["family"] == "DMs").to_numpy()
    male = (images["gender"] == "male").to_numpy()
    logits = np.where(fake, 2.0, -2.0) - diffusion * (1.5 + 2 * male) + rng.normal(size=400)
    add_detector(out, "part", logits, images=images, held_out=["DMs"])
    add_detector(out, "entire", logits, images=images)
    workspace, (groups, called) = Workspace(out), (images["gender"].to_numpy()[diffusion], logits[diffusion] >= 0)
    table = write_metrics(workspace, sql.connect(workspace), detector="part").filter(measure=HELD_OUT_GAP)
    row = table.filter(attribute="gender").row(0, named=True)
    assert row["value"] == pytest.approx(gap(called, groups))
    permuted = [gap(called, rng.permutation(groups)) for _ in range(3000)]
    assert row["floor"] == pytest.approx(np.quantile(permuted, 0.95), abs=0.03)
    assert row["floor"] < row["low"] < row["value"] < row["high"]
    assert table["group"].null_count() == len(table) == table["attribute"].n_unique()
    chance = table.filter(attribute="age").row(0, named=True)
    assert chance["value"] < chance["floor"]
    assert chance["low"] == 0
    entire = write_metrics(workspace, sql.connect(workspace), detector="entire")
    assert not entire.filter(pl.col("measure") == HELD_OUT_GAP).height
