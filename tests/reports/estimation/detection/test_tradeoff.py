"""Pareto fronts of detectors, and the metrics of bootstrap replicates that they are uncertain by."""

import numpy as np
import polars as pl
import pytest

import sql
from pipeline.detection.import_predictions import import_predictions
from reports.estimation.bootstrap_metrics import utility_metrics
from reports.estimation.detection import faces as evaluated
from reports.estimation.detection.faces import EvaluatedFaces, score_cells
from reports.estimation.detection.operating_points import group_rates, replicate_cuts
from reports.estimation.detection_metrics import update_metrics
from shards.workspace import Workspace

# signal, bias and scale of the logits
SHIFTS = {"fair": (1, 0, 1), "accurate": (2, 0.8, 1), "beaten": (1, 0.8, 1), "twice": (0.6, 1.5, 1)}
SHIFTS |= {"rescaled": (2, 0.8, 3)}  # orders the faces as `accurate` does


@pytest.fixture(scope="module")
def connection(tmp_path_factory):
    """Five detectors of the same faces, of which two are worse than others in utility and in fairness."""
    root, rng = tmp_path_factory.mktemp("tradeoff"), np.random.default_rng(0)
    group, fake, noise = rng.integers(0, 2, 1200), rng.random(1200) < 0.5, rng.normal(size=1200)
    workspace = Workspace(root)
    for name, (signal, bias, scale) in SHIFTS.items():
        logit = scale * (signal * (2 * fake - 1) + bias * group + noise)
        table = {"gender": np.array(["female", "male"])[group], "target": fake.astype(int), "logit": logit}
        pl.DataFrame(table).write_csv(root / f"{name}.csv")
        import_predictions(workspace, root / f"{name}.csv")
        update_metrics(workspace, detector=name)
    return sql.connect(workspace)


@pytest.mark.parametrize("fairness", ["equalized_odds_difference", "worst_tpr"])
@pytest.mark.parametrize("utility", ["auc", "tpr"])
def test_a_front_has_the_detectors_that_only_earlier_fronts_dominate(connection, utility, fairness):
    rows = sql.ask(connection, "tradeoff", utility=utility, fairness=fairness).to_dicts()
    sign = -1 if fairness == "equalized_odds_difference" else 1
    points = {row["detector"]: np.array([row["utility"], sign * row["fairness"]]) for row in rows}
    assert len(points) == len(SHIFTS) + 3

    def dominators(name, among):
        return {o for o in among if (points[o] >= points[name]).all() and (points[o] > points[name]).any()}

    left, front = set(points), 0
    by_name = {row["detector"]: row for row in rows}
    while left:
        front += 1
        first = {name for name in left if not dominators(name, left)}
        assert {name for name in left if by_name[name]["front"] == front} == first
        left -= first
    for name, row in by_name.items():
        assert row["dominated_by"] == (", ".join(sorted(dominators(name, points))) or None)
        assert 0 <= row["front_share"] <= 1


def test_the_share_on_the_front_is_that_of_paired_replicates(connection):
    rows = {row["detector"]: row for row in sql.ask(connection, "tradeoff").to_dicts()}
    assert rows["accurate"]["front_share"] == rows["rescaled"]["front_share"] == 1
    # its AUC is always that of the same faces, so that it is never on the front by chance
    assert rows["beaten"]["front_share"] < 0.01
    text = """select detector, measure, replicates from tradeoff_points
        where point = 'fpr_5' and attribute in ('all', 'gender')"""
    stored = {(d, m): np.array(r) for d, m, r in sql.select(connection, text).rows()}
    auc, gap = (np.stack([stored[name, measure] for name in rows]) for measure in ("auc", "equalized_odds_difference"))
    name = list(rows).index("fair")
    better = (auc >= auc[name]) & (gap <= gap[name]) & ((auc > auc[name]) | (gap < gap[name]))
    assert rows["fair"]["front_share"] == pytest.approx(1 - better.any(0).mean())
    assert np.corrcoef(stored["fair", "auc"], stored["beaten", "auc"])[0, 1] > 0.5


def faces_of(rng, count, *, digits=6):
    """Faces of two groups whose weights are all 1 in the first replicate."""
    fake, numbers = rng.random(count) < 0.4, rng.integers(-1, 2, count).astype(np.int16)
    logits = np.round(rng.normal(size=count) + fake + 0.5 * numbers, digits)
    weights = np.vstack([np.ones(count), rng.poisson(1, (3, count))]).astype(np.uint8)
    groups = {"gender": evaluated.Groups(["female", "male"], numbers)}
    return EvaluatedFaces(fake, logits, weights, groups)


def group_metrics(faces):
    groups = faces.groups["gender"]
    cells = score_cells(faces, groups)
    counts = np.stack([cells.count(cells.codes, weights) for weights in faces.weights])
    return [utility_metrics(counts[:, cells.group(n)], cells, group=n) for n in range(len(groups.names))]


def test_metrics_of_merged_cells_are_nearly_those_of_all_logits(monkeypatch):
    faces = faces_of(np.random.default_rng(0), 4000)
    merged = group_metrics(faces)
    monkeypatch.setattr(evaluated, "MAX_CELLS", 10_000)
    exact = group_metrics(faces)
    for ours, theirs in zip(merged, exact, strict=True):
        for name in ("tpr", "fpr", "accuracy", "positive_rate"):
            assert ours[name] == pytest.approx(theirs[name])
        for name in ("auc", "average_precision", "eer", "calibration_error"):
            assert ours[name] == pytest.approx(theirs[name], abs=2e-3), name
        assert ours["auc"] == pytest.approx(theirs["auc"], abs=1e-4)


@pytest.mark.parametrize("digits", [6, 1])
def test_thresholds_are_set_again_in_every_replicate(digits):
    faces = faces_of(np.random.default_rng(1), 500, digits=digits)
    cuts = replicate_cuts(faces)
    rates = group_rates(faces, faces.groups["gender"], cuts)
    for number, weights in enumerate(faces.weights.astype(float)):
        for point, bound in (("fpr_1", 0.01), ("fpr_5", 0.05), ("tpr_95", 0.95)):
            side = faces.is_fake if point == "tpr_95" else ~faces.is_fake
            total = (weights * side).sum()
            reached = [(weights * (side & (faces.logits >= t))).sum() >= bound * total for t in faces.logits]
            within = [(weights * (side & (faces.logits >= t))).sum() <= bound * total for t in faces.logits]
            chosen = faces.logits[reached].max() if point == "tpr_95" else faces.logits[within].min(initial=np.inf)
            for group in range(2):
                fakes = weights * (faces.is_fake & (faces.groups["gender"].numbers == group))
                expected = (fakes * (faces.logits >= chosen)).sum() / fakes.sum()
                assert rates[point]["tpr"][group, number] == pytest.approx(expected), (point, number)
