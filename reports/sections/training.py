"""Section: losses and speed of the training."""

from dataclasses import dataclass

from markupsafe import Markup

from reports.figures.run_figures import RunFigures
from reports.formats import number, percent, short
from reports.run_report import RunReport


@dataclass(frozen=True)
class Training:
    figures: list[Markup]  # empty where no steps were recorded
    speed: str
    note: str  # why there are no figures


def training_section(report: RunReport, figures: RunFigures) -> Training:
    if figures.training:
        return Training(figures.training, describe_speed(report), "")
    if report.source:
        count = number(sum(row["images"] for row in report.samples))
        path = short(report.source.path, 200)
        note = f"The samples ({count} images) were imported from {path}: their generator was not trained by this "
        note += "program."
        return Training([], "", note)
    return Training([], "", "No steps were recorded for this run.")


def describe_speed(report: RunReport) -> str:
    """Steps, images, seconds and speed in a sentence."""
    row = report.throughput
    parts = [f"{number(row['steps'])} steps over {number(row['images'])} images in {number(row['seconds'] or 0)} s"]
    if row["images_per_s"] is not None:
        parts.append(f"{number(row['images_per_s'])} images per second (median)")
    if row["data_wait"] is not None:
        parts.append(f"{percent(row['data_wait'])} of the time spent waiting for data")
    return "; ".join(parts) + "."
