"""Intervals of detection rates contain the true rates in simulated worlds; the rows of benchmarks are their means."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from statistics import fmean

import numpy as np
import pytest

from pipeline.bench import audit, estimates, rate_worlds
from pipeline.bench.context import WorldsConfig
from pipeline.bench.rate_worlds import RateScenario, measure_rates, resample_rates, with_means
from reports.estimation.worlds import simulate_population

THREE = RateScenario(2000, 1000, classes=3, accuracy=0.8)


def mean(worlds, name):
    return fmean(world[name] for world in worlds if name in world)


def test_corrected_labels_give_the_true_rates_and_raw_labels_do_not():
    worlds = measure_rates(THREE, range(60))
    assert mean(worlds, "corrected") >= 0.94
    assert mean(worlds, "raw") < 0.8
    assert mean(worlds, "exceeds") <= 0.1
    assert ["exceeds" in world for world in worlds] == [False, True] * 30


@pytest.mark.parametrize("design", ["uniform", "stratified", "active"])
def test_people_give_the_true_rates_whatever_the_labeller_does(design):
    """The labeller's errors depend on the decision: people's labels correct them, its error rates can't."""
    worlds = measure_rates(replace(THREE, samples=500, labels=100, design=design), range(40))
    assert mean(worlds, "audited") >= 0.94
    assert mean(worlds, "corrected") < 0.85
    assert mean(worlds, "exceeds") <= 0.1


@pytest.mark.parametrize("is_confounded", [False, True])
def test_decisions_on_real_faces_have_the_rates_of_the_groups(is_confounded):
    population = simulate_population(0)
    scenario = RateScenario(200_000, attribute="race", is_confounded=is_confounded)
    for number in range(4):
        world = resample_rates(population, scenario, number, generator=scenario.generator(number))
        rates = [world.called_fake[world.true == group].mean() for group in range(3)]
        assert rates == pytest.approx(world.rates, abs=0.05)
        assert (np.ptp(world.rates) == 0) == number % 2


def test_probabilities_are_scaled_to_the_means_of_their_classes():
    probabilities, true = np.array([0.2, 0.6, 0.9, 0.5]), np.array([0, 0, 1, 1])
    scaled = with_means(probabilities, true, weights=np.array([3, 1, 1, 1]), means=np.array([0.5, 0.35]))
    assert scaled[:2] @ [0.75, 0.25] == pytest.approx(0.5)
    assert scaled == pytest.approx([3 / 7, 5 / 7, 0.45, 0.25])


def test_labels_that_a_report_does_not_correct_have_no_corrected_rates(monkeypatch):
    monkeypatch.setattr(rate_worlds, "MAX_CONDITION", 1)
    (world,) = measure_rates(THREE, [3])
    assert set(world) == {"raw"}


def test_a_row_is_the_mean_of_all_worlds(monkeypatch):
    monkeypatch.setattr(estimates, "WORLDS_PER_JOB", 2)
    other = replace(THREE, accuracy=0.97)
    with ThreadPoolExecutor(2) as pool:
        jobs = estimates.submit_rates(pool, [THREE, other], count=5)
        row = estimates.rates_row("estimates", "3 groups", jobs=jobs)
    worlds = [measure_rates(scenario, range(5)) for scenario in (THREE, other)]
    assert row.value == pytest.approx(100 * mean([*worlds[0], *worlds[1]], "corrected"))
    assert row.baseline == pytest.approx(100 * mean([*worlds[0], *worlds[1]], "raw"))
    lowest = min(100 * mean(of_scenario, "corrected") for of_scenario in worlds)
    assert row.note.startswith(f"10 worlds; lowest {lowest:.0f} % (2,000 samples, 1,000 calibrated, accuracy ")
    assert "; without widening " in row.note


def test_audits_have_a_row_for_each_attribute_of_real_faces(monkeypatch, tmp_path):
    monkeypatch.setattr(audit, "CLASSES", (2,))
    monkeypatch.setattr(audit, "RATE_ACCURACIES", (0.9,))
    monkeypatch.setattr(audit, "read_population", lambda _: simulate_population(0))
    with ThreadPoolExecutor(2) as pool:
        jobs = audit.submit_audited_rates(pool, WorldsConfig(tmp_path, count=2))
        rows = [
            estimates.rates_row("audit", groups, jobs=audited, names=("audited", "corrected", "raw"))
            for groups, audited in jobs.items()
        ]
    assert [row.title.split(":")[0] for row in rows] == [
        f"detection rates, {groups}"
        for groups in ("2 groups", "real faces, gender", "real faces, age", "real faces, race")
    ]
    assert "(100 of 500 samples, " in rows[1].note or "(300 of 2,000 samples, " in rows[1].note
