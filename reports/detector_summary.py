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
    hold_out: dict[str, Any] | None  # the row of all faces of question `hold_out`; None if trained on all fakes


def summarise(workspace: Workspace, name: str) -> DetectorSummary:
    """Write a detector's metrics with their intervals, unless they are up to date, and return the main ones."""
    detection_metrics.update_metrics(workspace, detector=name)
    connection = sql.connect(workspace)
    utility = sql.ask(connection, "utility", detector=name, attribute="all").row(0, named=True)
    hold_out = sql.ask(connection, "hold_out", detector=name, attribute="all").to_dicts()
    return DetectorSummary(
        utility, sql.ask(connection, "fairness", detector=name).to_dicts(), hold_out[0] if hold_out else None
    )
