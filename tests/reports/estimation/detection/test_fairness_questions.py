"""Equalised odds as in fairlearn, calibration as in scikit-learn, worst groups, and trivial detectors."""

import warnings

import numpy as np
import polars as pl
import pytest
from fairlearn.metrics import equalized_odds_difference, equalized_odds_ratio
from sklearn.calibration import calibration_curve
from sklearn.dummy import DummyClassifier
from sklearn.metrics import roc_auc_score

import sql
from pipeline.detection.import_predictions import import_predictions
from reports.estimation.detection_metrics import update_metrics
from shards.errors import FairfaceError
from shards.workspace import TRIVIAL_DETECTORS, Workspace

TONES = ("light", "medium", "dark")


def import_faces(root, name, *, group, fake, logit, force=False):
    """Import predictions of faces of three skin groups."""
    table = pl.DataFrame({"skin_group": np.array(TONES)[group], "target": fake.astype(int), "logit": logit})
    root.mkdir(exist_ok=True)
    table.write_csv(root / f"{name}.csv")
    import_predictions(Workspace(root), root / f"{name}.csv", name=name, force=force)
    return Workspace(root)


def random_faces(rng, n=300):
    """Group, target and logit of random faces; the logits have ties, also at 0."""
    group, fake = rng.integers(0, 3, n), rng.random(n) < 0.5
    return group, fake, np.round((2 * fake - 1) * rng.choice([0.2, 1, 2], n) + rng.normal(size=n), 1)


def answer(workspace, question, **params):
    return sql.ask(sql.connect(workspace), question, **params).to_dicts()


@pytest.mark.parametrize("case", ["random", "random again", "no fakes in a group", "no face called fake", "perfect"])
def test_equalised_odds_are_those_of_fairlearn(tmp_path, case):
    group, fake, logit = random_faces(np.random.default_rng(len(case)))
    if case == "no fakes in a group":
        fake = fake & (group != 2)
    if case == "no face called fake":
        logit = -np.abs(logit) - 0.1
    if case == "perfect":
        logit = np.where(fake, 1.0, -1.0)
    workspace = import_faces(tmp_path, "x", group=group, fake=fake, logit=logit)
    (row,) = answer(workspace, "fairness", detector="x")
    # a group without fakes has no TPR; fairlearn takes it to be 0, and here the group is left out and named
    compared = np.isin(group, [0, 1]) if case == "no fakes in a group" else group >= 0
    assert row["excluded_groups"] == ("dark" if case == "no fakes in a group" else None)
    arguments = {"sensitive_features": group[compared]}
    expected = equalized_odds_difference(fake[compared], logit[compared] >= 0, **arguments)
    assert row["equalized_odds_difference"] == pytest.approx(expected, abs=1e-12)
    assert row["f_meo"] == pytest.approx(expected, abs=1e-12)
    with warnings.catch_warnings(action="ignore"):
        ratio = equalized_odds_ratio(fake[compared], logit[compared] >= 0, **arguments)
    assert (row["equalized_odds_ratio"] is None) == bool(np.isnan(ratio)) == (case == "no face called fake")
    assert row["equalized_odds_ratio"] is None or row["equalized_odds_ratio"] == pytest.approx(ratio, abs=1e-12)


def test_the_calibration_error_is_that_of_scikit_learn(tmp_path):
    group, fake, logit = random_faces(np.random.default_rng(1), n=900)
    workspace = import_faces(tmp_path, "x", group=group, fake=fake, logit=logit)
    for row in answer(workspace, "calibration", detector="x"):
        faces = group == TONES.index(row["group"]) if row["attribute"] == "skin_group" else group >= 0
        probability = 1 / (1 + np.exp(-logit[faces]))
        shares, means = calibration_curve(fake[faces], probability, n_bins=15)
        sizes = np.bincount(np.searchsorted(np.linspace(0, 1, 16)[1:-1], probability))
        sizes = sizes[sizes > 0]
        assert row["ece"] == pytest.approx(np.average(np.abs(shares - means), weights=sizes))
        bias = np.average(shares * (1 - shares) / (sizes - 1), weights=sizes)
        squared = np.average((shares - means) ** 2, weights=sizes) - bias
        assert row["squared_error"] == pytest.approx(squared)
        assert row["calibration_error"] == pytest.approx(np.sqrt(max(squared, 0)))


