"""Runs measure, record and keep their number of threads, and the measurement does not change the weights."""

import json
from dataclasses import replace

import pytest
import torch
import torch._dynamo.utils

from pipeline.gan.trainer import GanTrainer
from pipeline.training import lifecycle
from pipeline.training.run_directory import read_run
from shards.documents import ThreadsRecord, write_document
from shards.errors import FairfaceError
from tests.pipeline.gan.helpers import TINY, is_equal, run_weights, train_run

MEASURED = ThreadsRecord(count=1, images_per_s={"1": 500.0, "2": 400.0})


@pytest.fixture
def steps(monkeypatch) -> list[tuple[int, int]]:
    """The step and the number of threads of every call of a trainer."""
    calls, step = [], GanTrainer.step

    def counted(self, number, images, *rest):
        if len(images) == TINY.batch_size:  # not the step whose operations are counted
            calls.append((number, torch.get_num_threads()))
        return step(self, number, images, *rest)

    monkeypatch.setattr(GanTrainer, "step", counted)
    return calls


def measure(monkeypatch, record: ThreadsRecord = MEASURED) -> None:
    """Let the measurement take three steps and choose `record`."""

    def choose(time_step, **_):
        assert all(time_step(count) > 0 for count in (2, 1, 2))
        return record

    monkeypatch.setattr(lifecycle, "choose_threads", choose)


@pytest.mark.parametrize("feed", ["resident", "streaming"])
def test_a_measurement_changes_no_bit_of_the_weights(workspace, monkeypatch, steps, capsys, feed):
    random, options = torch.get_rng_state(), replace(TINY, feed=feed)
    train_run(workspace, 12, options, run="plain")
    measure(monkeypatch)
    train_run(workspace, 12, options, run="measured")
    assert steps == [(i, 1) for i in range(12)] + [(1, 2), (1, 1), (1, 2)] + [(i, 1) for i in range(12)]
    assert is_equal(run_weights(workspace, "plain", 12), run_weights(workspace, "measured", 12))
    assert torch.equal(random, torch.get_rng_state())
    assert "measured: 1 thread (measured: 500 img/s with 1, 400 img/s with 2)" in capsys.readouterr().out
    config = read_run(workspace.run("measured"))
    assert config.threads == MEASURED
    assert config.device is not None
    assert config.device.endswith(", 1 thread")


def test_a_measurement_compiles_nothing(workspace, monkeypatch):
    class Stopped(Exception):
        pass

    measure(monkeypatch)
    torch._dynamo.utils.counters.clear()
    monkeypatch.setattr(lifecycle, "_begin", lambda *_: (_ for _ in ()).throw(Stopped))
    with pytest.raises(Stopped):  # after the measurement, before the first step
        train_run(workspace, 12, replace(TINY, compile=True), run="compiled")
    assert not torch._dynamo.utils.counters["frames"]


def test_a_resumed_run_keeps_its_number_of_threads_unless_another_is_passed(workspace, monkeypatch, steps):
    measure(monkeypatch)
    monkeypatch.setattr(lifecycle, "max_threads", lambda: 2)
    before = torch.get_num_threads()
    train_run(workspace, 2, run="a", threads=2)
    train_run(workspace, 4, run="a")
    train_run(workspace, 6, run="a", threads=1)
    assert steps == [(0, 2), (1, 2), (2, 2), (3, 2), (4, 1), (5, 1)]
    assert read_run(workspace.run("a")).threads == ThreadsRecord(count=1)
    assert torch.get_num_threads() == before


def test_a_run_with_more_threads_than_cores_resumes_with_the_cores(workspace, monkeypatch, steps, capsys):
    monkeypatch.setattr(lifecycle, "max_threads", lambda: 2)
    train_run(workspace, 2, run="a", threads=3)
    train_run(workspace, 3, run="a")
    assert [count for _, count in steps] == [3, 3, 2]
    assert "a: 2 threads instead of 3" in capsys.readouterr().out


@pytest.mark.parametrize("count", [0, -2])
def test_an_impossible_number_is_refused_in_one_line(workspace, count):
    train_run(workspace, 2, run="a")
    path = workspace.run("a").config
    path.write_text(json.dumps(json.loads(path.read_text()) | {"threads": {"count": count}}))
    with pytest.raises(FairfaceError, match=rf"is damaged \(threads: {count} threads\)"):
        train_run(workspace, 3, run="a")


def test_a_run_of_an_older_version_keeps_all_cores(workspace, monkeypatch, steps):
    train_run(workspace, 2, run="a")
    config = read_run(workspace.run("a"))
    write_document(workspace.run("a").config, replace(config, threads=None))
    monkeypatch.setattr(lifecycle, "max_threads", lambda: 2)
    train_run(workspace, 3, run="a")
    assert steps[-1] == (2, 2)


def test_the_number_of_threads_is_not_part_of_a_runs_name(workspace):
    names = {train_run(workspace, 2, threads=threads).config.name for threads in (None, 1, 2)}
    assert len(names) == 1
