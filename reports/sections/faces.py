"""Section: the first faces of each side, and those of every group."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from reports.faces import RunFaces
from reports.figures.contact_sheet import COLUMNS, data_url
from reports.formats import short
from reports.run_report import RunReport
from reports.sections.table import expanded
from shards.attributes import Attribute, AttributeTable
from shards.concurrency import available_cpus


@dataclass(frozen=True)
class Picture:
    """A row or a sheet of faces, or the reason why there is none."""

    source: str | None  # data URL
    text: str  # the description of the picture, or the reason
    width: float = 100  # percent of the place for a full row of faces


@dataclass(frozen=True)
class GroupPictures:
    name: str  # as the page prints it
    sides: list[Picture]  # generated, training


@dataclass(frozen=True)
class AttributePictures:
    attribute: str
    title: str
    is_expanded: bool
    groups: list[GroupPictures]


@dataclass(frozen=True)
class Faces:
    first: list[Picture]  # generated, training
    attributes: list[AttributePictures]


def faces_section(report: RunReport, faces: RunFaces, *, attributes: AttributeTable) -> Faces:
    shown = [item for name, item in attributes.tabulated.items() if name in faces.by_group]

    def pictures(item: Attribute) -> AttributePictures:
        groups = [group_pictures(group, sides) for group, sides in faces.by_group[item.name].items()]
        return AttributePictures(item.name, item.title, item.name in expanded(shown, few=0), groups)

    with ThreadPoolExecutor(available_cpus()) as pool:  # Pillow encodes without the interpreter's lock
        return Faces(first_pictures(report, faces), list(pool.map(pictures, shown)))


def first_pictures(report: RunReport, faces: RunFaces) -> list[Picture]:
    """The first faces of each side."""
    names = {"generated": "Generated", "train": "Synthetic training" if report.synthetic else "Training"}
    pictures = []
    for side, name in names.items():
        images = faces.first[side]
        if images:
            pictures.append(Picture(data_url(images), f"{name}: the first {len(images)} faces, not selected"))
        elif side == "generated" and not report.samples:
            pictures.append(Picture(None, f"{name}: this run has no samples."))
        elif side == "train" and not report.shards:
            pictures.append(Picture(None, "Training: no images are packed."))
        else:
            pictures.append(Picture(None, f"{name}: the images are not where the tables say they are."))
    return pictures


def group_pictures(group: str, sides: dict[str, list[bytes]]) -> GroupPictures:
    """The first faces of one group on each side."""
    name, pictures = short(group, 40), []
    for side, title in (("generated", "Generated"), ("train", "Training")):
        if sides.get(side):
            width = 100 * min(len(sides[side]) / COLUMNS, 1)
            pictures.append(Picture(data_url(sides[side]), f"{title} faces: {name}", width))
        else:
            reason = "images not found" if side in sides else f"no {title.lower()} face"
            pictures.append(Picture(None, reason))
    return GroupPictures(name, pictures)
