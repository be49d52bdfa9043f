"""Section: the generated faces that the selected labeller is most and least confident about."""

from dataclasses import dataclass

from reports.faces import RunFaces
from reports.figures.contact_sheet import data_url
from reports.formats import short
from reports.sections.table import expanded
from shards.attributes import AttributeTable


@dataclass(frozen=True)
class ConfidentFace:
    picture: str  # data URL
    text: str
    caption: str


@dataclass(frozen=True)
class AttributeConfidence:
    title: str
    is_collapsed: bool
    faces: dict[str, list[ConfidentFace]]  # by order: most, least


@dataclass(frozen=True)
class Confidence:
    attributes: list[AttributeConfidence]


def confidence_section(faces: RunFaces, attributes: AttributeTable) -> Confidence | None:
    found: dict[str, dict[str, list[ConfidentFace]]] = {}
    for row in faces.confidence:
        caption = f"{short(row['group'])}, {row['probability']:.2f}"
        face = ConfidentFace(data_url([row["image"]]), f"Sample {row['key']}", caption)
        found.setdefault(row["attribute"], {}).setdefault(row["order"], []).append(face)
    shown = [attributes[name] for name in found]
    sections = [AttributeConfidence(item.title, item.name not in expanded(shown), found[item.name]) for item in shown]
    return Confidence(sections) if sections else None
