"""Every figure on the page of one run."""

from dataclasses import dataclass

import duckdb
import polars as pl
from markupsafe import Markup
from matplotlib.figure import Figure

import sql
from reports.attributes import ATTRIBUTES, TITLES
from reports.figures.canvas import inline_svg, save
from reports.figures.group_shares import group_shares
from reports.figures.ratios import group_ratios
from reports.figures.training_curves import training_curves
from reports.run_report import best_estimates

CURVES = {  # file name -> (title, the columns of question `loss_curves` and their labels)
    "losses": ("Losses", {"loss_d": "discriminator", "loss_g": "generator"}),
    "discriminator": ("Discriminator's mean output", {"d_real": "real", "d_fake": "generated"}),
}


@dataclass(frozen=True)
class RunFigures:
    """SVGs to embed into the page."""

    shares: dict[str, Markup]  # by attribute; empty without estimates
    ratios: Markup | None
    training: list[Markup]  # empty where no steps were recorded


def draw_run_figures(
    connection: duckdb.DuckDBPyConnection, files: dict[str, bytes], *, run: str, synthetic: bool
) -> RunFigures:
    """Draw every figure of a run's page, and add it to the page's `files`."""

    def finish(figure: Figure, name: str, description: str) -> Markup:
        return inline_svg(save(figure, files, name, synthetic=synthetic), description)

    rows = best_estimates(sql.ask(connection, "comparison", run=run))
    shares: dict[str, Markup] = {}
    ratios = None
    if len(rows):
        for attribute in ATTRIBUTES:
            description = f"{TITLES[attribute]}: shares of training and generated faces"
            figure = group_shares(rows.filter(pl.col("attribute") == attribute))
            shares[attribute] = finish(figure, f"comparison-{attribute}", description)
        ratios = finish(group_ratios(rows), "ratios", "Generated over training share of every group")
    steps = sql.ask(connection, "loss_curves", run=run)
    training = []
    for name, (title, columns) in CURVES.items():
        recorded = steps.filter(pl.all_horizontal(pl.col("step", *columns).is_finite().fill_null(False)))
        if len(recorded):
            training.append(finish(training_curves(recorded, columns, title=title), name, title))
    return RunFigures(shares, ratios, training)