def test_chance_does_not_bias_the_corrected_calibration_error(tmp_path):
    rng, rows = np.random.default_rng(0), []
    for number in range(30):  # detectors with perfect probabilities
        probability = rng.beta(0.7, 0.7, 300)
        fake = rng.random(300) < probability
        logit = np.log(probability / (1 - probability))
        workspace = import_faces(tmp_path, f"d{number}", group=np.zeros(300, int), fake=fake, logit=logit)
    rows = [row for row in answer(workspace, "calibration", attribute="all") if row["detector"].startswith("d")]
    squared = np.array([row["squared_error"] for row in rows])
    plug_in = np.array([row["ece"] for row in rows])
    assert abs(squared.mean()) < 3 * squared.std() / np.sqrt(len(rows))
    assert abs(squared.mean()) < (plug_in**2).mean() / 4
    assert plug_in.min() > 0.03


def test_all_groups_share_the_threshold_of_an_operating_point(tmp_path):
    group, fake, logit = random_faces(np.random.default_rng(2))
    workspace = import_faces(tmp_path, "x", group=group, fake=fake, logit=logit)
    rates = {}
    for row in answer(workspace, "operating_points", detector="x"):
        rates[row["point"], row["group"]] = row
    for point, bound in (("fpr_1", 0.01), ("fpr_5", 0.05)):
        threshold = min(t for t in logit if (logit[~fake] >= t).mean() <= bound)
        assert rates[point, "all"]["threshold"] == threshold
        for number, name in enumerate(TONES):
            found = (logit[fake & (group == number)] >= threshold).mean()
            assert rates[point, name]["tpr"] == pytest.approx(found)
            assert rates[point, name]["fpr"] == pytest.approx((logit[~fake & (group == number)] >= threshold).mean())
    assert rates["tpr_95", "all"]["threshold"] == max(t for t in logit if (logit[fake] >= t).mean() >= 0.95)
    (worst,) = answer(workspace, "worst_groups", detector="x")
    expected = min((rates["fpr_5", name]["tpr"], name) for name in TONES)
    assert (worst["worst_tpr_at_fpr_5"], worst["worst_group_at_fpr_5"]) == expected
    assert worst["is_fpr_1_resolvable"]
    few = import_faces(tmp_path / "few", "x", group=group[:150], fake=fake[:150], logit=logit[:150])
    (worst,) = answer(few, "worst_groups", detector="x")
    assert (worst["is_fpr_1_resolvable"], worst["is_fpr_5_resolvable"]) == (False, True)


@pytest.mark.parametrize(("is_fake", "point", "rate"), [(True, "fpr_5", "tpr"), (False, "tpr_95", "fpr")])
def test_no_rate_is_measured_at_an_undefined_threshold(tmp_path, is_fake, point, rate):
    group, _, logit = random_faces(np.random.default_rng(5), n=60)
    workspace = import_faces(tmp_path, "x", group=group, fake=np.full(60, is_fake), logit=logit)
    for row in answer(workspace, "operating_points", detector="x", point=point):
        assert (row["threshold"], row[rate], row["is_resolvable"]) == (None, None, False)
    update_metrics(workspace, detector="x")
    rows = answer(workspace, "detection_metrics", detector="x", measure="tpr_at_fpr_5")
    assert {(row["value"], row["low"], row["high"]) for row in rows} == {(None, None, None)}


