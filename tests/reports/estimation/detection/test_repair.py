"""Thresholds by group: the best of all combinations, evaluated on faces that they were not fitted to."""

import itertools

import numpy as np
import polars as pl
import pytest

import sql
from pipeline.detection.import_predictions import import_predictions
from reports.estimation.detection.faces import EvaluatedFaces, Groups
from reports.estimation.detection.repair import fit_thresholds, refitted_metrics, repair, split_halves
from reports.estimation.detection_metrics import update_metrics
from shards.workspace import Workspace


def rates(logits, is_fake, threshold):
    called = logits >= threshold
    return called[is_fake].mean(), called[~is_fake].mean()


@pytest.mark.parametrize("seed", range(8))
def test_fitted_thresholds_are_the_best_of_all_combinations(seed):
    rng = np.random.default_rng(seed)
    numbers, is_fake = np.arange(24) % 3, np.arange(24) // 3 % 2 == 1
    logits = np.round(rng.normal(size=24) + is_fake + 0.5 * numbers, 1)  # with ties
    order = np.argsort(-logits, kind="stable")
    fitted = fit_thresholds(logits[order], is_fake[order], numbers=numbers[order], groups=3)

    def balanced(threshold, faces=slice(None)):
        tpr, fpr = rates(logits[faces], is_fake[faces], threshold)
        return (tpr + 1 - fpr) / 2

    single = max(np.unique(logits), key=lambda threshold: (balanced(threshold), threshold))
    assert fitted["single"].tolist() == [single] * 3
    target = rates(logits, is_fake, single)
    faces = [numbers == group for group in range(3)]

    def distances(combination):
        each = [rates(logits[own], is_fake[own], t) for own, t in zip(faces, combination, strict=True)]
        return [max(abs(tpr - target[0]), abs(fpr - target[1])) for tpr, fpr in each]

    def accuracies(combination):
        return [balanced(t, own) for own, t in zip(faces, combination, strict=True)]

    combinations = list(itertools.product(*([*np.unique(logits[own]), np.inf] for own in faces)))
    best = min((round(max(d), 9), round(sum(d), 9), -sum(accuracies(c))) for c in combinations for d in [distances(c)])
    found = fitted["equalized"]
    assert (max(distances(found)), sum(distances(found)), -sum(accuracies(found))) == pytest.approx(best)
    best = max((min(a), sum(a)) for a in map(accuracies, combinations))
    found = accuracies(fitted["worst_group"])
    assert (min(found), sum(found)) == pytest.approx(best)


def test_a_group_without_fakes_has_the_threshold_of_all_faces():
    logits, is_fake = np.array([3.0, 2.0, 1.0, 0.0]), np.array([True, False, True, False])
    fitted = fit_thresholds(logits, is_fake, numbers=np.array([0, 0, 0, 1]), groups=2)
    assert {thresholds[1] for thresholds in fitted.values()} == {fitted["single"][0]}
    assert fit_thresholds(logits, np.ones(4, bool), numbers=np.zeros(4, int), groups=1) is None


def half_decisions(faces, fitted_on, numbers):
    """Decisions on the faces of the other half, by variant; None if the half lacks real faces or fakes."""
    order = np.argsort(-faces.logits, kind="stable")
    fitted = order[fitted_on[order]]
    thresholds = fit_thresholds(faces.logits[fitted], faces.is_fake[fitted], numbers=numbers[fitted], groups=2)
    return thresholds and {variant: faces.logits >= values[numbers] for variant, values in thresholds.items()}


@pytest.mark.parametrize("count", [30, 300])
def test_thresholds_are_fitted_again_in_every_replicate(count):
    rng = np.random.default_rng(count)
    is_fake, numbers, shuffle = rng.random(count) < 0.4, rng.integers(0, 2, count), rng.permutation(count)
    logits = np.round(rng.normal(size=count) + is_fake + 0.5 * numbers, 1)  # with ties
    weights = np.vstack([np.ones(count), rng.poisson(1, (30, count))]).astype(np.uint8)
    groups = Groups(["female", "male"], numbers.astype(np.int16))
    faces = EvaluatedFaces(is_fake, logits, weights, {"gender": groups})
    half = split_halves(is_fake, numbers, shuffle=shuffle)
    replicates = refitted_metrics(faces, groups, half)
    for number, counts in enumerate(weights):
        chosen = np.repeat(np.arange(count), counts)
        own = EvaluatedFaces(is_fake[chosen], logits[chosen], weights[:, chosen], {})
        sides = [half_decisions(own, half[chosen] == side, numbers[chosen]) for side in (0, 1)]
        for variant in ("single", "equalized", "worst_group"):
            found = {measure: values[number] for measure, values in replicates[variant].items()}
            if not all(sides):
                assert np.isnan(found["tpr"])
                continue
            called = np.where(half[chosen] == 0, sides[1][variant], sides[0][variant])
            assert found["tpr"] == pytest.approx(called[own.is_fake].mean())
            assert found["fpr"] == pytest.approx(called[~own.is_fake].mean())
            assert found["accuracy"] == pytest.approx((called == own.is_fake).mean())
            each = [numbers[chosen] == group for group in range(2)]
            rates = [[called[group & side].mean() for group in each] for side in (own.is_fake, ~own.is_fake)]
            assert found["equalized_odds_difference"] == pytest.approx(np.nanmax(np.ptp(rates, 1)))
            balanced = (np.array(rates[0]) + 1 - rates[1]) / 2
            assert found["worst_balanced_accuracy"] == pytest.approx(np.nanmin(balanced))
    rows, _ = repair(faces, groups, shuffle=shuffle, rng=rng)
    for row in rows:  # in the first replicate, every face has weight 1
        assert row["value"] == pytest.approx(replicates[row["variant"]][row["measure"]][0])


