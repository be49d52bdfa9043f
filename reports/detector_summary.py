"""The main metrics of a detector, for the command line."""

from dataclasses import dataclass
from typing import Any

import sql
from reports.estimation import detection_metrics
from shards.workspace import Workspace


@dataclass(frozen=True)
class DetectorSummary:
    """A detector's rows of the questions `utility` and `fairness`."""

    utility: dict[str, Any]  # the row of all faces of the question `utility`
    fairness: list[dict[str, Any]]  # rows of the question `fairness`, one per attribute


def summarise(workspace: Workspace, name: str) -> DetectorSummary:
    """Write a detector's metrics with their intervals, unless they are up to date, and return the main ones."""
    detection_metrics.update_metrics(workspace, detector=name)
    connection = sql.connect(workspace)
    utility = sql.ask(connection, "utility", detector=name, attribute="all").row(0, named=True)
    return DetectorSummary(utility, sql.ask(connection, "fairness", detector=name).to_dicts())
