"""Section: training and generated shares of each attribute's groups."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from reports.figures.run_figures import RunFigures
from reports.formats import conjunction
from reports.sections.table import FEW_ATTRIBUTES
from shards.attributes import Attribute, AttributeTable

COLUMNS = 3  # of figures, side by side
HEADER_ROWS = 4  # of a figure: its title and its axis are as high as this many groups


@dataclass(frozen=True)
class Shares:
    columns: list[list[Markup]]  # figures, from left to right
    folded_columns: list[list[Markup]]
    folded_titles: str  # of these, in words


def shares_section(figures: RunFigures, attributes: AttributeTable) -> Shares | None:
    shown = [attributes[name] for name in figures.shares]
    if not shown:
        return None
    first = shown
    if len(shown) > FEW_ATTRIBUTES:
        first = [item for item in shown if item.headline] or shown[:FEW_ATTRIBUTES]
    rest = [item for item in shown if item not in first]
    columns, folded_columns = (
        [[figures.shares[item.name] for item in column] for column in balanced_columns(group)]
        for group in (first, rest)
    )
    return Shares(columns, folded_columns, conjunction([item.title for item in rest]) if rest else "")


def balanced_columns(attributes: Sequence[Attribute]) -> list[Sequence[Attribute]]:
    """The attributes in order, in at most `COLUMNS` columns: cut where the highest column is as low as possible."""
    count, heights = len(attributes), [len(item.classes) + HEADER_ROWS for item in attributes]
    if not count:
        return []
    cuts = itertools.combinations(range(1, count), min(COLUMNS, count) - 1)
    parts = [[*itertools.pairwise((0, *cut, count))] for cut in cuts]
    best = min(parts, key=lambda part: max(sum(heights[start:end]) for start, end in part))
    return [attributes[start:end] for start, end in best]
