"""The page of one run: its sections, in the order of the template `run.html.j2`."""

from dataclasses import dataclass

from markupsafe import Markup

from reports.faces import RunFaces
from reports.figures.run_figures import RunFigures
from reports.formats import short
from reports.run_report import RunReport
from reports.sections.audit import AuditSection, audit_section
from reports.sections.confidence import Confidence, confidence_section
from reports.sections.counts import Counts, counts_section
from reports.sections.detection_rates import DetectionRates, detection_rates_section
from reports.sections.detectors import Detectors, detectors_section
from reports.sections.distances import Distances, distances_section
from reports.sections.faces import Faces, faces_section
from reports.sections.intersections import Intersections, intersections_section
from reports.sections.labellers import Labellers, labellers_section
from reports.sections.methods import Methods, methods_section
from reports.sections.neighbours import Neighbours, neighbours_section
from reports.sections.provenance import Provenance, provenance_section
from reports.sections.quality import Quality, quality_section
from reports.sections.reference import Reference, reference_section
from reports.sections.shares import Shares, shares_section
from reports.sections.summary import Summary, summary_section
from reports.sections.training import Training, training_section
from reports.sections.training_data import TrainingData, training_data_section
from reports.sections.verdicts import Verdicts, verdicts_section
from shards.attributes import AttributeTable

CONTENTS = {  # section -> its name in the contents, in the order of the page
    "verdicts": "Verdicts",
    "reference": "Reference",
    "methods": "Estimates",
    "audit": "Audit",
    "distances": "Distances",
    "counts": "Counts",
    "labellers": "Labellers",
    "quality": "Image quality",
    "faces": "Faces",
    "detectors": "Detectors",
    "training": "Training",
    "training_data": "Training data",
    "limitations": "Limitations",
    "provenance": "Provenance",
}


@dataclass(frozen=True)
class RunPage:
    """What `run.html.j2` prints; a section that is None is left out."""

    title: str
    run: str
    synthetic: bool | None
    summary: Summary
    shares: Shares | None
    verdicts: Verdicts | None
    reference: Reference | None
    methods: Methods | None
    audit: AuditSection | None
    intersections: Intersections | None
    distances: Distances | None
    counts: Counts | None
    labellers: Labellers
    quality: Quality | None
    faces: Faces
    confidence: Confidence | None
    neighbours: Neighbours | None
    detectors: Detectors | None
    detection_rates: DetectionRates | None
    training: Training
    training_data: TrainingData
    provenance: Provenance

    @property
    def contents(self) -> dict[str, str]:
        """The sections that the page has, by the anchor of their heading."""
        return {name: title for name, title in CONTENTS.items() if getattr(self, name, True)}


def build_run_page(
    report: RunReport, attributes: AttributeTable, *, figures: RunFigures, tradeoffs: list[Markup], faces: RunFaces
) -> RunPage:
    """Shape the numbers, figures and faces of a run for the template; `tradeoffs` are the figures of its detectors."""
    compares_training = report.compares_training
    return RunPage(
        title=f"fairness of run {short(report.run, 60)}",
        run=report.run,
        synthetic=report.synthetic,
        summary=summary_section(report, faces, attributes=attributes),
        shares=shares_section(figures, attributes) if compares_training else None,
        verdicts=verdicts_section(report, figures, attributes=attributes) if compares_training else None,
        reference=reference_section(report, attributes),
        methods=methods_section(report, attributes) if compares_training else None,
        audit=audit_section(report, attributes),
        intersections=intersections_section(report, attributes) if compares_training else None,
        distances=distances_section(report, attributes) if compares_training else None,
        counts=counts_section(report, attributes),
        labellers=labellers_section(report, attributes),
        quality=quality_section(report, attributes),
        faces=faces_section(report, faces, attributes=attributes),
        confidence=confidence_section(faces, attributes),
        neighbours=neighbours_section(report, faces),
        detectors=detectors_section(report, attributes, tradeoff_figures=tradeoffs),
        detection_rates=detection_rates_section(report, attributes),
        training=training_section(report, figures),
        training_data=training_data_section(report, attributes),
        provenance=provenance_section(report),
    )
