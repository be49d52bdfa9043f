"""Stores the rates at which detectors call the samples of the runs fake, in `report/`.

They have a document of their own, because they depend on predictions and the other estimates do not.
"""

import io
from collections.abc import Collection

import duckdb
import polars as pl

import sql
from reports.estimation.detection_rates import SCHEMA
from reports.estimation.estimate_rows import Rows
from reports.publish import publish
from shards import provenance
from shards.atomic_io import write_parquet
from shards.documents import TablesDocument, changed_files, read_document
from shards.errors import FairfaceError
from shards.workspace import Workspace


def save_rates(
    workspace: Workspace, connection: duckdb.DuckDBPyConnection, *, run: str, detectors: Collection[str], rows: Rows
) -> None:
    """Write the rows of a run and of some detectors, keeping the other rows that are up to date.

    Without any detector, there is no table.
    """
    stale = provenance.stale_rates(workspace)
    made_of = {key: inputs for key, inputs in rates_made_of(workspace).items() if key not in stale}
    kept = sql.select(connection, "from rate_estimates").select(*SCHEMA)
    new = {provenance.rates_key(run, detector): detector for detector in detectors}
    of_others = pl.concat_str("run", pl.lit("/"), "detector").is_in(list(made_of.keys() - new.keys()))
    table = pl.concat([kept.filter(of_others), pl.DataFrame(rows, schema=SCHEMA)])
    made_of |= {key: provenance.rate_inputs(workspace, run, detector) or "" for key, detector in new.items()}
    if not made_of:
        discard_rates(workspace)
        return
    data = io.BytesIO()
    write_parquet(workspace.report.rate_estimates, table, output=data)
    document = TablesDocument(made_of=made_of, files={})
    publish(workspace.report.rates_document, document, {workspace.report.rate_estimates.name: data.getvalue()})


def rates_made_of(workspace: Workspace) -> dict[str, str]:
    """What the rows were made of, by `provenance.rates_key`; empty if the table is missing, unfinished or damaged."""
    folder = workspace.report
    try:
        document = read_document(folder.rates_document, TablesDocument)
    except FairfaceError:
        return {}
    is_intact = document and document.files and not changed_files(folder.folder, document.files)
    return document.made_of if document and is_intact else {}


def has_rates(workspace: Workspace, run: str, *, detectors: Collection[str]) -> bool:
    """Whether the rows of a run and of these detectors are up to date."""
    made_of = rates_made_of(workspace)
    return all(
        made_of.get(provenance.rates_key(run, detector)) == provenance.rate_inputs(workspace, run, detector)
        for detector in detectors
    )


def discard_damaged_rates(workspace: Workspace) -> None:
    """Remove the table if it is unfinished or damaged, so that it can be read and written again."""
    if not rates_made_of(workspace):
        discard_rates(workspace)


def discard_rates(workspace: Workspace) -> None:
    """Remove the table, and then its document: a table without one is not used."""
    for path in (workspace.report.rate_estimates, workspace.report.rates_document):
        path.unlink(missing_ok=True)
