"""Section: the generated faces that the selected labeller is most and least confident about."""

from dataclasses import dataclass

from reports.attributes import TITLES
from reports.faces import RunFaces
from reports.figures.contact_sheet import data_url
from reports.formats import short


@dataclass(frozen=True)
class ConfidentFace:
    picture: str  # data URL
    text: str
    caption: str


@dataclass(frozen=True)
class ConfidenceRow:
    attribute: str
    order: str  # most, least
    faces: list[ConfidentFace]


@dataclass(frozen=True)
class Confidence:
    rows: list[ConfidenceRow]


def confidence_section(faces: RunFaces) -> Confidence | None:
    rows: dict[tuple[str, str], ConfidenceRow] = {}
    for row in faces.confidence:
        attribute, order = row["attribute"], row["order"]
        entry = rows.setdefault((attribute, order), ConfidenceRow(TITLES[attribute], order, []))
        caption = f"{short(row['group'])}, {row['probability']:.2f}"
        entry.faces.append(ConfidentFace(data_url([row["image"]]), f"Sample {row['key']}", caption))
    return Confidence(list(rows.values())) if rows else None
