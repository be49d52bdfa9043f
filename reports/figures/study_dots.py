"""Figure: the values of every seed of several arms, side by side, with the means over the seeds."""

from collections.abc import Mapping, Sequence
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
    label_width,
    new_canvas,
)
from reports.figures.run_shares import MARKERS, PLOT_END
from reports.formats import percent, short

LINE_HEIGHT, DOTS_BELOW = 0.19, 0.055  # inches: height of an arm's line; distance of its dots below its interval


def study_dots(
    rows: pl.DataFrame, labels: Mapping[str, str], *, title: str, arms: Sequence[str], caption: str
) -> Figure:
    """Draw a line for each arm under each of `labels` (key -> text): a dot for each seed, the mean and its interval.

    `rows` are rows of a study's `estimates`, in which `seed` is null for the mean, with two more columns: `key`, which
    selects the label, and `reference`, the value to compare with, or null.
    """
    with matplotlib.rc_context(STYLE):
        left = label_width(labels.values())
        height = 0.13 + LINE_HEIGHT * len(arms)
        top = 0.46 + LINE_HEIGHT * len(arms)
        bottom = top + height * len(labels)
        figure, axes = new_canvas(bottom + 0.56)  # with a line for the mark of synthetic faces
        add_title(axes, title)
        for number, arm in enumerate(arms):
            colour, (_, letter) = style(number)
            add_text(axes, left, 0.45 + LINE_HEIGHT * number, f"{letter} {short(arm, 34)}", size=8, colour=colour)
        reach = rows.select(pl.max_horizontal("value", "high", "reference").max()).item() or 1
        inches = (PLOT_END - left) / max(reach, 0.05)
        add_share_axis(axes, left=left, inches=inches, reach=reach, top=top, bottom=bottom)
        for index, (key, label) in enumerate(labels.items()):
            y = top + height * index
            add_text(axes, 0.04, y + height / 2 - 0.06, label)
            for number, arm in enumerate(arms):
                arm_rows = rows.filter(key=key, arm=arm).to_dicts()
                _add_arm(axes, y + 0.07 + LINE_HEIGHT * number, arm_rows, number=number, left=left, inches=inches)
        add_text(axes, 0.04, bottom + 0.28, caption, size=7.2, colour=MUTED)
    return figure


def style(number: int) -> tuple[str, tuple[str, str]]:
    """The colour and the marker of an arm; arms that share a colour have different markers."""
    return RUN_COLOURS[number % len(RUN_COLOURS)], MARKERS[(number + number // len(RUN_COLOURS)) % len(MARKERS)]


def _add_arm(axes: Axes, y: float, rows: list[dict[str, Any]], *, number: int, left: float, inches: float) -> None:
    """Draw one arm under one label: a dot for each seed, the mean with its interval, and its value as text."""
    colour, (marker, _) = style(number)
    for row in rows:
        if row["value"] is None:
            continue
        x = left + row["value"] * inches
        if row["seed"] is not None:
            axes.plot([x], [y + DOTS_BELOW], "o", color=colour, ms=3.2, mew=0, alpha=0.6)
            continue
        if row["low"] is not None:
            ends = [left + min(max(row[end], 0), PLOT_END) * inches for end in ("low", "high")]
            axes.plot(ends, [y, y], color=colour, lw=1.4, alpha=0.55, solid_capstyle="butt")
        axes.plot([x], [y], marker, color=colour, ms=4.6, mew=0.8, mec=INK)
        if row["reference"] is not None:
            axes.plot([left + row["reference"] * inches] * 2, [y - 0.06, y + 0.06], color=INK, lw=1.1)
        add_text(axes, WIDTH - 0.05, y, percent(row["value"]), size=7.5, colour=colour, ha="right")
