"""Section: the ratio and the verdict of every group, and what a verdict means."""

from dataclasses import dataclass

from markupsafe import Markup

from reports.figures.run_figures import RunFigures
from reports.run_report import RunReport
from shards.attributes import AttributeTable


@dataclass(frozen=True)
class Verdicts:
    figures: list[Markup]  # of which the page folds all but the first
    groups: int
    expected_misses: int  # intervals that miss the true ratio by chance
    training_weights: str | None


def verdicts_section(report: RunReport, figures: RunFigures, *, attributes: AttributeTable) -> Verdicts | None:
    if not figures.ratios:
        return None
    groups = sum(row["attribute"] in attributes.tabulated for row in report.estimates)
    return Verdicts(figures.ratios, groups, round(groups / 20), report.training_weights)
