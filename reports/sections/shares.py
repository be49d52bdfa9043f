"""Section: training and generated shares of each attribute's groups."""

from dataclasses import dataclass

from markupsafe import Markup

from reports.figures.run_figures import RunFigures


@dataclass(frozen=True)
class Shares:
    columns: list[list[Markup]]  # figures, from left to right


def shares_section(figures: RunFigures) -> Shares | None:
    if not figures.shares:
        return None
    layout = (("gender", "skin_group", "age"), ("skin_tone",), ("intersection",))
    return Shares([[figures.shares[attribute] for attribute in column] for column in layout])
