"""Rates are compared round by round, and memory is measured in a process of its own."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from pipeline.bench.measure import busy_process, compare, row_of_rounds, run_in_process


def allocate(megabytes: int) -> list[int]:
    """[process id, bytes] of a process that held that much memory."""
    return [os.getpid(), len(bytearray(megabytes << 20))]


def show_progress(result: int) -> int:
    """The result, after lines on standard output."""
    print("\r100% ▕████▏\n", flush=True)
    return result


def fail(message: str) -> None:
    raise ValueError(message)


def test_a_row_has_the_median_rates_and_the_median_ratio():
    row = row_of_rounds("pack", "title", unit="img/s", rounds=[(1, 1), (30, 10), (20, 4)], note="note")
    assert (row.value, row.baseline, row.ratio) == (20, 4, 3)


def test_ours_and_the_baseline_take_turns():
    calls = []
    row = compare(
        "feed", "title", ours=lambda: calls.append("ours") or 5, baseline=lambda: calls.append("baseline") or 5
    )
    assert calls == ["ours", "baseline"] * 3
    assert row.value > 0


def test_a_function_runs_in_another_process_and_its_memory_is_measured():
    (process, size), small = run_in_process(allocate, 1)
    assert (process != os.getpid(), size) == (True, 1 << 20)
    _, large = run_in_process(allocate, 200)
    assert large - small > 150 << 20


def test_the_result_of_a_process_is_its_last_line():
    assert run_in_process(show_progress, 5)[0] == 5


def test_a_busy_process_uses_a_core_until_the_block_ends(monkeypatch):
    started, popen = [], subprocess.Popen

    def start(*args, **kwargs):
        started.append(popen(*args, **kwargs))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", start)
    with busy_process():
        (process,) = started
        ticks = Path(f"/proc/{process.pid}/stat")
        while sum(map(int, ticks.read_text().rpartition(")")[2].split()[11:13])) < 20:  # 0.2 s of a core
            assert process.poll() is None
    assert process.returncode == -signal.SIGKILL


def test_a_failing_function_is_an_error(capfd):
    with pytest.raises(RuntimeError, match="fail failed with exit code 1"):
        run_in_process(fail, "reason")
    assert "ValueError: reason" in capfd.readouterr().err
