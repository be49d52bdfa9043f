"""Section: the answer in sentences, next to the first generated faces."""

from dataclasses import dataclass

from reports.faces import RunFaces
from reports.figures.contact_sheet import data_url
from reports.formats import number, short
from reports.run_report import RunReport
from shards.attributes import AttributeTable

PICTURED_FACES = 24
QUESTION = "Does the generator preserve the balance of the faces it was trained on?"
QUESTION_WITHOUT_TRAINING = "Are the generated faces balanced?"
SENTENCES = 5  # of a paragraph, at most


@dataclass(frozen=True)
class Summary:
    question: str
    warnings: list[str]
    answer: str
    sentences: list[str]  # none without a verdict
    is_list: bool  # whether there are too many sentences for a paragraph
    counts: str | None  # groups by verdict
    missing: str | None  # the stage that is missing, and its command
    run: str
    sides: str | None  # how many faces were labelled, and by what
    picture: str | None  # data URL
    pictured: int


def summary_section(report: RunReport, faces: RunFaces, *, attributes: AttributeTable) -> Summary:
    images = faces.first["generated"][:PICTURED_FACES]
    return Summary(
        question=QUESTION if report.compares_training else QUESTION_WITHOUT_TRAINING,
        warnings=report.warnings,
        answer=report.verdict.answer,
        sentences=report.verdict.sentences,
        is_list=len(report.verdict.sentences) > SENTENCES,
        counts=verdict_counts(report, attributes) if report.verdict.undecided else None,
        missing=report.missing,
        run=short(report.run, 200),
        sides=labelled_sides(report),
        picture=data_url(images) if images else None,
        pictured=len(images),
    )


def verdict_counts(report: RunReport, attributes: AttributeTable) -> str:
    """The number of groups with each verdict, in words."""
    if not report.compares_training:
        return report.verdict.undecided or ""
    groups = sum(row["attribute"] in attributes.tabulated for row in report.estimates)
    preserved, amplified, reduced = (report.verdict_counts.get(v, 0) for v in ("preserved", "amplified", "reduced"))
    return (
        f"Of {groups} groups, {preserved} {'is' if preserved == 1 else 'are'} preserved, {amplified} amplified and "
        f"{reduced} reduced. {report.verdict.undecided}"
    )


def labelled_sides(report: RunReport) -> str | None:
    """The number of labelled faces of each side, their labellers and their size, in words."""
    if not report.labelling:
        return None
    labelling = report.labelling
    sizes = " and ".join(map(str, labelling.sizes))
    faces = f"{number(labelling.generated)} generated and {number(labelling.train)} training faces, both labelled by "
    if not labelling.train:
        faces = f"{number(labelling.generated)} generated faces, labelled by "
    return f"{faces}{', '.join(labelling.methods.values())}" + (f" at {sizes} pixels" if sizes else "")
