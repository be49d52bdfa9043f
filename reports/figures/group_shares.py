"""Figure: training and generated shares of one attribute's groups."""

from typing import Any

import matplotlib
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports.attributes import TITLES
from reports.figures.canvas import (
    GENERATED,
    MUTED,
    ROW_HEIGHT,
    STYLE,
    TONE_COLOURS,
    TRAIN,
    add_share_axis,
    add_text,
    group_label,
    new_canvas,
    verdict_style,
)
from reports.formats import percent, ratio

PLOT = (1.22, 2.6)  # inches from the left, of the intervals
COLUMNS = (3.1, 3.88, 4.36)  # inches from the left, of the right ends of the numbers


def group_shares(rows: pl.DataFrame) -> Figure:
    """Training and generated shares of one attribute's groups with 95 % intervals: rows of `estimates`."""
    with matplotlib.rc_context(STYLE):
        attribute, n, reference_n = rows["attribute"][0], rows["n"][0], rows["reference_n"][0]
        top = 0.98 if attribute == "skin_tone" else 0.46
        bottom = top + ROW_HEIGHT * len(rows)
        figure, axes = new_canvas(bottom + 0.42)
        _add_header(axes, attribute)
        if attribute == "skin_tone":
            _add_tone_ribbon(axes, 0.52, "training", rows["reference"])
            _add_tone_ribbon(axes, 0.73, "generated", rows["share"])
        reach = rows.select(pl.max_horizontal("share_high", "reference_high").max()).item()
        inches = (PLOT[1] - PLOT[0]) / max(reach, 0.05)
        add_share_axis(axes, left=PLOT[0], inches=inches, reach=reach, top=top, bottom=bottom)
        for index, row in enumerate(rows.iter_rows(named=True)):
            _add_group(axes, top + ROW_HEIGHT * (index + 0.45), row, inches)
        caption = f"n = {reference_n:,} training, {n:,} generated; lines: 95 % intervals"
        add_text(axes, 0.04, bottom + 0.28, caption, size=7.2, colour=MUTED)
    return figure


def _add_header(axes: Axes, attribute: str) -> None:
    """The title and the legend, each entry above its column of numbers."""
    add_text(axes, 0.04, 0.2, TITLES.get(attribute, attribute), size=10.5, weight="bold")
    legend = (("● training", TRAIN), ("◆ generated", GENERATED), ("ratio", MUTED))
    for (text, colour), column in zip(legend, COLUMNS, strict=True):
        add_text(axes, column, 0.21, text, size=8, colour=colour, ha="right")


def _add_group(axes: Axes, y: float, row: dict[str, Any], inches: float) -> None:
    """One group: its name, the shares as markers and numbers, their ratio; a share of 1 is `inches` wide."""
    add_text(axes, 0.04, y, group_label(row))
    if row["attribute"] == "skin_tone" and row["group"] in TONE_COLOURS:
        axes.barh(y, 0.3, 0.16, 0.3, color=TONE_COLOURS[row["group"]], edgecolor=MUTED, lw=0.4)
    sides = (
        ("reference", y - 0.045, TRAIN, "o", COLUMNS[0]),
        ("share", y + 0.045, GENERATED, "D", COLUMNS[1]),
    )
    for side, marker_y, colour, marker, column in sides:
        add_text(axes, column, y, percent(row[side]), colour=colour, ha="right")
        if row[side] is not None:
            low, value, high = (PLOT[0] + row[key] * inches for key in (f"{side}_low", side, f"{side}_high"))
            axes.plot([low, high], [marker_y, marker_y], color=colour, lw=1.6, alpha=0.55, solid_capstyle="butt")
            axes.plot([value], [marker_y], marker, color=colour, ms=4.5, mew=0)
    text = "?" if row["verdict"] == "inconclusive" else ratio(row["ratio"])
    add_text(axes, COLUMNS[2], y, text, ha="right", **verdict_style(row))


def _add_tone_ribbon(axes: Axes, y: float, side: str, shares: pl.Series) -> None:
    """The ten tones in their own colours, one after another, each as wide as its share."""
    add_text(axes, PLOT[0] - 0.1, y, side, size=7.5, colour=MUTED, ha="right")
    left = PLOT[0]
    for share, colour in zip(shares.fill_null(0), TONE_COLOURS.values(), strict=False):
        width = share * (COLUMNS[2] - PLOT[0])
        axes.barh(y, width, 0.15, left, color=colour)
        left += width
