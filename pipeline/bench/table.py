"""The table of measurements: on the terminal, and in BENCHMARKS.md with a section for each machine."""

from collections.abc import Sequence
from datetime import date
from itertools import chain
from pathlib import Path

from pipeline.bench.measure import ROUNDS, Row
from pipeline.runtime import versions
from shards.atomic_io import open_output, read_bytes
from shards.errors import FairfaceError

HEADER = f"""# Speed

Written by `make bench`. Ours and a plain baseline alternate in the same run. Every number and every ratio is the
median of {ROUNDS} or more rounds; the ratio says how many times faster ours is. Rates are images per second. If the
baseline is ours at a smaller size, the ratio says how many times as much the larger size takes.
"""
TABLE_HEADER = ("| stage | measurement | ours | baseline | ratio | |", "|---|---|---:|---:|---:|---|")


def format_row(row: Row) -> str:
    """Return a row for the terminal."""
    baseline = " " * 23
    if row.baseline and row.ratio is not None:
        baseline = f"{format_number(row.baseline):>12} {row.ratio:8.2f} x"
    return f"{row.stage:9} {row.title:62} {format_number(row.value):>12} {row.unit:8} {baseline}  {row.note}"


def format_number(value: float) -> str:
    """Return a value with its significant digits."""
    return f"{value:,.0f}" if abs(value) >= 20 else f"{value:.1f}"


def write_section(path: Path, machine: str, *, rows: Sequence[Row], images: str) -> None:
    """Write the rows into the section `## machine` of a Markdown file.

    Sections of other machines are kept, and so are this machine's rows of stages that are not among `rows`.
    """
    try:
        sections = read_bytes(path).decode().split("\n## ")[1:] if path.is_file() else []
    except UnicodeDecodeError as error:
        raise FairfaceError(f"{path} is not a text in UTF-8: choose another file") from error
    previous = next((section for section in sections if section.startswith(f"{machine}\n")), "")
    libraries = ", ".join(
        f"{name} {number}" for name, number in versions().items() if name in ("python", "torch") or "dali" in name
    )
    about = f"{date.today().isoformat()}, {images}; {libraries}."
    section = "\n".join([f"{machine}\n", f"{about}\n", *TABLE_HEADER, *_table_lines(previous, rows)])
    others = [text.rstrip("\n") for text in sections if not text.startswith(f"{machine}\n")]
    with open_output(path) as file:
        file.write("\n## ".join([HEADER, *(f"{text}\n" for text in [*others, section])]).encode())


def _table_lines(previous: str, rows: Sequence[Row]) -> list[str]:
    """Return the lines of a table: those of `previous`, with the stages of `rows` replaced."""
    by_stage: dict[str, list[str]] = {}
    for line in previous.splitlines():
        if line.startswith("| ") and not line.startswith("| stage |"):
            by_stage.setdefault(line.split(" | ")[0][2:], []).append(line)
    by_stage |= {row.stage: [] for row in rows}
    for row in rows:
        by_stage[row.stage].append(_table_line(row))
    return list(chain(*by_stage.values()))


def _table_line(row: Row) -> str:
    unit = "" if row.unit == "img/s" else f" {row.unit}"
    baseline = "|"
    if row.baseline and row.ratio is not None:
        baseline = f"{format_number(row.baseline)}{unit} | {row.ratio:.2f}"
    return f"| {row.stage} | {row.title} | {format_number(row.value)}{unit} | {baseline} | {row.note} |"