def test_a_single_group_is_not_compared(tmp_path):
    group, fake, logit = random_faces(np.random.default_rng(6), n=90)
    fake = fake & (group == 0)  # the others have only real faces
    workspace = import_faces(tmp_path, "x", group=group, fake=fake, logit=logit)
    update_metrics(workspace, detector="x")
    for question in ("fairness", "worst_groups", "repair", "tradeoff"):
        assert answer(workspace, question) == [], question
    rows = answer(workspace, "detection_metrics")
    assert all(row["group"] for row in rows)
    assert {row["group"] for row in rows} == {"all", *TONES}


def test_trivial_detectors_stand_next_to_the_real_ones_of_every_evaluation_set(tmp_path):
    group, fake, logit = random_faces(np.random.default_rng(3), n=400)
    fake[:250] = True
    for name, faces in (("a", slice(None)), ("b", slice(None)), ("c", slice(10, None))):
        workspace = import_faces(tmp_path, name, group=group[faces], fake=fake[faces], logit=logit[faces])
    rows = {(row["evaluation_set"], row["detector"]): row for row in answer(workspace, "utility", attribute="all")}
    assert list(rows) == [(s, d) for s, own in (("a", "ab"), ("c", "c")) for d in (*own, *TRIVIAL_DETECTORS)]
    prior = DummyClassifier(strategy="prior").fit(group, fake)
    majority = rows["a", "(majority)"]
    assert majority["accuracy"] == prior.score(group, fake)
    assert majority["auc"] == roc_auc_score(fake, prior.predict_proba(group)[:, 1]) == 0.5
    assert rows["a", "(minority)"]["accuracy"] == pytest.approx(1 - majority["accuracy"])
    assert rows["c", "(majority)"]["n"] == 390
    assert abs(rows["a", "(random)"]["positive_rate"] - 0.5) < 0.1
    for row in answer(workspace, "fairness", detector="(majority)"):
        assert row["f_meo"] == row["f_dp"] == row["f_eo"] == row["equalized_odds_difference"] == 0
        assert row["equalized_odds_ratio"] == 1
    predictions = sql.select(
        sql.connect(workspace), "select key, logit from evaluated_predictions where detector = '(random)' order by 1"
    )
    assert predictions.group_by("key").agg(pl.col("logit").n_unique())["logit"].max() == 1  # a function of the key


@pytest.mark.parametrize("name", TRIVIAL_DETECTORS)
def test_no_detector_can_have_the_name_of_a_trivial_one(tmp_path, name):
    with pytest.raises(FairfaceError, match="is none of all, newest, "):
        import_faces(tmp_path, name, group=np.zeros(2, int), fake=np.array([True, False]), logit=np.array([1.0, -1.0]))


def test_the_metrics_of_trivial_detectors_are_computed_once_and_follow_their_faces(tmp_path):
    group, fake, logit = random_faces(np.random.default_rng(4), n=200)
    for name in "ab":
        workspace = import_faces(tmp_path, name, group=group, fake=fake, logit=logit)
        update_metrics(workspace, detector=name)
    first = answer(workspace, "detection_metrics", detector="(random)")
    assert {row["evaluation_set"] for row in first} == {"a"}
    stored = [pl.read_parquet(workspace.detector(name).detection_metrics) for name in "ab"]
    first_of_b = stored[1].filter(detector="(random)").drop("faces_of")
    assert stored[0].filter(detector="(random)").drop("faces_of").equals(first_of_b)
    # new predictions of one detector leave the rows that are stored with the other
    import_faces(tmp_path, "a", group=group, fake=~fake, logit=logit, force=True)
    assert {row["evaluation_set"] for row in answer(workspace, "detection_metrics", detector="(random)")} == {"b"}
    update_metrics(workspace, detector="a")
    rows = answer(workspace, "detection_metrics", detector="(majority)", measure="accuracy")
    overall = {row["evaluation_set"]: row["value"] for row in rows if row["attribute"] == "all"}
    assert overall == {"a": pytest.approx(max(fake.mean(), 1 - fake.mean())), "b": overall["a"]}
