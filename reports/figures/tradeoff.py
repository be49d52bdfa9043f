"""Figure: utility against fairness of detectors at a common threshold, with their first Pareto front."""

from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports.figures.canvas import GENERATED, INK, LINE, MUTED, STYLE, WIDTH
from reports.formats import short
from shards.workspace import TRIVIAL_DETECTORS

LEGEND_LINE = 0.17  # inches
PLOT_HEIGHT = 2.6  # inches
NUMBER_SIZE = (11, 8)  # points: the width and height that a number takes
# points from a detector to its number, the preferred place first
PLACES = [
    (radius * np.cos(np.pi * angle / 8), radius * np.sin(np.pi * angle / 8))
    for radius in range(9, 64, 6)
    for angle in (2, 6, 14, 10, 4, 12, 0, 8, 1, 3, 5, 7, 9, 11, 13, 15)
]


def tradeoff(rows: list[dict[str, Any]], *, title: str) -> Figure:
    """Draw the rows of question `tradeoff` of one evaluation set: AUC to the right, equalised-odds difference upwards.

    Detectors are numbered, and named in a list below. The lines through a point are its 95 % intervals.
    """
    with matplotlib.rc_context(STYLE):
        height = 0.35 + PLOT_HEIGHT + 0.5 + LEGEND_LINE * len(rows) + 0.1
        figure = Figure(figsize=(WIDTH, height))
        axes = figure.add_axes((0.14, 1 - (0.35 + PLOT_HEIGHT) / height, 0.82, PLOT_HEIGHT / height))
        axes.set_title(short(title, 50), loc="left", size=9.5, weight="bold", x=-0.13, color=INK)
        axes.set_xlabel("AUC", size=7.5)
        axes.set_ylabel("equalised-odds difference\nat FPR 5 % (lower is fairer)", size=7.5)
        axes.grid(color=LINE, lw=0.8)
        axes.tick_params(length=0, labelsize=7.5)
        axes.set_axisbelow(True)
        front = sorted((row["utility"], row["fairness"]) for row in rows if row["front"] == 1)
        axes.plot(*zip(*front, strict=True), color=GENERATED, lw=1.2, alpha=0.6, zorder=2)
        for number, row in enumerate(rows, 1):
            _add_detector(axes, row)
            y = (0.1 + LEGEND_LINE * (len(rows) - number + 0.5)) / height
            figure.text(0.03, y, str(number), size=8, color=_colour(row), weight="bold", va="center")
            text = f"{short(row['detector'], 44)}: front {row['front']}"
            figure.text(0.09, y, text, size=8, color=_colour(row), va="center")
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, -0.02 * high), high)
        _add_numbers(axes, rows)
    return figure


def _colour(row: dict[str, Any]) -> str:
    if row["detector"] in TRIVIAL_DETECTORS:
        return MUTED
    return GENERATED if row["front"] == 1 else INK


def _add_detector(axes: Axes, row: dict[str, Any]) -> None:
    """Draw a point with its intervals."""
    colour, x, y = _colour(row), row["utility"], row["fairness"]
    for ends, others in (("utility", [y, y]), ("fairness", [x, x])):
        if row[f"{ends}_low"] is not None:
            values = [row[f"{ends}_low"], row[f"{ends}_high"]]
            line = (values, others) if ends == "utility" else (others, values)
            axes.plot(*line, color=colour, lw=1.1, alpha=0.5, solid_capstyle="butt", zorder=3)
    axes.plot([x], [y], "o", color=colour, ms=4.6, mew=0, zorder=4)


def _add_numbers(axes: Axes, rows: list[dict[str, Any]]) -> None:
    """Write the number of each point at the nearest place that is free of other numbers and points, with a line."""
    to_points = 72 / axes.figure.dpi
    points = axes.transData.transform([(row["utility"], row["fairness"]) for row in rows]) * to_points
    low, high = axes.bbox.get_points() * to_points
    taken = list(points)
    for number, (row, point) in enumerate(zip(rows, points, strict=True), 1):
        free = (
            offset
            for offset in PLACES
            if np.all((low < point + offset) & (point + offset < high))
            and not any(np.all(np.abs(point + offset - other) < NUMBER_SIZE) for other in taken)
        )
        offset = next(free, PLACES[0])
        taken.append(point + offset)
        axes.annotate(
            str(number),
            xy=(row["utility"], row["fairness"]),
            xytext=offset,
            textcoords="offset points",
            size=8,
            color=_colour(row),
            ha="center",
            va="center",
            zorder=5,
            arrowprops={"arrowstyle": "-", "color": _colour(row), "lw": 0.5, "shrinkA": 0, "shrinkB": 0},
        )
