"""Section: the ratio and the verdict of every group, and what a verdict means."""

from dataclasses import dataclass

from markupsafe import Markup

from reports.attributes import ATTRIBUTES
from reports.figures.run_figures import RunFigures
from reports.run_report import RunReport


@dataclass(frozen=True)
class Verdicts:
    figure: Markup
    groups: int
    expected_misses: int  # intervals that miss the true ratio by chance
    training_weights: str | None


def verdicts_section(report: RunReport, figures: RunFigures) -> Verdicts | None:
    if figures.ratios is None:
        return None
    groups = sum(row["attribute"] in ATTRIBUTES for row in report.estimates)
    return Verdicts(figures.ratios, groups, round(groups / 20), report.training_weights)
