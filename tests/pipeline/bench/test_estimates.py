"""Worlds that are simulated in parallel jobs give the same rows as in one process."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from pipeline.bench import estimates
from reports.estimation import worlds
from reports.estimation.worlds import Scenario


def test_a_row_is_the_mean_of_all_worlds_whatever_the_jobs(monkeypatch):
    monkeypatch.setattr(estimates, "CALIBRATION_SIZES", (400, 300, 500))
    monkeypatch.setattr(estimates, "WORLDS_PER_JOB", 2)
    population, scenario = worlds.simulate_population(0), Scenario("gender", ("age",), independent=True)
    with ThreadPoolExecutor(2) as pool:
        (row,) = [wait() for wait in estimates.submit_worlds(pool, population, scenarios=[scenario], count=3)]
    expected = worlds.measure_coverage(population, replace(scenario, calibration=400), worlds=3)
    assert (row.value, row.baseline) == (100 * expected.stratified, 100 * expected.one_matrix)
    assert "gender, other mix of age, which becomes independent" in row.title
    assert row.note.startswith("3 worlds, 400 calibrated; 300: ")


def test_an_attribute_shifts_alone_with_each_other_and_with_all():
    population = worlds.simulate_population(0)
    shifted = [scenario.shifted for scenario in estimates.shift_scenarios(population, "gender")]
    assert shifted == [(), ("age",), ("race",), ("age", "race")]
    pairs = estimates.independent_scenarios(population, "race")
    assert [(scenario.shifted, scenario.independent) for scenario in pairs] == [(("gender",), True), (("age",), True)]
