"""The metrics of detectors: those of AI-Face's own code for the same predictions, and their uncertainty."""

import json
from pathlib import Path
from statistics import NormalDist

import numpy as np
import polars as pl
import pytest

import sql
from pipeline.detection.import_predictions import import_predictions
from reports.estimation import detection_metrics
from reports.estimation.detection import metric_rows
from reports.estimation.detection_metrics import write_metrics
from shards.workspace import Workspace

pytestmark = pytest.mark.usefixtures("full_computations")

REFERENCE = Path(__file__).parents[4] / "shared" / "reference" / "detector-fairness"
HEADER = "gender,skin_group,age,target,logit\n"
# measure -> factor from ours to the reference's unit
EXACT = {"f_efpr": 1, "f_eo": 1, "fpr_gap": 100, "auc_gap": 100, "error_rate_gap": 100, "f_oae": 100}
ROUNDED = {"f_dp": 100, "f_meo": 100}  # to three decimals of a percentage


def import_rows(workspace: Workspace, rows: list[str], *, name: str = "x", force: bool = False) -> None:
    """Import a CSV of these rows as the predictions of the detector `name`."""
    csv = workspace.root / f"{name}.csv"
    csv.write_text(HEADER + "\n".join(rows))
    import_predictions(workspace, csv, name=name, force=force)


def random_predictions(rng: np.random.Generator, n: int, *, shift: float = 0.0) -> pl.DataFrame:
    """Predictions for n faces; the logits of those with dark skin are `shift` higher."""
    group, fake = rng.integers(0, 3, n), rng.random(n) < 0.5
    logit = np.where(fake, 1.0, -1.0) + shift * (group == 2) + rng.normal(size=n)
    skin_groups = np.array(["light", "medium", "dark"])[group]
    genders = rng.choice(["female", "male"], n)
    columns = {"gender": genders, "skin_group": skin_groups, "age": "adult", "target": fake.astype(int), "logit": logit}
    return pl.DataFrame(columns)


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="no reference data here")
@pytest.mark.parametrize("name", ["biased", "balanced"])
def test_metrics_equal_those_of_the_official_code(tmp_path, name):
    workspace = Workspace(tmp_path)
    import_predictions(workspace, REFERENCE / f"{name}_predictions.csv", name=name)
    expected, connection = json.loads((REFERENCE / f"{name}_expected.json").read_text()), sql.connect(workspace)
    utility = {(r["attribute"], r["group"]): r for r in sql.ask(connection, "utility", detector=name).to_dicts()}
    fairness = {r["attribute"]: r for r in sql.ask(connection, "fairness", detector=name).to_dicts()}
    for measure, value in expected["overall"].items():
        ours = utility["all", "all"][measure.replace("acc", "accuracy")]
        assert ours == pytest.approx(value, abs=1e-9), measure
    for measure, factor in EXACT.items():
        for attribute, value in expected[measure + "_pct" * (factor > 1)].items():
            assert factor * fairness[attribute][measure] == pytest.approx(value, abs=1e-9), (measure, attribute)
    for measure, factor in ROUNDED.items():
        for attribute, value in expected[f"{measure}_pct_3dp"].items():
            assert factor * fairness[attribute][measure] == pytest.approx(value, abs=5.1e-4), (measure, attribute)
    groups = {group: row for (attribute, group), row in utility.items() if attribute != "all"}
    assert len(expected["groups_5dp"]) == len(groups)
    for group, row in expected["groups_5dp"].items():
        for measure, value in row.items():
            ours = groups[group.replace(",", "-")][{"acc": "accuracy"}.get(measure, measure)]
            assert ours == pytest.approx(value, abs=5.1e-6), (group, measure)


def test_a_group_with_one_target_only_is_named_and_excluded(tmp_path):
    workspace, table = Workspace(tmp_path), random_predictions(np.random.default_rng(0), 400)
    table = table.filter((pl.col("skin_group") != "dark") | (pl.col("target") == 1))
    table.write_csv(tmp_path / "mine.csv")
    import_predictions(workspace, tmp_path / "mine.csv")
    connection = sql.connect(workspace)
    row = sql.ask(connection, "fairness", detector="mine").filter(attribute="skin_group").row(0, named=True)
    assert (row["groups"], row["excluded_groups"]) == (2, "dark")
    rates = {r["group"]: r for r in sql.ask(connection, "utility", detector="mine", attribute="skin_group").to_dicts()}
    assert rates["dark"]["fpr"] is None
    assert rates["dark"]["auc"] is None
    assert rates["dark"]["tpr"] > 0.5
    assert row["f_dp"] == pytest.approx(abs(rates["light"]["positive_rate"] - rates["medium"]["positive_rate"]))
    metrics = write_metrics(workspace, connection, detector="mine")
    assert metrics.filter(group="dark", measure="fpr").select("value", "low", "high").row(0) == (None, None, None)
    assert metrics.filter(group="dark", measure="tpr")["low"][0] < rates["dark"]["tpr"]


