"""Collects the numbers of the page of several runs: each run's group shares, and their differences."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, ClassVar

import duckdb

import sql
from reports.detector_report import Rows
from reports.formats import short
from reports.run_report import RunReport
from shards.attributes import AttributeTable
from shards.documents import Document

Distances = dict[str, dict[str, dict[str, Any]]]  # reference -> attribute -> row of `distances`


@dataclass(kw_only=True)
class ComparisonReport(Document):
    """report.json of several runs."""

    FORMAT: ClassVar[int] = 2
    REDO: ClassVar[str] = "build it again with `fairface report --force`"

    fingerprint: str  # of what the page was made from
    built: str  # ISO 8601, UTC
    runs: list[str]
    baseline_run: str | None  # the run that the others are compared with: the first that is labelled
    synthetic: bool | None  # whether any run was trained on synthetic faces; None if no run says so
    real: bool  # whether any run was trained on real faces
    estimates: dict[str, str]  # attribute -> the estimate (raw, corrected) that all runs are compared by
    findings: list[list[str]]  # sentences on every labelled run but the baseline
    differences: dict[str, Rows]  # run -> rows of question `difference` from the baseline
    distances: dict[str, Distances]  # by run
    pages: list[RunReport]
    files: dict[str, str] = field(default_factory=dict)  # the page and its figures -> SHA-256


def gather_comparison(
    connection: duckdb.DuckDBPyConnection, pages: list[RunReport], *, attributes: AttributeTable, fingerprint: str
) -> ComparisonReport:
    """Collect every number of the page of several runs from the numbers of each run's page."""
    labelled = [page for page in pages if page.labelling]
    estimates = common_estimates(labelled, attributes)
    distances = {page.run: total_variations(page, estimates) for page in labelled}
    baseline_run = labelled[0].run if labelled else None
    constant = {page.run for page in pages if page.is_constant}  # nothing is found about these
    differences = {
        page.run: sql.ask(connection, "difference", run=baseline_run, other=page.run).to_dicts()
        for page in labelled[1:]
    }
    return ComparisonReport(
        fingerprint=fingerprint,
        built=datetime.now(UTC).isoformat(timespec="seconds"),
        runs=[page.run for page in pages],
        baseline_run=baseline_run,
        synthetic=None if all(page.synthetic is None for page in pages) else any(page.synthetic for page in pages),
        real=any(page.synthetic is False for page in pages),
        estimates=estimates,
        findings=[
            describe_difference(baseline_run, run, rows=rows, distances=distances, attributes=attributes)
            for run, rows in differences.items()
            if baseline_run and rows and not constant & {baseline_run, run}
        ],
        differences=differences,
        distances=distances,
        pages=pages,
    )


def common_estimates(pages: list[RunReport], attributes: Iterable[str]) -> dict[str, str]:
    """The estimate of each attribute that all runs are compared by.

    It is `audited` if all runs use it; `corrected` if one of them uses it or was audited, all have it, and the
    labeller's confidence has not shifted for any; otherwise `raw`. The question `difference` chooses in the same way.
    """
    estimates: dict[str, str] = {}
    for attribute in attributes:
        rows = [row for page in pages for row in page.estimates if row["attribute"] == attribute]
        is_raw = all(row["best_estimate"] == "raw" for row in rows)
        is_raw |= any(row["corrected"] is None or row["is_shifted"] for row in rows)
        is_audited = bool(rows) and all(row["best_estimate"] == "audited" for row in rows)
        estimates[attribute] = "audited" if is_audited else "raw" if is_raw else "corrected"
    return estimates


def total_variations(page: RunReport, estimates: dict[str, str]) -> Distances:
    """A run's rows of total variation, from the estimate that all runs are compared by."""
    rows: Distances = {"reference": {}, "uniform": {}}
    for row in page.distances:
        if row["estimate"] == estimates[row["attribute"]] and row["measure"] == "total_variation":
            rows[row["baseline"]][row["attribute"]] = row
    return rows


def describe_difference(
    baseline_run: str, other: str, *, rows: Rows, distances: dict[str, Distances], attributes: AttributeTable
) -> list[str]:
    """Describe in sentences which groups two runs generate more or less often, and which is closer to equal shares."""
    rows = [row for row in rows if row["attribute"] in attributes.tabulated]
    changed = sum(row["difference_verdict"] != "inconclusive" for row in rows)
    sentences = [
        f"{short(other, 40)} generates {changed} of {len(rows)} groups more or less often than "
        f"{short(baseline_run, 40)} (about {round(len(rows) / 20)} would seem to differ by chance alone)."
    ]
    for attribute in attributes.headlines:
        a, b = (distances[run]["uniform"].get(attribute.name) for run in (baseline_run, other))
        if a and b:
            low, high = difference_interval(a, b)
            values = f"total variation {b['value']:.3f}; {short(baseline_run, 40)} {a['value']:.3f}"
            if high < 0 or low > 0:
                order = "closer to" if high < 0 else "farther from"
                sentences.append(f"It is {order} equal shares of {attribute.plural} ({values}).")
            else:
                sentences.append(
                    f"It is undecided which run is closer to equal shares of {attribute.plural} ({values})."
                )
    return sentences


def difference_interval(a: dict[str, Any], b: dict[str, Any]) -> tuple[float, float]:
    """A 95 % interval of b - a, from each one's own (Newcombe, Stat. Med. 17 (1998) 873-890, method 10)."""
    difference = b["value"] - a["value"]
    low = difference - math.hypot(b["value"] - b["low"], a["high"] - a["value"])
    return low, difference + math.hypot(b["high"] - b["value"], a["value"] - a["low"])
