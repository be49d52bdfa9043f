"""Figure: training and generated shares of one attribute's groups."""

from collections.abc import Mapping
from typing import Any

import matplotlib
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports.figures.canvas import (
    GENERATED,
    LABEL_WIDTHS,
    MUTED,
    ROW_HEIGHT,
    STYLE,
    TRAIN,
    add_share_axis,
    add_text,
    add_title,
    group_label,
    label_width,
    new_canvas,
    verdict_style,
)
from reports.formats import percent, ratio
from shards.attributes import Attribute

PLOT_END = 2.6  # inches from the left, of the intervals
COLUMNS = (3.1, 3.88, 4.36)  # inches from the left, of the right ends of the numbers


def group_shares(rows: pl.DataFrame, attribute: Attribute) -> Figure:
    """Training and generated shares of one attribute's groups with 95 % intervals: its rows of `estimates`."""
    with matplotlib.rc_context(STYLE):
        n, reference_n = rows["n"][0], rows["reference_n"][0]
        colours = {item.name: item.colour for item in attribute.classes if item.colour}
        has_ribbon = len(colours) == len(attribute.classes)
        top = 0.98 if has_ribbon else 0.46
        bottom = top + ROW_HEIGHT * len(rows)
        figure, axes = new_canvas(bottom + 0.42)
        add_title(axes, attribute.title)
        _add_legend(axes)
        if has_ribbon:
            _add_ribbon(axes, 0.52, "training", dict(rows.select("group", "reference").iter_rows()), colours)
            _add_ribbon(axes, 0.73, "generated", dict(rows.select("group", "share").iter_rows()), colours)
        reach = rows.select(pl.max_horizontal("share_high", "reference_high").max()).item()
        labels = {group: group_label(group, attribute) for group in rows["group"]}
        indent = 0.22 if colours else 0  # of the labels, to the right of the colours
        left = label_width(labels.values()) + indent
        inches = (PLOT_END - left) / max(reach, 0.05)
        add_share_axis(axes, left=left, inches=inches, reach=reach, top=top, bottom=bottom)
        for index, row in enumerate(rows.iter_rows(named=True)):
            y = top + ROW_HEIGHT * (index + 0.45)
            add_text(axes, 0.04 + indent, y, labels[row["group"]])
            if colour := colours.get(row["group"]):
                axes.barh(y, 0.16, 0.16, 0.04, color=colour, edgecolor=MUTED, lw=0.4)
            _add_group(axes, y, row, left=left, inches=inches)
        caption = f"n = {reference_n:,} training, {n:,} generated; lines: 95 % intervals"
        add_text(axes, 0.04, bottom + 0.28, caption, size=7.2, colour=MUTED)
    return figure


def _add_legend(axes: Axes) -> None:
    """The legend, each entry above its column of numbers."""
    legend = (("● training", TRAIN), ("◆ generated", GENERATED), ("ratio", MUTED))
    for (text, colour), column in zip(legend, COLUMNS, strict=True):
        add_text(axes, column, 0.21, text, size=8, colour=colour, ha="right")


def _add_group(axes: Axes, y: float, row: dict[str, Any], *, left: float, inches: float) -> None:
    """One group: the shares as markers and numbers, their ratio; a share of 1 is `inches` wide."""
    sides = (
        ("reference", y - 0.045, TRAIN, "o", COLUMNS[0]),
        ("share", y + 0.045, GENERATED, "D", COLUMNS[1]),
    )
    for side, marker_y, colour, marker, column in sides:
        add_text(axes, column, y, percent(row[side]), colour=colour, ha="right")
        if row[side] is not None:
            low, value, high = (left + row[key] * inches for key in (f"{side}_low", side, f"{side}_high"))
            axes.plot([low, high], [marker_y, marker_y], color=colour, lw=1.6, alpha=0.55, solid_capstyle="butt")
            axes.plot([value], [marker_y], marker, color=colour, ms=4.5, mew=0)
    text = "?" if row["verdict"] == "inconclusive" else ratio(row["ratio"])
    add_text(axes, COLUMNS[2], y, text, ha="right", **verdict_style(row))


def _add_ribbon(
    axes: Axes, y: float, side: str, shares: Mapping[str, float | None], colours: Mapping[str, str]
) -> None:
    """The classes in their own colours, one after another, each as wide as its share."""
    left = LABEL_WIDTHS[0]
    add_text(axes, left - 0.1, y, side, size=7.5, colour=MUTED, ha="right")
    for name, colour in colours.items():
        width = (shares.get(name) or 0) * (COLUMNS[2] - LABEL_WIDTHS[0])
        axes.barh(y, width, 0.15, left, color=colour)
        left += width
