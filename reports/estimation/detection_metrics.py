"""Uncertainty of detectors' metrics: intervals, and what a detector that treats all groups equally would show."""

import io
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl

import sql
from reports.estimation.bootstrap_metrics import (
    bias_corrected_interval,
    bootstrap_metrics,
    bootstrap_rates,
    fairness_gaps,
)
from reports.estimation.intervals import wilson
from reports.estimation.permutation_null import permutation_null, permutation_null_auc_gap, permuted_counts
from reports.publish import publish
from shards import provenance
from shards.atomic_io import write_parquet
from shards.attributes import AttributeTable, workspace_attributes
from shards.described_files import DescribedFile, check_unchanged, label_files, prediction_files, training_files
from shards.documents import PredictionsDocument, TablesDocument, changed_files, read_document
from shards.errors import FairfaceError
from shards.locks import exclusive_lock, shared_lock
from shards.workspace import DetectorFolder, RunFolder, Workspace

UTILITY = ("auc", "average_precision", "eer", "fpr", "tpr", "accuracy", "positive_rate")
FAIRNESS = ("auc_gap", "fpr_gap", "error_rate_gap", "f_meo", "f_dp", "f_oae", "f_eo", "f_efpr")
HELD_OUT_GAP = "held_out_tpr_gap"  # of detectors that were trained without some of the fakes
DETECTION_SCHEMA = {
    **dict.fromkeys(("detector", "attribute", "group", "measure"), pl.String),
    **dict.fromkeys(("value", "low", "high", "floor"), pl.Float64),
}
REPLICATES, MIN_REPLICATES = 500, 50  # of the bootstrap
AUC_GAP_PERMUTATIONS = 200  # fewer than REPLICATES: each takes longer
MAX_WEIGHTS = 1e8  # faces times replicates: with many faces there are fewer replicates
SEED = 1
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class EvaluatedFaces:
    """The faces that a detector was evaluated on, by falling logit."""

    table: pl.DataFrame
    is_fake: np.ndarray  # bool [N]
    called_fake: np.ndarray  # bool [N]
    logits: np.ndarray  # float64 [N]
    weights: np.ndarray  # bootstrap weights, uint8 [replicates, N]

    def metrics(self, faces: np.ndarray | slice = slice(None)) -> dict[str, np.ndarray]:
        """Every metric of the selected faces, [replicates] each."""
        logits = self.logits[faces]
        tie_ends = np.flatnonzero(np.append(np.diff(logits) != 0, True))
        return bootstrap_metrics(
            self.weights[:, faces], self.is_fake[faces], called_fake=self.called_fake[faces], tie_ends=tie_ends
        )

    def group_numbers(self, attribute: str, groups: list[str]) -> np.ndarray:
        """The index of each face's group in `groups`, [N]; -1 if the group is unknown."""
        numbers = dict(zip(groups, range(len(groups)), strict=True))
        return self.table[attribute].cast(pl.String).replace_strict(numbers, default=-1).to_numpy()


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
        write_metrics(workspace, sql.connect(workspace), detector=detector)
    return True


def has_metrics(workspace: Workspace, folder: DetectorFolder) -> bool:
    """Whether a detector's metrics are those of its predictions and of the present labels, and undamaged."""
    if provenance.metrics_problem(workspace, folder):
        return False
    document = read_document(folder.metrics_document, TablesDocument)
    return document is not None and not changed_files(folder.folder, document.files)


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
    """Write and return every metric of `utility` and `fairness` of a detector, with interval and floor.

    Raises FairfaceError if the detector has classified no test faces.
    """
    folder = workspace.detector(detector)
    text = "from generator_predictions where detector = $detector order by logit desc, key"
    predictions = sql.select(connection, text, {"detector": detector})
    if predictions.is_empty():
        raise FairfaceError(f"{folder.predictions} has no test faces: {PredictionsDocument.REDO}")
    rows = detector_rows(connection, detector, predictions=predictions, attributes=workspace_attributes(workspace))
    table = pl.DataFrame(rows, schema=DETECTION_SCHEMA)
    data = io.BytesIO()
    write_parquet(folder.detection_metrics, table, output=data)
    made_of = {detector: provenance.metrics_inputs(workspace, folder)}
    document = TablesDocument(made_of=made_of, files={})
    publish(folder.metrics_document, document, {folder.detection_metrics.name: data.getvalue()})
    return table


def detector_rows(
    connection: duckdb.DuckDBPyConnection, detector: str, *, predictions: pl.DataFrame, attributes: AttributeTable
) -> Rows:
    """Rows of `detection_metrics` from a detector's predictions, ordered by falling logit.

    They describe every attribute that is a column of the predictions, except crosses of more than two.

    Rates have Wilson's intervals. For the other metrics, faces are resampled with Poisson(1) weights (Hanley and
    MacGibbon, Comput. Methods Programs Biomed. 83 (2006) 57-62). The intervals are bias-corrected percentiles (Efron,
    Can. J. Statist. 9 (1981) 139-172), because ranges over groups are too large on average. The floor is the 95th
    percentile when groups are permuted among the real and among the fake faces, as for a detector with the same rates
    for all groups.
    """
    rng, rows = np.random.default_rng(SEED), []
    utility = {
        (row["attribute"], row["group"]): row for row in sql.ask(connection, "utility", detector=detector).to_dicts()
    }
    fairness = {row["attribute"]: row for row in sql.ask(connection, "fairness", detector=detector).to_dicts()}
    faces = evaluated_faces(predictions, rng)
    rows += utility_rows(detector, utility["all", "all"], replicates=faces.metrics())
    for attribute in (name for name in attributes.tabulated if name in predictions.columns):
        groups = [group for name, group in utility if name == attribute]
        numbers, metrics = faces.group_numbers(attribute, groups), {}
        for number, group in enumerate(groups):
            metrics[group] = faces.metrics(np.flatnonzero(numbers == number))
            rows += utility_rows(detector, utility[attribute, group], replicates=metrics[group])
        if attribute in fairness:
            compared = [g for g in groups if utility[attribute, g]["fakes"] and utility[attribute, g]["reals"]]
            replicates = fairness_replicates(faces, [metrics[group] for group in compared], is_known=numbers >= 0)
            null = fairness_null(faces, numbers, rng=rng)
            for measure in FAIRNESS:
                about = {"detector": detector, "attribute": attribute, "group": None, "measure": measure}
                value = fairness[attribute][measure]
                rows.append(about | metric_columns(value, replicates[measure], null=null[measure]))
        if gap := held_out_gap(faces, numbers, rng=rng):
            about = {"detector": detector, "attribute": attribute, "group": None, "measure": HELD_OUT_GAP}
            rows.append(about | gap)
    return rows


