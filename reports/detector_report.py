"""The numbers about detectors that `report.json` stores, for the page of a run or for a page without a run."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, ClassVar

import duckdb
import polars as pl

import sql
from shards.attributes import AttributeTable
from shards.documents import Document
from shards.workspace import TRIVIAL_DETECTORS

Rows = list[dict[str, Any]]  # of a question, by column
EVALUATION_SETS = """-- the faces that each detector was evaluated on
select evaluation_set, detector, count(*) filter (target = 'real') as reals, count(*) filter (target = 'fake') as fakes,
    max(run) as run, max(grouped_by) as grouped_by, held_out_of(detector) as held_out
from test_predictions where perturbation = 'none' group by evaluation_set, detector order by evaluation_set, detector"""
PERTURBATIONS = "select distinct perturbation from raw_predictions where part = 'test' and perturbation <> 'none'"


@dataclass(kw_only=True)
class DetectorAnswers:
    """The part of a report that is about detectors."""

    detection_metrics: Rows
    evaluation_sets: Rows
    robustness: Rows  # empty if no perturbed faces were evaluated
    robustness_attribute: str  # over whose groups the fairness in `robustness` is measured
    detection_rates: Rows  # of the run's samples
    detection_gaps: Rows
    tradeoff: Rows  # question `tradeoff` for every attribute, with a column `attribute`
    repair: Rows
    generators: Rows  # on the fakes of each family and method
    hold_out: Rows  # of detectors that were trained without some fakes, on these fakes


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
    """The fields of DetectorAnswers, for the named `detectors` and the samples of `run`.

    Without detectors, nothing is queried, because the queries are slow even then.
    """
    if not detectors:
        names = (
            "evaluation_sets",
            "detection_metrics",
            "detection_rates",
            "detection_gaps",
            "robustness",
            "tradeoff",
            "repair",
            "generators",
            "hold_out",
        )
        return {name: [] for name in names} | {"robustness_attribute": next(iter(attributes))}
    compared = compared_attribute(connection, attributes)
    answers = {
        "evaluation_sets": sql.select(connection, EVALUATION_SETS),
        "detection_metrics": sql.ask(connection, "detection_metrics"),
        # slow, and without perturbed faces only a repetition
        "robustness": pl.DataFrame(schema={"detector": pl.String})
        if sql.select(connection, PERTURBATIONS).is_empty()
        else sql.ask(connection, "robustness", attribute=compared),
        "tradeoff": tradeoffs(connection),
        "repair": sql.ask(connection, "repair"),
        "generators": sql.ask(connection, "generators"),
        "hold_out": sql.ask(connection, "hold_out"),
    }
    for name in ("detection_rates", "detection_gaps") if run else ():
        answers[name] = sql.ask(connection, name, run=run)
    is_named = pl.col("detector").is_in(list(detectors))
    sets = answers["evaluation_sets"].filter(is_named)["evaluation_set"].to_list()
    # the trivial detectors of the evaluation sets that have a named detector
    is_shown = is_named | (pl.col("detector").is_in(TRIVIAL_DETECTORS) & pl.col("evaluation_set").is_in(sets))
    rows = {
        name: table.filter(is_shown if "evaluation_set" in table.columns else is_named).to_dicts()
        for name, table in answers.items()
    }
    return {"detection_rates": [], "detection_gaps": []} | rows | {"robustness_attribute": compared}


def tradeoffs(connection: duckdb.DuckDBPyConnection) -> pl.DataFrame:
    """The answers to question `tradeoff` for every attribute whose groups were compared, with a column `attribute`."""
    text = "select distinct attribute from tradeoff_points where attribute <> 'all' order by attribute_rank(attribute)"
    names = sql.select(connection, text)["attribute"].to_list()
    tables = [sql.ask(connection, "tradeoff", attribute=name).with_columns(attribute=pl.lit(name)) for name in names]
    return pl.concat(tables, how="vertical_relaxed") if tables else pl.DataFrame(schema={"detector": pl.String})


def compared_attribute(connection: duckdb.DuckDBPyConnection, attributes: AttributeTable) -> str:
    """The first attribute over whose groups detectors were compared; the first of all attributes if there is none."""
    text = """select distinct attribute from detection_metrics where "group" is null"""
    measured = sql.select(connection, text)["attribute"].to_list()
    return next((name for name in attributes if name in measured), next(iter(attributes)))
