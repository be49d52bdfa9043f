"""Section: the samples that are closest to a training image."""

from dataclasses import dataclass

from reports.faces import RunFaces
from reports.figures.contact_sheet import data_url
from reports.formats import number
from reports.run_report import RunReport


@dataclass(frozen=True)
class Pair:
    sample: str  # data URL
    training: str  # data URL
    key: str
    nearest: str
    similarity: str


@dataclass(frozen=True)
class Neighbours:
    searched: str  # samples
    among: str  # training images
    typical: str | None  # similarity of training images among each other: median
    high: str | None  # and 95th percentile
    pairs: list[Pair]


def neighbours_section(report: RunReport, faces: RunFaces) -> Neighbours | None:
    if not report.neighbours:
        return None
    first, training = report.neighbours[0], report.training_neighbours
    return Neighbours(
        searched=number(first["neighbours_found"]),
        among=number(first["images_searched"]),
        typical=f"{training[0]['similarity_median']:.3f}" if training else None,
        high=f"{training[0]['similarity_p95']:.3f}" if training else None,
        pairs=[
            Pair(
                sample=data_url([row["image"]]),
                training=data_url([row["train_image"]]),
                key=row["key"],
                nearest=row["nearest"],
                similarity=f"{row['similarity']:.3f}",
            )
            for row in faces.neighbours
        ],
    )
