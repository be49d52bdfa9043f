"""The times of the metrics of many evaluated faces are those of a tenth as many."""

import pytest

from pipeline.bench import metrics
from pipeline.bench.context import BenchContext, SizesConfig
from shards.workspace import Workspace


def test_metrics_questions_and_page_are_timed(tmp_path):
    seconds = metrics.time_metrics(str(tmp_path / "evaluated"), 300)
    assert len(seconds) == 3
    assert all(value > 0 for value in seconds.values())
    assert Workspace(tmp_path / "evaluated" / "out").detector(metrics.DETECTOR).metrics_document.exists()


def test_each_part_has_a_row_and_so_has_the_memory(monkeypatch, tmp_path):
    monkeypatch.setattr(metrics, "run_in_process", lambda _, root, count: ({"page": count / 1000}, 2 * count * 10**6))
    page, memory = metrics.bench_metrics(BenchContext(tmp_path, None, SizesConfig(evaluated_faces=3000)))
    assert page.title == "page of 3,000 evaluated faces, vs 300"
    assert (page.value, page.baseline, page.ratio) == pytest.approx((3, 0.3, 10))
    assert (memory.value, memory.baseline, memory.ratio) == (6000, 600, 10)
