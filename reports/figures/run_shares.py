"""Figure: the shares of one attribute's groups in several runs, side by side."""

from collections.abc import Sequence
from typing import Any

import matplotlib
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports.figures.canvas import (
    INK,
    MUTED,
    RUN_COLOURS,
    STYLE,
    WIDTH,
    add_share_axis,
    add_text,
    add_title,
    group_label,
    label_width,
    new_canvas,
)
from reports.formats import percent, short
from shards.attributes import Attribute

MARKERS = (("D", "◆"), ("s", "■"), ("^", "▲"), ("v", "▼"))  # of the runs, in their order: in the plot, in the legend
PLOT_END = 3.85  # inches from the left, of the intervals


def run_shares(rows: pl.DataFrame, attribute: Attribute, *, runs: Sequence[str], estimate: str) -> Figure:
    """Generated shares of an attribute's groups in each of `runs`, with 95 % intervals and the training shares.

    `rows` are those of `estimates` of all runs, whose best_share and best_reference are of one `estimate` (raw,
    corrected).
    """
    with matplotlib.rc_context(STYLE):
        labels = {name: group_label(name, attribute) for name in rows["group"].unique(maintain_order=True)}
        left = label_width(labels.values())
        height = 0.13 + 0.14 * len(runs)  # of one group
        top = 0.46 + 0.17 * len(runs)
        bottom = top + height * len(labels)
        figure, axes = new_canvas(bottom + 0.42)
        add_title(axes, attribute.title)
        for number, run in enumerate(runs):
            text = f"{MARKERS[number][1]} {short(run, 34)}"
            add_text(axes, left, 0.45 + 0.17 * number, text, size=8, colour=RUN_COLOURS[number])
        reach = rows.select(pl.max_horizontal("best_share_high", "best_reference").max()).item() or 1
        inches = (PLOT_END - left) / max(reach, 0.05)
        add_share_axis(axes, left=left, inches=inches, reach=reach, top=top, bottom=bottom)
        for index, (name, label) in enumerate(labels.items()):
            y, group = top + height * index, rows.filter(group=name)
            add_text(axes, 0.04, y + height / 2 - 0.06, label)
            for number, run in enumerate(runs):
                row = group.filter(run=run)
                if len(row) and row["best_share"][0] is not None:
                    _add_run(
                        axes, y + 0.07 + 0.14 * number, row.row(0, named=True), number=number, left=left, inches=inches
                    )
        sizes = [rows.filter(run=run).select(pl.max("n")).item() or 0 for run in runs]
        caption = f"{estimate}; n = {' and '.join(f'{size:,}' for size in sizes)}; lines: 95 % intervals; | training"
        add_text(axes, 0.04, bottom + 0.28, caption, size=7.2, colour=MUTED)
    return figure


def _add_run(axes: Axes, y: float, row: dict[str, Any], *, number: int, left: float, inches: float) -> None:
    """One run's share of one group: its marker, interval and number, and a tick at the training share."""
    colour = RUN_COLOURS[number]
    low, value, high = (left + row[f"best_share{end}"] * inches for end in ("_low", "", "_high"))
    axes.plot([low, high], [y, y], color=colour, lw=1.6, alpha=0.55, solid_capstyle="butt")
    axes.plot([value], [y], MARKERS[number][0], color=colour, ms=4.5, mew=0)
    if row["best_reference"] is not None:
        axes.plot([left + row["best_reference"] * inches] * 2, [y - 0.06, y + 0.06], color=INK, lw=1.1)
    add_text(axes, WIDTH - 0.05, y, percent(row["best_share"]), size=7.5, colour=colour, ha="right")
