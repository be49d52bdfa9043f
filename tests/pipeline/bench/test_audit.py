"""Simulated audits: intervals hold the truth whatever the labeller does, and are never much wider than without it."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from pipeline.bench import audit, audit_faces
from pipeline.bench.audit_worlds import AuditScenario, measure_audits, measure_labelled_faces
from pipeline.bench.context import BenchContext, WorldsConfig
from pipeline.labelling import embedded
from reports.estimation.worlds import simulate_population
from shards.audit import DESIGNS


@pytest.mark.parametrize(
    "scenario",
    [
        AuditScenario(classes=2, accuracy=0.6, labels=100, design="stratified"),
        AuditScenario(classes=3, accuracy=0.97, labels=300, raters=3),
        AuditScenario(classes=5, accuracy=0.9, labels=100, raters=3, design="active"),
        AuditScenario(classes=10, accuracy=0.75, labels=300, raters=0),
    ],
)
def test_intervals_hold_the_truth_in_simulated_audits(scenario):
    coverage = measure_audits(scenario, 40, seed=7, replicates=250)
    assert coverage.covered["powered"] >= 0.92
    assert coverage.rare["powered"] >= 0.9
    assert coverage.covered["corrected"] < 0.85
    assert coverage.width["powered"] <= 1.05 * coverage.width["human"]
    assert coverage.wider == 0


def test_an_accurate_labeller_saves_a_third_of_the_labels():
    coverage = measure_audits(AuditScenario(classes=5, accuracy=0.9, labels=300), 20, seed=3, replicates=250)
    assert (coverage.width["powered"] / coverage.width["human"]) ** 2 < 2 / 3


def test_audits_are_resampled_from_labelled_faces():
    population = simulate_population(0)
    coverage = measure_labelled_faces(population, AuditScenario(3, 0, 100, 0), 20, attribute="race")
    assert coverage.covered["powered"] >= 0.9
    assert coverage.width["powered"] < coverage.width["human"]


def test_a_benchmark_has_four_rows_for_each_number_of_classes(monkeypatch, tmp_path):
    monkeypatch.setattr(audit, "CLASSES", (2,))
    monkeypatch.setattr(audit, "ACCURACIES", (0.9,))
    monkeypatch.setattr(audit, "LABELS", (300,))
    monkeypatch.setattr(audit, "worker_pool", lambda count, preload: ThreadPoolExecutor(count))
    monkeypatch.setattr(audit, "synthetic_rows", lambda context: ())
    context = BenchContext(tmp_path, device=None, worlds=WorldsConfig(count=2))
    coverage, width, saving, rates = audit.bench_audit(context)
    measured = measure_audits(AuditScenario(2, 0.9, 300), 2, seed=2)
    assert f"{2 * len(DESIGNS) * len(audit.RATERS)} simulated audits" in coverage.note
    assert 0 <= coverage.value <= 100
    assert width.value <= 1.05 * width.baseline
    expected = 300 * (measured.common_width["powered"] / measured.common_width["human"]) ** 2
    assert saving.value == pytest.approx(expected)
    assert replace(saving, note="").ratio == pytest.approx(300 / expected)
    assert rates.title.startswith("detection rates, 2 groups: true rates in 95 % intervals by people's labels, vs ")
    assert rates.note.startswith(f"{2 * len(audit.RATE_PLANS) * len(audit.RATE_ACCURACIES) * len(DESIGNS)} worlds; ")


def test_known_attributes_as_answers_correct_the_shares_of_blurred_faces(monkeypatch, tmp_path, quick_labeller):
    monkeypatch.setattr(embedded, "load_embedded", lambda *_, **__: quick_labeller)
    monkeypatch.setattr(audit_faces, "FACES", 400)
    monkeypatch.setattr(audit_faces, "LABELS", 150)
    monkeypatch.setattr(audit_faces, "AUDITS", 1)
    rows = list(audit.synthetic_rows(BenchContext(tmp_path, device=None)))
    assert [row.title.split(",")[1].split(":")[0] for row in rows] == [" gender", " age", " skin_tone"]
    assert sum(row.value for row in rows) / 3 >= 80  # per cent of the generator's shares
