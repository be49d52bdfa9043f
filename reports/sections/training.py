"""Section: losses and speed of the training."""

from dataclasses import dataclass

from markupsafe import Markup

from reports.figures.run_figures import RunFigures
from reports.formats import number, percent
from reports.run_report import RunReport


@dataclass(frozen=True)
class Training:
    figures: list[Markup]  # empty where no steps were recorded
    speed: str


def training_section(report: RunReport, figures: RunFigures) -> Training:
    return Training(figures.training, describe_speed(report) if figures.training else "")


def describe_speed(report: RunReport) -> str:
    """Steps, images, seconds and speed in a sentence."""
    row = report.throughput
    parts = [f"{number(row['steps'])} steps over {number(row['images'])} images in {number(row['seconds'] or 0)} s"]
    if row["images_per_s"] is not None:
        parts.append(f"{number(row['images_per_s'])} images per second (median)")
    if row["data_wait"] is not None:
        parts.append(f"{percent(row['data_wait'])} of the time spent waiting for data")
    return "; ".join(parts) + "."
