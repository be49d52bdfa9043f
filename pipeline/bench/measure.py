"""Measures ours and a plain baseline, alternating in the same run."""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the memory of a fresh process that imports a benchmark is measured without torch
    import torch

ROUNDS = 3  # ours and the baseline take turns; the median of the rounds is reported
POLL_SECONDS = 0.02  # between two measurements of a process's memory
BUSY_PROGRAM = "import os, sys\nwhile os.getppid() == int(sys.argv[1]): sum(range(10**6))"  # exits after its parent


@dataclass(frozen=True)
class Row:
    """One measurement.

    `ratio` is how many times better ours is. If the baseline is ours at a smaller size, it is how many times as much
    the larger size takes.
    """

    stage: str
    title: str
    unit: str
    value: float  # ours
    baseline: float | None = None
    ratio: float | None = None
    note: str = ""


def measure_rate(work: Callable[[], int], device: "torch.device | None" = None) -> float:
    """Return images per second of `work`, which returns their number."""
    started = time.perf_counter()
    count = work()
    if device and device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)
    return count / (time.perf_counter() - started)


def compare(
    stage: str,
    title: str,
    *,
    ours: Callable[[], int],
    baseline: Callable[[], int],
    device: "torch.device | None" = None,
    note: str = "",
    rounds: int = ROUNDS,
) -> Row:
    """Measure ours and the baseline alternately; return the medians of their rates and of the rounds' ratios."""
    rates = [(measure_rate(ours, device), measure_rate(baseline, device)) for _ in range(rounds)]
    return row_of_rounds(stage, title, unit="img/s", rounds=rates, note=note)


def row_of_rounds(stage: str, title: str, *, unit: str, rounds: list[tuple[float, float]], note: str = "") -> Row:
    """Return the row of (ours, baseline) rates, higher is better, of each round."""
    value, baseline = (statistics.median(side) for side in zip(*rounds, strict=True))
    ratio = statistics.median(ours / theirs for ours, theirs in rounds)
    return Row(stage, title, unit, value, baseline, ratio, note)


@contextmanager
def busy_process() -> Iterator[None]:
    """Keep a core busy with a single-threaded process while a block runs."""
    with subprocess.Popen([sys.executable, "-c", BUSY_PROGRAM, str(os.getpid())]) as process:
        try:
            yield
        finally:
            process.kill()


def run_in_process(function: Callable[..., Any], *arguments: object) -> tuple[Any, int]:
    """Call a module's function in a fresh process; return its result and the peak memory of it and its children.

    The memory, in bytes, is the sum over the processes of each one's largest resident set. Arguments and result are
    passed as JSON.
    """
    program = f"import json, sys\nfrom {function.__module__} import {function.__name__} as work\n"
    program += "if __name__ == '__main__': print(json.dumps(work(*json.loads(sys.argv[1]))))"
    command = [sys.executable, "-c", program, json.dumps(arguments)]
    peaks: dict[int, int] = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
        while process.poll() is None:
            peaks |= resident_sets(process.pid)
            time.sleep(POLL_SECONDS)
        output, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{function.__name__} failed with exit code {process.returncode}")
    # DuckDB takes a program without a file for an interactive one, and shows the progress of long queries
    return json.loads(output.splitlines()[-1]), sum(peaks.values())


def resident_sets(session: int) -> dict[int, int]:
    """Return the largest resident set so far, in bytes, of each process of a session."""
    peaks = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, IndexError, StopIteration):  # the process has ended in the meantime
            if int((folder / "stat").read_text().rpartition(")")[2].split()[3]) == session:
                lines = (folder / "status").read_text().splitlines()
                peaks[int(folder.name)] = next(int(s.split()[1]) * 1024 for s in lines if s.startswith("VmHWM"))
    return peaks
