"""The report's figures, each an SVG and a PNG of its own; on the page the SVG takes the page's colours."""

import base64
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import matplotlib

matplotlib.use("Agg")  # no display is needed, and none is looked for

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator
from PIL import Image

from shards.atomic_io import atomic_write

MONK = "f6ede4 f3e7db f7ead0 eadaba d7bd96 a07e56 825c43 604134 3a312a 292420"  # skin tones 1 to 10
TONES = {str(tone): f"#{colour}" for tone, colour in enumerate(MONK.split(), 1)}
# Okabe and Ito's blue and vermilion: told apart with any colour vision; shapes differ as well
INK, MUTED, LINE, BAND, TRAIN, GENERATED = "#1f2329", "#6a717b", "#dfe3e8", "#eef1f4", "#0072b2", "#d55e00"
THEME = {INK: "ink", MUTED: "muted", LINE: "line", BAND: "band", TRAIN: "train", GENERATED: "generated"}
RUNS = (GENERATED, "#009e73", "#cc79a7", "#56b4e9")  # of several runs: the same authors' colours
THEME |= {colour: f"run{number}" for number, colour in enumerate(RUNS, 1) if number > 1}
TITLES = {
    "gender": "Gender",
    "skin_group": "Skin group",
    "age": "Age",
    "skin_tone": "Skin tone (Monk)",
    "intersection": "Gender and skin group",
    "intersection_age": "Gender, skin group and age",
}
STYLE = {
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
WIDTH, ROW = 4.4, 0.25  # inches: a phone shows it whole, at a readable size
PLOT, COLUMNS, RATIOS = (1.22, 2.6), (3.1, 3.88, 4.36), (1.3, 3.45)  # inches from the left
TICKS = (0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1)
RATIO_TICKS = {0.1: "1/10", 0.25: "1/4", 0.5: "1/2", 1: "same", 2: "×2", 4: "×4", 10: "×10"}


def save(figure: Figure, folder: Path, name: str, drawn: bool) -> str:
    """Writes `<name>.svg` and `<name>.png` (200 dots an inch) into `folder`; returns the SVG.

    One of drawn faces says so, wherever it is copied to.
    """
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": name}):  # equal bytes for equal input
        if drawn:
            figure.text(
                1 - 0.05 / WIDTH, 0.06 / figure.get_figheight(), "drawn faces", size=7.2, color=MUTED, ha="right"
            )
        svg = io.BytesIO()
        figure.savefig(svg, format="svg", metadata={"Date": None})
        with atomic_write(folder / f"{name}.svg") as file:
            file.write(svg.getvalue())
        with atomic_write(folder / f"{name}.png") as file:
            figure.savefig(file, format="png", dpi=200, metadata={"Software": None})
    return svg.getvalue().decode()


def inline(svg: str, description: str) -> str:
    """An SVG for the page: colours as the page's variables, a description for those who can't see it."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.S)
    opening, rest = svg.split(">", 1)
    opening = re.sub(r' (width|height)="[^"]*pt"', "", opening) + f' role="img" aria-label={quoteattr(description)}'
    rest = rest.replace("fill: #ffffff", "fill: none")
    for colour, name in THEME.items():
        rest = rest.replace(colour, f"var(--{name})")
    return f"{opening}>{rest}"


def short(text: object, length: int = 20) -> str:
    """Any text as a label: printable, on one line, no longer than `length`."""
    text = "".join(c if c.isprintable() else " " for c in str(text)[: length + 1])
    return text if len(text) <= length else text[: length - 1] + "…"


def percent(share: float | None) -> str:
    """A share as a person writes it: 62 %, 4.1 %, 0.3 %, 0 %; a dash where there is none."""
    if share is None:
        return "–"
    return f"{100 * share:.0f} %" if share >= 0.0995 or share == 0 else f"{100 * share:.1f} %"


def times(ratio: float | None) -> str:
    """A ratio as the figures write it: ×0.37, ×1.2, ×0; a dash where there is none."""
    if ratio is None:
        return "–"
    return f"×{ratio:.1f}" if ratio >= 0.95 else f"×{ratio:.2f}" if ratio >= 0.095 else f"×{ratio:.1g}"


def canvas(height: float) -> tuple[Figure, Axes]:
    """A figure whose one invisible axes is measured in inches from the upper left corner."""
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(height, 0))
    axes.axis("off")
    return figure, axes


def put(axes: Axes, x: float, y: float, text: str, size: float = 8.5, colour: str = INK, **style: str) -> None:
    axes.text(x, y, text, size=size, color=colour, va="center", **style)


def name_of(row: dict[str, Any]) -> str:
    return short(row["group"]).replace("-", ", ", row["attribute"] == "intersection")


def emphasis(row: dict[str, Any]) -> dict[str, str]:
    """A verdict that claims a change stands out; one that does not is grey."""
    told = row["verdict"] in ("amplified", "reduced")
    return {"weight": "bold" if told else "normal", "colour": INK if told else MUTED}


def comparison(rows: pl.DataFrame) -> Figure:
    """Training and generated shares of one attribute's groups with 95 % intervals: rows of `estimates`."""
    with matplotlib.rc_context(STYLE):
        attribute, n, m = rows["attribute"][0], rows["n"][0], rows["reference_n"][0]
        top = 0.98 if attribute == "skin_tone" else 0.46
        bottom = top + ROW * len(rows)
        figure, axes = canvas(bottom + 0.42)
        put(axes, 0.04, 0.2, TITLES.get(attribute, attribute), 10.5, weight="bold")
        put(axes, COLUMNS[0], 0.21, "● training", 8, TRAIN, ha="right")
        put(axes, COLUMNS[1], 0.21, "◆ generated", 8, GENERATED, ha="right")
        put(axes, COLUMNS[2], 0.21, "ratio", 8, MUTED, ha="right")
        if attribute == "skin_tone":
            ribbon(axes, 0.52, "training", rows["reference"])
            ribbon(axes, 0.73, "generated", rows["share"])
        reach = rows.select(pl.max_horizontal("share_high", "reference_high").max()).item()
        inches = (PLOT[1] - PLOT[0]) / max(reach, 0.05)
        for tick in TICKS:
            if tick == 0 or reach / 4 < tick <= reach:
                x = PLOT[0] + tick * inches
                axes.plot([x, x], [top - 0.08, bottom - 0.02], color=LINE, lw=0.8, zorder=0)
                put(axes, x, bottom + 0.06, percent(tick), 7, MUTED, ha="center")
        for index, row in enumerate(rows.iter_rows(named=True)):
            comparison_row(axes, top + ROW * (index + 0.45), row, inches)
        said = f"n = {m:,} training, {n:,} generated; lines: 95 % intervals"
        put(axes, 0.04, bottom + 0.28, said, 7.2, MUTED)
    return figure


def comparison_row(axes: Axes, y: float, row: dict[str, Any], inches: float) -> None:
    """One group: its name, both sides' shares as marks and numbers, their ratio; `inches` to a share of 1."""
    put(axes, 0.04, y, name_of(row))
    if row["attribute"] == "skin_tone" and row["group"] in TONES:
        axes.barh(y, 0.3, 0.16, 0.3, color=TONES[row["group"]], edgecolor=MUTED, lw=0.4)
    sides = (
        ("reference", y - 0.045, TRAIN, "o", COLUMNS[0]),
        ("share", y + 0.045, GENERATED, "D", COLUMNS[1]),
    )
    for side, at, colour, marker, column in sides:
        put(axes, column, y, percent(row[side]), colour=colour, ha="right")
        if row[side] is not None:
            low, value, high = (PLOT[0] + row[key] * inches for key in (f"{side}_low", side, f"{side}_high"))
            axes.plot([low, high], [at, at], color=colour, lw=1.6, alpha=0.55, solid_capstyle="butt")
            axes.plot([value], [at], marker, color=colour, ms=4.5, mew=0)
    said = "?" if row["verdict"] == "inconclusive" else times(row["ratio"])
    put(axes, COLUMNS[2], y, said, ha="right", **emphasis(row))


def side_by_side(rows: pl.DataFrame, runs: Sequence[str], estimate: str) -> Figure:
    """Shares of one attribute's groups that each of the `runs` drew, with 95 % intervals, above what it was shown.

    Rows of `estimates` of all of them, by the same estimate.
    """
    with matplotlib.rc_context(STYLE):
        names = rows["group"].unique(maintain_order=True).to_list()
        height, left, right = 0.13 + 0.14 * len(runs), 1.22, 3.85
        top = 0.46 + 0.17 * len(runs)
        bottom = top + height * len(names)
        figure, axes = canvas(bottom + 0.42)
        put(axes, 0.04, 0.2, TITLES[rows["attribute"][0]], 10.5, weight="bold")
        for number, run in enumerate(runs):
            put(axes, left, 0.45 + 0.17 * number, f"{MARKS[number][1]} {short(run, 34)}", 8, RUNS[number])
        reach = rows.select(pl.max_horizontal("best_share_high", "best_reference").max()).item() or 1
        inches = (right - left) / max(reach, 0.05)
        for tick in TICKS:
            if tick == 0 or reach / 4 < tick <= reach:
                x = left + tick * inches
                axes.plot([x, x], [top - 0.08, bottom - 0.02], color=LINE, lw=0.8, zorder=0)
                put(axes, x, bottom + 0.06, percent(tick), 7, MUTED, ha="center")
        for index, name in enumerate(names):
            y = top + height * index
            put(axes, 0.04, y + height / 2 - 0.06, name_of(rows.filter(group=name).row(0, named=True)))
            for number, run in enumerate(runs):
                one = rows.filter((pl.col("group") == name) & (pl.col("run") == run))
                if len(one) and one["best_share"][0] is not None:
                    run_row(axes, y + 0.07 + 0.14 * number, one.row(0, named=True), number, left, inches)
        put(
            axes,
            0.04,
            bottom + 0.28,
            f"{estimate}; n = {' and '.join(sizes(rows, runs))}; lines: 95 % intervals; | shown to it",
            7.2,
            MUTED,
        )
    return figure


MARKS = (("D", "◆"), ("s", "■"), ("^", "▲"), ("v", "▼"))  # of several runs, in their order


def sizes(rows: pl.DataFrame, runs: Sequence[str]) -> list[str]:
    """How many faces of each run were labelled."""
    return [f"{rows.filter(run=run)['n'].max() or 0:,}" for run in runs]


def run_row(axes: Axes, y: float, row: dict[str, Any], number: int, left: float, inches: float) -> None:
    """One run's share of one group: its mark, interval and number, and a tick where what it was shown lies."""
    colour = RUNS[number]
    low, value, high = (left + row[f"best_share{end}"] * inches for end in ("_low", "", "_high"))
    axes.plot([low, high], [y, y], color=colour, lw=1.6, alpha=0.55, solid_capstyle="butt")
    axes.plot([value], [y], MARKS[number][0], color=colour, ms=4.5, mew=0)
    if row["best_reference"] is not None:
        axes.plot([left + row["best_reference"] * inches] * 2, [y - 0.06, y + 0.06], color=INK, lw=1.1)
    put(axes, WIDTH - 0.05, y, percent(row["best_share"]), 7.5, colour, ha="right")


def ribbon(axes: Axes, y: float, side: str, shares: pl.Series) -> None:
    """The ten tones in their own colours, side by side, as wide as their shares."""
    put(axes, PLOT[0] - 0.1, y, side, 7.5, MUTED, ha="right")
    left = PLOT[0]
    for share, colour in zip(shares.fill_null(0), TONES.values(), strict=False):
        width = share * (COLUMNS[2] - PLOT[0])
        axes.barh(y, width, 0.15, left, color=colour)
        left += width


def ratios(rows: pl.DataFrame) -> Figure:
    """Generated over training share of every group, log scale, 95 % intervals: all rows of one run."""
    with matplotlib.rc_context(STYLE):
        attributes = rows["attribute"].unique(maintain_order=True).to_list()
        height = 0.75 + 0.2 * len(rows) + 0.3 * len(attributes)
        figure, axes = canvas(height)
        axes.fill_betweenx([0.24, height - 0.36], place(0.8), place(1.25), color=BAND, lw=0, zorder=0)
        for tick, text in RATIO_TICKS.items():
            colour = MUTED if tick == 1 else LINE
            axes.plot([place(tick)] * 2, [0.24, height - 0.36], color=colour, lw=0.8, zorder=1)
            put(axes, place(tick), 0.12, text, 7, MUTED, ha="center")
        y = 0.2
        for attribute in attributes:
            y += 0.3
            put(axes, 0.04, y - 0.04, TITLES.get(attribute, attribute), weight="bold")
            for row in rows.filter(attribute=attribute).iter_rows(named=True):
                y += 0.2
                ratio_row(axes, y, row)
        said = f"n = {rows['reference_n'].max():,} training, {rows['n'].max():,} generated"
        put(axes, 0.04, height - 0.16, f"{said}; 95 % intervals; band: 0.8 to 1.25", 7.2, MUTED)
    return figure


def place(ratio: float) -> float:
    """Where a ratio lies in `ratios`, in inches; below a tenth and above tenfold at the ends."""
    log = np.log10(np.clip(ratio, 0.1, 10))
    return float(RATIOS[0] + (log + 1) / 2 * (RATIOS[1] - RATIOS[0]))


def ratio_row(axes: Axes, y: float, row: dict[str, Any]) -> None:
    """One group: its name, its ratio with the interval, its verdict."""
    put(axes, 0.12, y, name_of(row), 8)
    colour = MUTED if row["verdict"] == "inconclusive" else GENERATED
    low, high = row["ratio_low"], np.inf if row["ratio_high"] is None else row["ratio_high"]
    axes.plot([place(low), place(high)], [y, y], color=colour, lw=1.6, alpha=0.6, solid_capstyle="butt")
    if low < 0.1:  # the interval goes on beyond the scale
        axes.plot([RATIOS[0]], [y], "<", color=colour, ms=4, mew=0)
    if high > 10:
        axes.plot([RATIOS[1]], [y], ">", color=colour, ms=4, mew=0)
    if row["ratio"] is not None and 0.1 < row["ratio"] < 10:
        axes.plot([place(row["ratio"])], [y], "D", color=colour, ms=4.4, mew=0)
    said = "too few to tell" if row["verdict"] == "inconclusive" else row["verdict"]
    put(axes, RATIOS[1] + 0.12, y, said, 8, **emphasis(row))


def curves(steps: pl.DataFrame, columns: dict[str, str], title: str) -> Figure:
    """Lines over the steps of question `loss_curves`, each named at its end: `columns` is column -> name."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.5))
        axes = figure.add_axes((0.09, 0.17, 0.62, 0.68))
        axes.set_title(title, loc="left", size=9.5, weight="bold", x=-0.1, color=INK)
        ends = []
        for (column, name), colour in zip(columns.items(), (TRAIN, GENERATED), strict=True):
            values = steps[column].to_numpy()
            axes.plot(steps["step"], values, color=colour, lw=1.4)
            ends.append((float(values[-1]), name, colour))
        bottom, top = axes.get_ylim()
        gap, last = (top - bottom) / 9, -np.inf
        for value, name, colour in sorted(ends):  # names never overlap, even where lines end together
            last = max(value, last + gap)
            place_at = {"xy": (1.02, last), "xycoords": ("axes fraction", "data"), "va": "center"}
            axes.annotate(f"{name} {value:.2f}", **place_at, color=colour, size=8)
        axes.grid(axis="y", color=LINE, lw=0.8)
        axes.tick_params(length=0, labelsize=7.5)
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_locator(FixedLocator(np.linspace(0, steps["step"].max(), 5)[1:]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
        axes.set_xlabel("step", size=7.5)
    return figure


def grid(images: Sequence[bytes], columns: int = 8, side: int = 64, form: str = "png") -> bytes:
    """A picture of encoded images, each shown at `side` pixels, row by row, with a gap of 2."""
    rows, step = -(-len(images) // columns), side + 2
    sheet = Image.new("RGBA", (min(columns, len(images)) * step - 2, rows * step - 2))
    for index, data in enumerate(images):
        with Image.open(io.BytesIO(data)) as image:
            face = image.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
        sheet.paste(face, (index % columns * step, index // columns * step))
    file = io.BytesIO()
    sheet.save(file, form, **({"quality": 88, "method": 2} if form == "webp" else {}))
    return file.getvalue()


def sheet(images: Sequence[bytes]) -> str:
    """The same for the page, as a data URL: WebP is a tenth of PNG's size."""
    return "data:image/webp;base64," + base64.b64encode(grid(images, form="webp")).decode()
