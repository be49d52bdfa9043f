"""The labeller's confidence on samples and on photographs: the distance, its floor, the page's table and warning."""

import re

import numpy as np
import polars as pl
import pytest

import sql
from reports.estimation.confidence_shift import ks_distance, ks_floor, label_weights
from shards.workspace import Workspace
from tests.reports.fake_workspace import build, page_text, replace_table

pytestmark = pytest.mark.usefixtures("short_reports")


def distance(a, b):
    """The distance of `b` from `a`, whose values have equal weights."""
    return ks_distance(np.array(a), np.array(b), weights=np.full(len(a), 1 / len(a)))


def test_the_distance_is_that_of_the_distribution_functions():
    assert distance([0.1, 0.2], [0.3, 0.4]) == 1
    assert distance([0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.5, 0.6]) == 0.5
    assert distance([0.5, 0.5], [0.5]) == 0
    assert ks_distance(np.array([0.4, 0.2]), np.array([0.3]), weights=np.array([0.9, 0.1])) == pytest.approx(0.9)


@pytest.mark.parametrize(("n", "m"), [(100, 100), (400, 60)])
def test_equal_distributions_exceed_the_floor_in_a_twentieth_of_the_cases(n, m):
    rng = np.random.default_rng(1)
    exceeded = [distance(rng.random(n), rng.random(m)) > ks_floor(n, m) for _ in range(1000)]
    assert 0.02 < np.mean(exceeded) < 0.06


def test_another_mix_of_labels_is_no_shift():
    """The labeller is surer of class 0, which is frequent among photographs and rare among samples."""
    rng, exceeded = np.random.default_rng(3), {"weighted": 0, "unweighted": 0}
    for _ in range(200):
        sides = [rng.random(size) < share for size, share in ((1000, 0.3), (400, 0.6))]
        a, b = (np.where(side, 0.6, 0.8) + rng.uniform(-0.15, 0.15, len(side)) for side in sides)
        weights = label_weights(*(side.astype(int) for side in sides))
        exceeded["weighted"] += ks_distance(a, b, weights=weights) > ks_floor(1 / (weights**2).sum(), len(b))
        exceeded["unweighted"] += distance(a, b) > ks_floor(len(a), len(b))
    assert exceeded["weighted"] <= 12
    assert exceeded["unweighted"] > 190


def test_labels_that_no_photograph_has_have_no_weight():
    assert label_weights(np.array([0, 0, 1]), np.array([1, 2, 2, 0])).tolist() == [0.25, 0.25, 0.5]
    assert label_weights(np.array([0, 0]), np.array([1])).tolist() == [0.5, 0.5]


def test_a_few_photographs_with_a_rare_label_do_not_decide():
    held_out, generated = np.repeat([0, 1], [998, 2]), np.repeat([0, 1], 500)
    weights = label_weights(held_out, generated)
    assert weights[-2:].sum() < 0.05
    assert 1 / (weights**2).sum() > 500


def add_confidence(out, *, low):
    """Make the labels a classifier's, at least `low` confident on samples and 0.7 on photographs; some are unsure."""
    rng = np.random.default_rng(2)
    for path, lowest in ((out / "shards" / "labels.parquet", 0.7), (out / "runs" / "first" / "labels.parquet", low)):
        labels = pl.read_parquet(path)
        sure = rng.uniform(lowest, 1, len(labels))
        probabilities = pl.Series("p_gender", np.stack([sure, 1 - sure], 1).tolist(), dtype=pl.List(pl.Float32))
        is_unsure = pl.Series(sure < 0.73)
        gender = pl.when(~is_unsure).then("gender").alias("gender")
        name = pl.lit("classifier@1a2b3c4d").alias("labeller")
        replace_table(path, labels.with_columns(probabilities, gender, name, pl.lit("classifier").alias("method")))
    accuracies = {"attribute": ["gender"], "method": ["classifier"], "labeller": ["classifier@1a2b3c4d"], "n": [600]}
    values = {"accuracy": [0.9], "balanced_accuracy": [0.9], "unsure": [0.1], "selected": [True]}
    replace_table(out / "shards" / "labellers.parquet", pl.DataFrame(accuracies | values))


def test_a_labeller_that_is_less_sure_of_samples_is_a_warning(world):
    out = world()
    add_confidence(out, low=0.55)
    text = page_text(out)
    (row,) = sql.ask(sql.connect(Workspace(out)), "confidence_shift").to_dicts()
    assert (row["attribute"], row["method"], row["generated"]) == ("gender", "classifier", 400)
    assert row["statistic"] > 3 * row["floor"]
    assert row["unsure_generated"] == pytest.approx(0.4, abs=0.08)
    assert row["unsure_held_out"] == pytest.approx(0.1, abs=0.05)
    assert "confidence on the samples differs" in text
    assert re.search(r"mean probability of its labels: gender 7\d\.\d.% instead of 8\d\.\d.%", text)
    assert "How confident is the labeller about the samples?" in text


def test_equally_sure_labels_are_no_warning(world):
    out = world()
    add_confidence(out, low=0.7)
    assert "confidence on the samples differs" not in page_text(out)


def test_a_classifiers_labels_of_real_faces_are_no_warning(world):
    out = world(synthetic=False)
    assert "No answer" in page_text(out)
    add_confidence(out, low=0.7)
    for name in ("skin_tone", "age"):  # the classifier labels gender alone
        for folder in ("shards", "runs/first"):
            path = out / folder / "labels.parquet"
            replace_table(path, pl.read_parquet(path).drop(name))
    build(out, force=True)
    assert "No answer" not in page_text(out)
