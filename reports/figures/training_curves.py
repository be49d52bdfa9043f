"""Figure: lines over the steps of a training."""

import matplotlib
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from reports.figures.canvas import GENERATED, INK, LINE, STYLE, TRAIN, WIDTH


def training_curves(steps: pl.DataFrame, columns: dict[str, str], *, title: str) -> Figure:
    """Two lines over the steps of question `loss_curves`, each labelled at its end: `columns` is column -> label."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.5))
        axes = figure.add_axes((0.09, 0.17, 0.62, 0.68))
        axes.set_title(title, loc="left", size=9.5, weight="bold", x=-0.1, color=INK)
        ends = []
        for (column, label), colour in zip(columns.items(), (TRAIN, GENERATED), strict=True):
            values = steps[column].to_numpy()
            axes.plot(steps["step"], values, color=colour, lw=1.4)
            ends.append((float(values[-1]), label, colour))
        _add_end_labels(axes, ends)
        axes.grid(axis="y", color=LINE, lw=0.8)
        axes.tick_params(length=0, labelsize=7.5)
        axes.spines["left"].set_visible(False)
        last_step = steps.select(pl.col("step").max()).item()
        axes.xaxis.set_major_locator(FixedLocator(np.linspace(0, last_step, 5)[1:].tolist()))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
        axes.set_xlabel("step", size=7.5)
    return figure


def _add_end_labels(axes: Axes, ends: list[tuple[float, str, str]]) -> None:
    """Add labels (value, label, colour) at the ends of lines; they never overlap, even if lines end together."""
    bottom, top = axes.get_ylim()
    gap, last = (top - bottom) / 9, -np.inf
    for value, label, colour in sorted(ends):
        last = max(value, last + gap)
        axes.annotate(
            f"{label} {value:.2f}",
            xy=(1.02, last),
            xycoords=("axes fraction", "data"),
            va="center",
            color=colour,
            size=8,
        )