def test_halves_have_equally_many_faces_of_each_group_and_target():
    rng = np.random.default_rng(0)
    numbers, is_fake, shuffle = rng.integers(0, 4, 201), rng.random(201) < 0.3, rng.permutation(201)
    half = split_halves(is_fake, numbers, shuffle=shuffle)
    for group, target in itertools.product(range(4), (False, True)):
        members = half[(numbers == group) & (is_fake == target)]
        assert abs(members.sum() - len(members) / 2) <= 0.5
    moved = rng.permutation(201)  # the half depends on the hash alone, not on the order of the faces
    assert (split_halves(is_fake[moved], numbers[moved], shuffle=shuffle[moved]) == half[moved]).all()


def test_repair_makes_a_biased_detector_fairer_and_says_what_it_costs(tmp_path):
    rng = np.random.default_rng(1)
    group, fake = rng.integers(0, 2, 3000), rng.random(3000) < 0.5
    logit = np.where(fake, 1.0, -1.0) + 1.5 * group + rng.normal(size=3000)
    table = {"gender": np.array(["female", "male"])[group], "target": fake.astype(int), "logit": logit}
    pl.DataFrame(table).write_csv(tmp_path / "x.csv")
    workspace = Workspace(tmp_path)
    import_predictions(workspace, tmp_path / "x.csv")
    update_metrics(workspace, detector="x")
    connection = sql.connect(workspace)
    rows = {
        (row["variant"], row["measure"]): row
        for row in sql.ask(connection, "repair", detector="x", attribute="gender").to_dicts()
    }
    before, after = (rows[variant, "equalized_odds_difference"] for variant in ("none", "equalized"))
    fairness = sql.ask(connection, "fairness", detector="x").filter(attribute="gender")
    assert before["value"] == pytest.approx(fairness["equalized_odds_difference"][0])
    assert before["value"] > 0.25 > 0.1 > after["value"]
    assert after["change_low"] <= after["change"] <= after["change_high"] < -0.15
    assert after["change"] == pytest.approx(after["value"] - before["value"])
    for variant in ("equalized", "worst_group"):
        row = rows[variant, "worst_balanced_accuracy"]
        assert row["low"] > rows["none", "worst_balanced_accuracy"]["high"]
        assert row["value"] < row["high"]
    thresholds = sql.ask(connection, "repair_thresholds", detector="x").filter(variant="worst_group")
    female, male = thresholds.sort("group")["threshold"]
    assert male - female == pytest.approx(1.5, abs=0.6)
    constant = sql.ask(connection, "repair", detector="(majority)", measure="balanced_accuracy")
    assert set(constant["value"]) == {0.5}


def test_thresholds_are_not_evaluated_on_the_faces_that_they_were_fitted_to(tmp_path):
    rng = np.random.default_rng(2)
    group, fake = rng.integers(0, 2, 160), rng.random(160) < 0.5
    logit = rng.normal(size=160)  # says nothing of the target: what fits one half is of no use in the other
    table = {"gender": np.array(["female", "male"])[group], "target": fake.astype(int), "logit": logit}
    pl.DataFrame(table).write_csv(tmp_path / "x.csv")
    import_predictions(Workspace(tmp_path), tmp_path / "x.csv")
    update_metrics(Workspace(tmp_path), detector="x")
    connection = sql.connect(Workspace(tmp_path))
    answer = sql.ask(connection, "repair", detector="x", attribute="gender", measure="balanced_accuracy")
    assert answer.filter(variant="worst_group")["value"][0] < 0.54
