"""Section: training and generated shares of each attribute's groups."""

from dataclasses import dataclass

from markupsafe import Markup

from reports.figures.run_figures import RunFigures
from shards.attributes import built_in_attributes


@dataclass(frozen=True)
class Shares:
    columns: list[list[Markup]]  # figures, from left to right


def shares_section(figures: RunFigures) -> Shares | None:
    if not figures.shares:
        return None
    attributes = [built_in_attributes()[name] for name in figures.shares]
    columns = [
        [item.name for item in attributes if item.headline],
        [item.name for item in attributes if not item.headline and not item.cross],
        [item.name for item in attributes if item.cross],
    ]
    return Shares([[figures.shares[attribute] for attribute in column] for column in columns if column])
