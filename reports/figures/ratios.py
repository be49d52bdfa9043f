"""Figure: generated over training share of every group."""

from typing import Any

import matplotlib
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports.figures.canvas import (
    BAND,
    GENERATED,
    LINE,
    MUTED,
    STYLE,
    add_text,
    group_label,
    new_canvas,
    verdict_style,
)
from reports.formats import short
from shards.attributes import Attribute, AttributeTable

PLOT = (1.62, 3.45)  # inches from the left, of ratios from 0.1 to 10
TICKS = {0.1: "1/10", 0.25: "1/4", 0.5: "1/2", 1: "same", 2: "×2", 4: "×4", 10: "×10"}


def group_ratios(rows: pl.DataFrame, attributes: AttributeTable) -> Figure:
    """Generated over training share of every group, log scale, 95 % intervals: rows of `estimates` of one run."""
    with matplotlib.rc_context(STYLE):
        shown = [attributes[name] for name in rows["attribute"].unique(maintain_order=True)]
        height = 0.75 + 0.2 * len(rows) + 0.3 * len(shown)
        figure, axes = new_canvas(height)
        axes.fill_betweenx([0.24, height - 0.36], _x(0.8), _x(1.25), color=BAND, lw=0, zorder=0)
        for tick, text in TICKS.items():
            colour = MUTED if tick == 1 else LINE
            axes.plot([_x(tick)] * 2, [0.24, height - 0.36], color=colour, lw=0.8, zorder=1)
            add_text(axes, _x(tick), 0.12, text, size=7, colour=MUTED, ha="center")
        y = 0.2
        for attribute in shown:
            y += 0.3
            add_text(axes, 0.04, y - 0.04, short(attribute.title, 50), weight="bold")
            for row in rows.filter(attribute=attribute.name).iter_rows(named=True):
                y += 0.2
                _add_group(axes, y, row, attribute=attribute)
        reference_n, n = rows.select(pl.max("reference_n", "n")).row(0)
        caption = f"n = {reference_n:,} training, {n:,} generated; 95 % intervals; band: 0.8 to 1.25"
        add_text(axes, 0.04, height - 0.16, caption, size=7.2, colour=MUTED)
    return figure


def _x(ratio: float) -> float:
    """The position of a ratio in inches from the left; ratios below 0.1 and above 10 are at the ends of the scale."""
    log = np.log10(np.clip(ratio, 0.1, 10))
    return float(PLOT[0] + (log + 1) / 2 * (PLOT[1] - PLOT[0]))


def _add_group(axes: Axes, y: float, row: dict[str, Any], *, attribute: Attribute) -> None:
    """One group: its name, its ratio with the interval, its verdict."""
    add_text(axes, 0.12, y, group_label(row["group"], attribute), size=8)
    colour = MUTED if row["verdict"] == "inconclusive" else GENERATED
    low, high = row["ratio_low"], np.inf if row["ratio_high"] is None else row["ratio_high"]
    axes.plot([_x(low), _x(high)], [y, y], color=colour, lw=1.6, alpha=0.6, solid_capstyle="butt")
    if low < 0.1:  # the interval extends beyond the scale
        axes.plot([PLOT[0]], [y], "<", color=colour, ms=4, mew=0)
    if high > 10:
        axes.plot([PLOT[1]], [y], ">", color=colour, ms=4, mew=0)
    if row["ratio"] is not None and 0.1 < row["ratio"] < 10:
        axes.plot([_x(row["ratio"])], [y], "D", color=colour, ms=4.4, mew=0)
    text = "too few" if row["verdict"] == "inconclusive" else row["verdict"]
    add_text(axes, PLOT[1] + 0.12, y, text, size=8, **verdict_style(row))
