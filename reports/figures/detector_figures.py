"""The figures of the section on detectors."""

from typing import Any

from markupsafe import Markup

from reports.detector_report import DetectorAnswers
from reports.figures.canvas import inline_svg, save
from reports.figures.tradeoff import tradeoff
from shards.attributes import AttributeTable


def draw_tradeoffs(
    report: DetectorAnswers, files: dict[str, bytes], *, attributes: AttributeTable, synthetic: bool
) -> list[Markup]:
    """Draw utility against fairness for one attribute and each evaluation set, and add it to the page's `files`."""
    sets: dict[str, list[dict[str, Any]]] = {}
    attribute = attributes[report.robustness_attribute]
    for row in report.tradeoff:
        if row["attribute"] == attribute.name:
            sets.setdefault(row["evaluation_set"], []).append(row)
    figures = []
    for number, (name, rows) in enumerate(sets.items(), 1):
        faces = f", faces of {name}" if len(sets) > 1 else ""
        title = f"Utility and fairness, {attribute.plural}{faces}"
        svg = save(tradeoff(rows, title=title), files, f"tradeoff-{number}", synthetic=synthetic)
        figures.append(inline_svg(svg, title))
    return figures
