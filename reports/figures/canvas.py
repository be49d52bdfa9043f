"""Shared parts of all figures: colours, style, a canvas measured in inches, saving and embedding."""

import io
import re
from collections.abc import Iterable
from typing import Any
from xml.sax.saxutils import quoteattr

import matplotlib

matplotlib.use("Agg")  # needs no display

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports.formats import percent, short
from shards.attributes import Attribute

matplotlib.rcdefaults()  # a `matplotlibrc` in the working folder could have LaTeX draw text, which can run code

# Okabe and Ito's blue and vermilion, distinguishable with any colour vision; the markers also differ
INK, MUTED, LINE, BAND, TRAIN, GENERATED = "#1f2329", "#6a717b", "#dfe3e8", "#eef1f4", "#0072b2", "#d55e00"
RUN_COLOURS = (GENERATED, "#009e73", "#cc79a7", "#56b4e9")  # of several runs: the same authors' colours
PAGE_COLOURS = {INK: "ink", MUTED: "muted", LINE: "line", BAND: "band", TRAIN: "train", GENERATED: "generated"}
PAGE_COLOURS |= {colour: f"run{number}" for number, colour in enumerate(RUN_COLOURS, 1) if number > 1}
STYLE: dict[Any, Any] = {  # matplotlib settings
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "savefig.transparent": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
WIDTH, ROW_HEIGHT = 4.4, 0.25  # inches: a phone shows the full width at a readable size
LABEL_WIDTHS = (1.22, 1.75)  # inches, of the column of labels: at least and at most
LETTER_WIDTH = 0.066  # inches, of a label's letter on average
TICK_DISTANCE = 0.24  # inches, of two tick labels at least
SHARE_TICKS = (0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1)


def new_canvas(height: float) -> tuple[Figure, Axes]:
    """Create a figure of `height` inches with one invisible axes, measured in inches from the upper left corner."""
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(height, 0))
    axes.axis("off")
    return figure, axes


def add_text(axes: Axes, x: float, y: float, text: str, *, size: float = 8.5, colour: str = INK, **style: Any) -> None:
    """Add text at a position in inches; `style` is passed to `Axes.text`."""
    axes.text(x, y, text, size=size, color=colour, va="center", **style)


def add_share_axis(axes: Axes, *, left: float, inches: float, reach: float, top: float, bottom: float) -> None:
    """Add grid lines and tick labels of shares up to `reach`; a share of 1 is `inches` wide."""
    last = -np.inf
    for tick in SHARE_TICKS:
        x = left + tick * inches
        if (tick == 0 or reach / 4 < tick <= reach) and x - last > TICK_DISTANCE:
            last = x
            axes.plot([x, x], [top - 0.08, bottom - 0.02], color=LINE, lw=0.8, zorder=0)
            add_text(axes, x, bottom + 0.06, percent(tick), size=7, colour=MUTED, ha="center")


def group_label(group: str, attribute: Attribute) -> str:
    """The label of a group of an attribute; of a cross, such as "a, b" for `a-b`."""
    text = short(group, 24)
    return text.replace("-", ", ", len(attribute.cross) - 1) if attribute.cross else text


def label_width(labels: Iterable[str]) -> float:
    """The width of the column of these labels, in inches."""
    needed = 0.14 + LETTER_WIDTH * max(map(len, labels))
    return min(max(needed, LABEL_WIDTHS[0]), LABEL_WIDTHS[1])


def add_title(axes: Axes, title: str) -> None:
    """Add the title of a figure, a long one in smaller letters and shortened, to the left of the legend."""
    text = short(title, 36)
    add_text(axes, 0.04, 0.2, text, size=10.5 * min(1, 27 / len(text)), weight="bold")


def verdict_style(row: dict[str, Any]) -> dict[str, Any]:
    """The style of a verdict: a change is bold, everything else grey."""
    is_change = row["verdict"] in ("amplified", "reduced")
    return {"weight": "bold" if is_change else "normal", "colour": INK if is_change else MUTED}


def save(figure: Figure, files: dict[str, bytes], name: str, *, synthetic: bool) -> str:
    """Add `<name>.svg` and `<name>.png` (200 dots per inch) to the `files` of a page, and return the SVG.

    A figure of synthetic faces is marked as such, even when it is copied elsewhere.
    """
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": name}):  # equal bytes for equal input
        if synthetic:
            x, y = 1 - 0.05 / WIDTH, 0.06 / figure.get_figheight()
            figure.text(x, y, "synthetic faces", size=7.2, color=MUTED, ha="right")
        svg, png = io.BytesIO(), io.BytesIO()
        figure.savefig(svg, format="svg", metadata={"Date": None})
        fast = {"compress_level": 1}  # an eighth larger, in a third of the time
        figure.savefig(png, format="png", dpi=200, metadata={"Software": None}, pil_kwargs=fast)
    files |= {f"{name}.svg": svg.getvalue(), f"{name}.png": png.getvalue()}
    return svg.getvalue().decode()


def inline_svg(svg: str, description: str) -> Markup:
    """Prepare an SVG for embedding: in the page's colours, with a description for screen readers.

    The result is safe markup: matplotlib escapes the text inside the SVG, and the description is quoted here.
    """
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.S)
    opening, rest = svg.split(">", 1)
    opening = re.sub(r' (width|height)="[^"]*pt"', "", opening) + f' role="img" aria-label={quoteattr(description)}'
    rest = rest.replace("fill: #ffffff", "fill: none")
    for colour, name in PAGE_COLOURS.items():
        rest = rest.replace(colour, f"var(--{name})")
    return Markup(f"{opening}>{rest}")
