"""Every figure on the page of one run."""

from dataclasses import dataclass

import duckdb
import polars as pl
from markupsafe import Markup
from matplotlib.figure import Figure

import sql
from reports.figures.canvas import inline_svg, save
from reports.figures.group_shares import group_shares
from reports.figures.ratios import group_ratios
from reports.figures.training_curves import training_curves
from reports.run_report import best_estimates
from shards.attributes import AttributeTable

CURVES = {  # file name -> (title, the columns of question `loss_curves` and their labels)
    "losses": ("Losses", {"loss_d": "discriminator", "loss_g": "generator"}),
    "discriminator": ("Discriminator's mean output", {"d_real": "real", "d_fake": "generated"}),
}
RATIO_GROUPS = 60  # in a figure of ratios, at most; an attribute with more has its own


@dataclass(frozen=True)
class RunFigures:
    """SVGs to embed into the page."""

    shares: dict[str, Markup]  # by attribute; empty without estimates
    ratios: list[Markup]  # each of some of the attributes; empty without estimates
    training: list[Markup]  # empty where no steps were recorded


def draw_run_figures(
    connection: duckdb.DuckDBPyConnection,
    files: dict[str, bytes],
    *,
    run: str,
    attributes: AttributeTable,
    synthetic: bool,
) -> RunFigures:
    """Draw every figure of a run's page, and add it to the page's `files`."""

    def finish(figure: Figure, name: str, description: str) -> Markup:
        return inline_svg(save(figure, files, name, synthetic=synthetic), description)

    rows = best_estimates(sql.ask(connection, "comparison", run=run), attributes)
    rows = rows.filter(pl.col("verdict").is_not_null())  # null where no training images are packed
    shares: dict[str, Markup] = {}
    for name, attribute in attributes.tabulated.items():
        groups = rows.filter(pl.col("attribute") == name)
        if len(groups):
            description = f"{attribute.title}: shares of training and generated faces"
            shares[name] = finish(group_shares(groups, attribute), f"comparison-{name}", description)
    ratios = []
    for number, names in enumerate(ratio_parts(rows), 1):
        description = f"Generated over training share of every group of {', '.join(attributes[n].title for n in names)}"
        figure = group_ratios(rows.filter(pl.col("attribute").is_in(names)), attributes)
        ratios.append(finish(figure, "ratios" if number == 1 else f"ratios-{number}", description))
    steps = sql.ask(connection, "loss_curves", run=run)
    training = []
    for name, (title, columns) in CURVES.items():
        recorded = steps.filter(pl.all_horizontal(pl.col("step", *columns).is_finite().fill_null(False)))
        if len(recorded):
            training.append(finish(training_curves(recorded, columns, title=title), name, title))
    return RunFigures(shares, ratios, training)


def ratio_parts(rows: pl.DataFrame) -> list[list[str]]:
    """The attributes of rows of `estimates`, in their order, divided among the figures of ratios."""
    parts: list[list[str]] = []
    groups = 0
    for name, count in rows.group_by("attribute", maintain_order=True).len().iter_rows():
        if not parts or groups + count > RATIO_GROUPS:
            parts.append([])
            groups = 0
        parts[-1].append(name)
        groups += count
    return parts
