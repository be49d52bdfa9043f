"""Uncertainty of detectors' metrics: intervals, and what a detector that treats all groups equally would show."""

import io
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import polars as pl

import sql
from reports.estimation.detection.faces import EvaluatedFaces, Groups, bootstrap_weights
from reports.estimation.detection.held_out import held_out_rows
from reports.estimation.detection.metric_rows import Rows, SqlMetrics, ask_metrics, detector_rows
from reports.publish import publish
from shards import provenance
from shards.atomic_io import write_parquet
from shards.attributes import workspace_attributes
from shards.described_files import DescribedFile, check_unchanged, label_files, prediction_files, training_files
from shards.documents import PredictionsDocument, TablesDocument, changed_files, read_document
from shards.errors import FairfaceError
from shards.locks import exclusive_lock, shared_lock
from shards.provenance import CurrentFiles
from shards.workspace import DETECTOR_TABLES, TRIVIAL_DETECTORS, DetectorFolder, RunFolder, Workspace

INTERVAL = dict.fromkeys(("value", "low", "high", "floor"), pl.Float64)
KEYS = dict.fromkeys(("faces_of", "detector", "attribute"), pl.String)
SCHEMAS: dict[str, dict[str, Any]] = {  # of the tables in DETECTOR_TABLES
    "detection_metrics": {**KEYS, "group": pl.String, "measure": pl.String, **INTERVAL},
    "tradeoff_points": {
        **KEYS, "point": pl.String, "measure": pl.String, **INTERVAL, "replicates": pl.List(pl.Float64),
    },
    "repair": {
        **KEYS, "variant": pl.String, "measure": pl.String, **INTERVAL,
        **dict.fromkeys(("change", "change_low", "change_high"), pl.Float64),
    },
    "repair_thresholds": {
        **KEYS, "group": pl.String, "variant": pl.String, "fitted_on": pl.String, "threshold": pl.Float64,
    },
}  # fmt: skip


def update_metrics(workspace: Workspace, *, detector: str) -> bool:
    """Write a detector's metrics, unless they are those of its predictions and of the present labels.

    Returns whether they were written. Raises FairfaceError if the predictions must not be used, and if the detector or
    its labels are being written by another process.
    """
    folder = workspace.detector(detector)
    if has_metrics(workspace, folder):
        return False
    with ExitStack() as stack:
        stack.enter_context(exclusive_lock(folder.lock, "computing its metrics"))
        for lock in label_locks(workspace, folder):
            stack.enter_context(shared_lock(lock, "computing metrics by its labels"))
        if reason := provenance.predictions_problem(workspace, folder):
            raise FairfaceError(reason)
        check_unchanged(metrics_inputs(workspace, folder))
        write_metrics(workspace, sql.connect(workspace, undamaged_files(workspace)), detector=detector)
    return True


def has_metrics(workspace: Workspace, folder: DetectorFolder) -> bool:
    """Whether a detector's metrics are those of its predictions and of the present labels, and undamaged."""
    if provenance.metrics_problem(workspace, folder):
        return False
    document = read_document(folder.metrics_document, TablesDocument)
    return document is not None and not changed_files(folder.folder, document.files)


def undamaged_files(workspace: Workspace) -> CurrentFiles:
    """The files of the views without detectors' tables that are damaged or have to be computed again."""
    current = sql.find_files(workspace)
    resolved = Workspace(workspace.root.resolve())
    detectors = [folder for folder in resolved.detectors() if not has_metrics(resolved, folder)]
    left_out = {table for folder in detectors for table in folder.tables()}
    kept = {view: [path for path in paths if path not in left_out] for view, paths in current.files.items()}
    return replace(current, files=kept)


def evaluated_runs(workspace: Workspace, folder: DetectorFolder) -> list[RunFolder]:
    """The runs whose samples a detector has classified."""
    document = read_document(folder.predictions_document, PredictionsDocument)
    return [workspace.run(name) for name in sorted(document.samples)] if document else []


def label_locks(workspace: Workspace, folder: DetectorFolder) -> list[Path]:
    """The locks of the labels that a detector's metrics depend on; none for imported predictions, which have groups."""
    document = read_document(folder.predictions_document, PredictionsDocument)
    if document is None or document.imported is not None:
        return []
    runs = evaluated_runs(workspace, folder)
    return [workspace.shards.lock, workspace.shards.label_files.lock, *(run.label_files.lock for run in runs)]


def metrics_inputs(workspace: Workspace, folder: DetectorFolder) -> list[DescribedFile]:
    """The files that a detector's metrics are computed from."""
    if not label_locks(workspace, folder):
        return prediction_files(folder)
    runs = evaluated_runs(workspace, folder)
    labels = [file for run in runs for file in label_files(run.label_files, embeddings=False)]
    return prediction_files(folder) + training_files(workspace.shards, embeddings=False) + labels