def held_out_gap(
    faces: EvaluatedFaces, numbers: np.ndarray, *, rng: np.random.Generator
) -> dict[str, float | None] | None:
    """value, low, high and floor of the range of TPR over the groups, of fakes that were left out of training.

    `numbers` are the faces' groups, [N]; -1 where unknown. None if no group has such fakes.
    """
    is_held_out = faces.table["is_held_out"].to_numpy() & (numbers >= 0)
    sizes = np.bincount(numbers[is_held_out])
    if not sizes.any():
        return None
    found, count = is_held_out & faces.called_fake, len(faces.weights)
    present = np.flatnonzero(sizes)
    hits = np.stack([faces.weights[:, found & (numbers == group)].sum(1) for group in present])
    weights = np.stack([faces.weights[:, is_held_out & (numbers == group)].sum(1) for group in present])
    with np.errstate(invalid="ignore", divide="ignore"):
        replicates = np.ptp(hits / weights, 0)  # NaN where a group has no face in a replicate
    null = permuted_counts(rng, sizes[present], total=int(found.sum()), count=count) / sizes[present, None]
    rates = np.bincount(numbers[found], minlength=len(sizes))[present] / sizes[present]
    return metric_columns(float(np.ptp(rates)), replicates, null=np.ptp(null, 0))


def evaluated_faces(predictions: pl.DataFrame, rng: np.random.Generator) -> EvaluatedFaces:
    """The faces with their bootstrap weights."""
    count = len(predictions)
    replicates = int(np.clip(MAX_WEIGHTS / count, MIN_REPLICATES, REPLICATES))
    return EvaluatedFaces(
        table=predictions,
        weights=np.stack([rng.poisson(1, count).astype(np.uint8) for _ in range(replicates)]),
        is_fake=(predictions["target"] == "fake").to_numpy(),
        called_fake=predictions["called_fake"].to_numpy(),
        logits=predictions["logit"].to_numpy(),
    )


def fairness_replicates(
    faces: EvaluatedFaces, metrics: list[dict[str, np.ndarray]], *, is_known: np.ndarray
) -> dict[str, np.ndarray]:
    """Every fairness metric, [replicates] each, from the metrics of the compared groups.

    `is_known`, bool [N], are the faces of any group.
    """
    tpr, fpr = bootstrap_rates(
        faces.weights[:, is_known], faces.is_fake[is_known], called_fake=faces.called_fake[is_known]
    )
    stacked = {name: np.stack([group[name] for group in metrics]) for name in metrics[0]}
    return fairness_gaps(stacked, {"tpr": tpr, "fpr": fpr})


def fairness_null(faces: EvaluatedFaces, numbers: np.ndarray, *, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Every fairness metric when groups are permuted, [permutations] each."""
    count = len(faces.weights)
    null = permutation_null(rng, numbers, is_fake=faces.is_fake, called_fake=faces.called_fake, permutations=count)
    null["auc_gap"] = permutation_null_auc_gap(
        rng,
        numbers,
        is_fake=faces.is_fake,
        logits=faces.logits,
        permutations=min(count, AUC_GAP_PERMUTATIONS),
    )
    return null


def utility_rows(detector: str, row: dict[str, Any], *, replicates: dict[str, np.ndarray]) -> Rows:
    """Rows of `detection_metrics` for a row of `utility`.

    Rates have Wilson's intervals: resampling 0 of 70 faces always gives 0.
    """
    sizes, rows = {"fpr": row["reals"], "tpr": row["fakes"], "accuracy": row["n"], "positive_rate": row["n"]}, []
    for measure in UTILITY:
        about = {"detector": detector, "attribute": row["attribute"], "group": row["group"], "measure": measure}
        columns = about | metric_columns(row[measure], replicates[measure])
        if measure in sizes and row[measure] is not None:
            low, high = wilson(np.array([row[measure] * sizes[measure]]), sizes[measure])
            columns |= {"low": float(low[0]), "high": float(high[0])}
        rows.append(columns)
    return rows


def metric_columns(
    value: float | None, replicates: np.ndarray, *, null: np.ndarray | None = None
) -> dict[str, float | None]:
    """value, low, high and floor of a metric; there is no interval if the value is undefined."""
    low = high = floor = None
    replicates = replicates[np.isfinite(replicates)]
    if value is not None and len(replicates) and np.ptp(replicates):  # equal replicates carry no uncertainty
        low, high = bias_corrected_interval(value, replicates)
    if value is not None and null is not None:
        floor = float(np.quantile(null, 0.95))
        # within the floor, 0 can't be ruled out, nor any value that resampling reaches
        if value <= floor and high is not None:
            low, high = 0.0, max(high, float(np.quantile(replicates, 0.975)))
    return {"value": value, "low": low, "high": high, "floor": floor}
