"""How speed is measured: ours and a plain baseline in turns, in one run, and the table that says so."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shards.atomic_io import atomic_write

if TYPE_CHECKING:  # a fresh process that is measured must not carry it
    import torch

ROUNDS = 3  # ours and the baseline take turns; the median of the rounds is reported


@dataclass
class Row:
    """One figure: `value` is ours, `baseline` the plain way's; `ratio` is how many times better ours is.

    Where the baseline is ours at a smaller size, the ratio is how many times as much the larger size takes.
    """

    stage: str
    figure: str
    unit: str
    value: float
    baseline: float | None = None
    ratio: float | None = None
    note: str = ""


def rate(work: Callable[[], int], device: "torch.device | None" = None) -> float:
    """Images a second of `work`, which returns how many it did."""
    started = time.perf_counter()
    count = work()
    if device and device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)
    return count / (time.perf_counter() - started)


def compare(
    stage: str,
    figure: str,
    ours: Callable,
    theirs: Callable,
    device: "torch.device | None" = None,
    note: str = "",
    rounds: int = ROUNDS,
) -> Row:
    """Runs ours and the baseline in turns and keeps the median of each one's rates, and of the rounds' ratios."""
    rates = [(rate(ours, device), rate(theirs, device)) for _ in range(rounds)]
    value, baseline = (statistics.median(side) for side in zip(*rates, strict=True))
    return Row(stage, figure, "img/s", value, baseline, statistics.median(a / b for a, b in rates), note)


def apart(function: Callable, *arguments: object) -> tuple[object, float]:
    """What a module's function returns in a fresh process of its own, and the peak memory of it and its children.

    Bytes: the sum over the processes of each one's largest resident set. Arguments and result go through JSON.
    """
    text = f"import json, sys\nfrom {function.__module__} import {function.__name__} as work\n"
    text += "if __name__ == '__main__': print(json.dumps(work(*json.loads(sys.argv[1]))))"
    words = [sys.executable, "-c", text, json.dumps(arguments)]
    process, peaks = subprocess.Popen(words, stdout=subprocess.PIPE, start_new_session=True), {}
    while process.poll() is None:
        peaks |= resident_sets(process.pid)
        time.sleep(0.02)
    printed = process.stdout.read()
    if process.returncode:
        raise RuntimeError(f"{function.__name__} failed with {process.returncode}")
    return json.loads(printed), sum(peaks.values())


def resident_sets(session: int) -> dict[int, int]:
    """Largest resident set so far, in bytes, of each process of a session."""
    peaks = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, IndexError, StopIteration):  # it ended meanwhile
            if int((folder / "stat").read_text().rpartition(")")[2].split()[3]) == session:
                lines = (folder / "status").read_text().splitlines()
                peaks[int(folder.name)] = next(int(s.split()[1]) * 1024 for s in lines if s.startswith("VmHWM"))
    return peaks


def cells(row: Row) -> str:
    """Value, baseline and ratio for a person."""
    against = f"{number(row.baseline):>12} {row.ratio:8.2f} x" if row.baseline else " " * 23
    return f"{number(row.value):>12} {row.unit:8} {against}  {row.note}"


def number(value: float) -> str:
    """A figure with the digits that tell something."""
    return f"{value:,.0f}" if abs(value) >= 20 else f"{value:.1f}"


def write_section(path: Path, title: str, rows: list[Row], images: str) -> None:
    """Puts the table under `## title`, with what an older one says of other stages; other machines' sections stay."""
    head = f"""# Speed

Written by `make bench`. Ours and a plain baseline take turns in one run; each figure is the
median of {ROUNDS} rounds or more, and the ratio (the rounds' median too) says how many times faster ours is.
Rates are images a second. Where the baseline is ours at a smaller size, the ratio says how many times as much the
larger takes.
"""
    from pipeline.runtime import versions

    old = path.read_text(encoding="utf-8").split("\n## ")[1:] if path.exists() else []
    mine = next((section for section in old if section.startswith(f"{title}\n")), "")
    used = ", ".join(
        f"{name} {number}" for name, number in versions().items() if name in ("python", "torch") or "dali" in name
    )
    lines: dict[str, list[str]] = {}  # by stage: those that were not run again stay
    for line in mine.splitlines():
        if line.startswith("| ") and not line.startswith("| stage |"):
            lines.setdefault(line.split(" | ")[0][2:], []).append(line)
    lines |= {row.stage: [] for row in rows}
    for row in rows:
        unit = "" if row.unit == "img/s" else f" {row.unit}"
        against = f"{number(row.baseline)}{unit} | {row.ratio:.2f}" if row.baseline else "|"
        lines[row.stage].append(f"| {row.stage} | {row.figure} | {number(row.value)}{unit} | {against} | {row.note} |")
    about = f"{date.today().isoformat()}, {images}; {used}."
    table = ["| stage | figure | ours | baseline | ratio | |", "|---|---|---:|---:|---:|---|", *chain(*lines.values())]
    section = "\n".join([f"{title}\n", f"{about}\n", *table])
    sections = [text.rstrip("\n") for text in old if not text.startswith(f"{title}\n")] + [section]
    with atomic_write(path) as file:
        file.write("\n## ".join([head, *(f"{section}\n" for section in sections)]).encode())
    click.echo(f"{path}: written")
