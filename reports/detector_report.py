"""The numbers of the page about detectors, as stored in `report.json`: of a run's page, or of a page without a run."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, ClassVar

import duckdb
import polars as pl

import sql
from shards.attributes import AttributeTable
from shards.documents import Document

Rows = list[dict[str, Any]]  # of a question, by column
EVALUATION_SETS = """-- the faces that each detector was evaluated on
select detector, count(*) filter (target = 'real') as reals, count(*) filter (target = 'fake') as fakes,
    max(run) as run, max(grouped_by) as grouped_by
from evaluated_predictions where perturbation = 'none' group by detector order by detector"""


@dataclass(kw_only=True)
class DetectorAnswers:
    """The part of a report that is about detectors."""

    detection_metrics: Rows
    evaluation_sets: Rows
    robustness: Rows
    robustness_attribute: str  # whose groups its fairness is measured on
    detection_rates: Rows  # of the run's samples
    detection_gaps: Rows


@dataclass(kw_only=True)
class DetectorReport(DetectorAnswers, Document):
    """report.json of a workspace without a run."""

    REDO: ClassVar[str] = "build it again with `fairface report --force`"

    fingerprint: str  # of the files and the code that the page was made from
    synthetic: bool | None  # None if there are no shards
    files: dict[str, str] = field(default_factory=dict)  # the page -> SHA-256


def gather_detectors(
    connection: duckdb.DuckDBPyConnection,
    run: str | None,
    *,
    detectors: Collection[str],
    attributes: AttributeTable,
) -> dict[str, Any]:
    """The fields of DetectorAnswers, of the named `detectors` and the samples of `run`.

    Without detectors nothing is queried: the queries are slow even if there are none.
    """
    if not detectors:
        names = ("evaluation_sets", "detection_metrics", "detection_rates", "detection_gaps", "robustness")
        return {name: [] for name in names} | {"robustness_attribute": next(iter(attributes))}
    compared = compared_attribute(connection, attributes)
    answers = {
        "evaluation_sets": sql.select(connection, EVALUATION_SETS),
        "detection_metrics": sql.ask(connection, "detection_metrics"),
        "robustness": sql.ask(connection, "robustness", attribute=compared),
    }
    for name in ("detection_rates", "detection_gaps") if run else ():
        answers[name] = sql.ask(connection, name, run=run)
    is_named = pl.col("detector").is_in(list(detectors))
    rows = {name: table.filter(is_named).to_dicts() for name, table in answers.items()}
    return {"detection_rates": [], "detection_gaps": []} | rows | {"robustness_attribute": compared}


def compared_attribute(connection: duckdb.DuckDBPyConnection, attributes: AttributeTable) -> str:
    """The first attribute whose groups detectors were compared on; the first of all if there is none."""
    text = """select distinct attribute from detection_metrics where "group" is null"""
    measured = sql.select(connection, text)["attribute"].to_list()
    return next((name for name in attributes if name in measured), next(iter(attributes)))