def write_metrics(workspace: Workspace, connection: duckdb.DuckDBPyConnection, *, detector: str) -> pl.DataFrame:
    """Write the tables of a detector's metrics, and return `detection_metrics`.

    The rows of the trivial detectors of its evaluation set are taken from another detector of this set, if one has
    them. Raises FairfaceError if the detector has classified no test faces.
    """
    folder = workspace.detector(detector)
    text = "select evaluation_set from evaluation_sets where detector = $detector"
    sets = sql.select(connection, text, {"detector": detector})["evaluation_set"]
    if sets.is_empty():
        raise FairfaceError(f"{folder.predictions} has no test faces: {PredictionsDocument.REDO}")
    known = stored_trivial_rows(connection, sets[0])
    computed = [detector, *(name for name in TRIVIAL_DETECTORS if not known)]
    rows = known or {table: [] for table in DETECTOR_TABLES}
    for table, added in compute_rows(workspace, connection, sets[0], detectors=computed).items():
        rows[table] = added + rows[table]
    tables = {
        name: pl.DataFrame([row | {"faces_of": detector} for row in rows[name]], schema=schema)
        for name, schema in SCHEMAS.items()
    }
    files = {}
    for name, frame in tables.items():
        data = io.BytesIO()
        write_parquet(folder.table(name), frame, output=data)
        files[folder.table(name).name] = data.getvalue()
    made_of = {detector: provenance.metrics_inputs(workspace, folder)}
    publish(folder.metrics_document, TablesDocument(made_of=made_of, files={}), files)
    return tables["detection_metrics"].filter(detector=detector).drop("faces_of")


def stored_trivial_rows(connection: duckdb.DuckDBPyConnection, evaluation_set: str) -> dict[str, Rows] | None:
    """The rows of the trivial detectors of an evaluation set, by table; None if they must be computed."""
    rows = {}
    for name in DETECTOR_TABLES:
        text = f"select * exclude (evaluation_set) from {name} where evaluation_set = $set and is_trivial(detector)"
        rows[name] = sql.select(connection, text, {"set": evaluation_set}).to_dicts()
    return rows if rows["detection_metrics"] else None


def compute_rows(
    workspace: Workspace, connection: duckdb.DuckDBPyConnection, evaluation_set: str, *, detectors: Sequence[str]
) -> dict[str, Rows]:
    """The rows of detectors of one evaluation set, by table."""
    metrics = ask_metrics(connection, evaluation_set, detectors=detectors)
    tabulated = list(workspace_attributes(workspace).tabulated)
    groups = ", ".join(map(sql.identifier, tabulated))

    def faces_of(names: Sequence[str], columns: str) -> pl.DataFrame:
        text = f"""select {columns} from generator_predictions
            where evaluation_set = $set and detector in ({", ".join(map(sql.quote, names))})
            order by detector, source, run, key"""
        return sql.select(connection, text, {"set": evaluation_set})

    # all have the same faces
    first = faces_of(detectors[:1], f"logit, is_held_out, target, md5_number_lower(key) as shuffle, {groups}")
    others = faces_of(detectors[1:], "detector, logit, is_held_out") if detectors[1:] else pl.DataFrame()
    faces = evaluated_faces(first, metrics[detectors[0]], attributes=tabulated)
    rows: dict[str, Rows] = {table: [] for table in DETECTOR_TABLES}
    for detector in detectors:
        table = first if detector == detectors[0] else others.filter(detector=detector)
        own = replace(faces, logits=table["logit"].to_numpy())
        held_out = held_out_rows(own, table["is_held_out"].to_numpy())
        rows["detection_metrics"] += [row | {"detector": detector} for row in held_out]
        for name, added in detector_rows(own, metrics[detector], shuffle=first["shuffle"].to_numpy()).items():
            rows[name] += [row | {"detector": detector} for row in added]
    return rows


def evaluated_faces(table: pl.DataFrame, metrics: SqlMetrics, *, attributes: Sequence[str]) -> EvaluatedFaces:
    """The faces of a table of predictions, ordered by key, with the groups of those attributes that they have."""
    groups = {}
    for attribute in attributes:
        if names := metrics.groups(attribute):
            numbers = dict(zip(names, range(len(names)), strict=True))
            column = table[attribute].cast(pl.String).replace_strict(numbers, default=-1, return_dtype=pl.Int16)
            groups[attribute] = Groups(names, column.to_numpy())
    return EvaluatedFaces(
        is_fake=(table["target"] == "fake").to_numpy(),
        logits=table["logit"].to_numpy(),
        weights=bootstrap_weights(len(table)),
        groups=groups,
    )
