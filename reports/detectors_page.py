"""The page of a workspace without a run: its detectors."""

from dataclasses import dataclass

from markupsafe import Markup

from reports.detector_report import DetectorReport
from reports.sections.detectors import Detectors, detectors_section
from shards.attributes import AttributeTable


@dataclass(frozen=True)
class DetectorsPage:
    """What `detectors.html.j2` prints."""

    title: str
    synthetic: bool | None
    detectors: Detectors | None


def build_detectors_page(
    report: DetectorReport, attributes: AttributeTable, *, tradeoffs: list[Markup]
) -> DetectorsPage:
    """Shape the numbers and figures of the detectors for the template."""
    section = detectors_section(report, attributes, tradeoff_figures=tradeoffs)
    return DetectorsPage("fairness of detectors", report.synthetic, section)