def test_intervals_never_claim_certainty(tmp_path):
    workspace = Workspace(tmp_path)
    import_rows(workspace, [f"female,light,adult,{i % 2},{2 * (i % 2) - 1 + i / 1000}" for i in range(60)])
    metrics = write_metrics(workspace, sql.connect(workspace), detector="x").filter(attribute="all")
    perfect = {row["measure"]: row for row in metrics.to_dicts()}
    assert perfect["fpr"]["value"] == 0
    assert 0.05 < perfect["fpr"]["high"] < 0.2
    assert (perfect["auc"]["value"], perfect["auc"]["low"]) == (1.0, None)
    import_rows(workspace, [f"female,light,adult,{i % 2},0.5" for i in range(60)], force=True)
    connection = sql.connect(workspace)
    assert sql.ask(connection, "detection_metrics").is_empty()  # those of the previous predictions are removed
    row = sql.ask(connection, "utility", detector="x", attribute="all").row(0, named=True)
    assert (row["auc"], row["eer"]) == (0.5, None)


def test_ties_count_half_and_unknown_groups_only_overall(tmp_path):
    workspace = Workspace(tmp_path)
    import_rows(
        workspace,
        ["female,light,adult,1,2", "female,light,,1,0", "male,,adult,0,0", "male,dark,,0,-1", ",dark,adult,1,-1"],
    )
    connection = sql.connect(workspace)
    overall = sql.ask(connection, "utility", detector="x", attribute="all").row(0, named=True)
    # fakes 2, 0, -1 against reals 0, -1: 2 + 1.5 + 0.5 of 6 pairs
    assert overall["auc"] == pytest.approx(4 / 6)
    assert (overall["fpr"], overall["tpr"]) == (
        0.5,
        pytest.approx(2 / 3),
    )  # a logit of 0, a probability of 0.5, is fake
    genders = sql.ask(connection, "utility", detector="x", attribute="gender")
    assert genders.select("group", "n").rows() == [("female", 2), ("male", 2)]


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_intervals_cover_the_truth_and_the_floor_separates_chance_from_bias(tmp_path, monkeypatch, shift):
    monkeypatch.setattr(metric_rows, "SCORE_PERMUTATIONS", 40)
    monkeypatch.setattr(detection_metrics, "TRIVIAL_DETECTORS", ())
    rng, repetitions = np.random.default_rng(2), []
    for number in range(12):
        workspace = Workspace(tmp_path / str(number))
        workspace.root.mkdir()
        csv = workspace.root / "d.csv"
        random_predictions(rng, 1500, shift=shift).drop("gender", "age").write_csv(csv)
        import_predictions(workspace, csv)
        rows = write_metrics(workspace, sql.connect(workspace), detector="d").filter(attribute="skin_group")
        repetitions.append({row["measure"]: row for row in rows.filter(pl.col("group").is_null()).to_dicts()})
    normal = NormalDist()
    truth = normal.cdf(shift - 1) - normal.cdf(-1)  # the FPR's gap; the TPR's is smaller
    covered = [row["fpr_gap"]["low"] <= truth <= row["fpr_gap"]["high"] for row in repetitions]
    assert sum(covered) >= 10
    shifts = (0, 0, shift)  # of the groups
    threshold = min(t / 1000 for t in range(3000) if np.mean([normal.cdf(s - 1 - t / 1000) for s in shifts]) <= 0.05)
    truth = min(normal.cdf(s + 1 - threshold) for s in shifts)
    worst = [row["worst_tpr_at_fpr_5"] for row in repetitions]
    assert sum(row["low"] <= truth <= row["high"] for row in worst) >= 10
    for measure in ("f_meo", "equalized_odds_ratio", "worst_tpr_at_fpr_5"):
        rows = [row[measure] for row in repetitions]
        beyond = [(row["value"] > row["floor"]) == (measure == "f_meo") for row in rows]
        assert sum(beyond) == 12 if shift else sum(beyond) <= 3, measure
    assert all(row[m]["low"] <= row[m]["value"] <= row[m]["high"] for row in repetitions for m in metric_rows.FAIRNESS)
