"""Reads the audit of a run: the plan's faces, people's answers and the labeller's labels, by side and attribute."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import duckdb
import numpy as np
import polars as pl

import sql
from reports.estimation import group_counts
from reports.estimation import unsure as unsure_labels
from reports.estimation.audit.shares import NO_ANSWER, AuditedFaces
from reports.estimation.calibration import class_codes, count_cross
from shards.attributes import UNSURE, AttributeTable
from shards.audit import AuditPlan, stale_plan
from shards.audit_tables import read_plan_table, read_ratings
from shards.documents import RunConfig, read_document
from shards.workspace import Workspace

COMPLETE = 0.9  # share of the faces whose answers count as all: fewer are a look before the end
LEAST_FACES = 10  # whose class raters could tell; an attribute with fewer is not estimated by people's answers


@dataclass(frozen=True)
class Audit:
    """The answers that were imported for a run's plan."""

    plan: AuditPlan
    faces: Mapping[tuple[str, str], AuditedFaces]  # by side (generated, train) and attribute, derived ones included
    first: Mapping[str, int]  # side -> faces of the plan before it was extended
    looks: int  # how often people may have looked: at the plan, at its extensions, and at incomplete answers
    keys: Mapping[str, pl.Series]  # side -> the keys of all faces of the plan, in the order of `faces`


def read_audit(
    connection: duckdb.DuckDBPyConnection,
    workspace: Workspace,
    run: str,
    *,
    config: RunConfig,
    attributes: AttributeTable,
) -> Audit | None:
    """The audit of a run; None without answers, or if its plan is stale.

    Crosses and derived attributes follow from the answers of raters who answered about all of their parts. Raises
    FairfaceError if the table of the plan or of the answers was changed.
    """
    folder = workspace.run(run)
    plan = read_document(folder.audit.plan_document, AuditPlan)
    if plan is None or stale_plan(workspace, folder, plan):
        return None
    ratings = read_ratings(folder.audit, plan)
    if ratings.is_empty():
        return None
    table = read_plan_table(folder.audit, plan)
    methods = group_counts.selected_methods(connection, run)
    found: dict[tuple[str, str], AuditedFaces] = {}
    for source in plan.sides:
        faces, answers = table.filter(source=source), ratings.filter(source=source)
        codes = rating_codes(faces["key"], answers, attributes)
        for method in dict.fromkeys(methods[name] for name in codes):
            names = [name for name in codes if methods[name] == method]
            labelled = label_codes(connection, faces["key"], source=(source, run, method), attributes=attributes)
            for name in names:
                counts = population_counts(
                    connection, name, source=(source, run, method), config=config, attributes=attributes
                )
                audited = audited_faces(faces, codes[name], labels=labelled[name], label_counts=counts)
                if audited.is_classified.sum() >= LEAST_FACES:
                    found[source, name] = audited
    if config_column := group_counts.target_column(config, attributes):
        found = weigh_training(connection, found, table, config=config, column=config_column, attributes=attributes)
    first = {source: int(((table["source"] == source) & (table["round"] == 0)).sum()) for source in plan.sides}
    answered = table.join(ratings, on=["source", "key"], how="semi")
    rounds = int(answered["round"].max()) + 1  # type: ignore[arg-type]
    is_complete = len(answered) >= COMPLETE * len(table.filter(pl.col("round") < rounds))
    keys = {source: table.filter(source=source)["key"] for source in plan.sides}
    return Audit(plan, found, first, looks=rounds + (not is_complete), keys=keys) if found else None


def rating_codes(keys: Iterable[str], ratings: pl.DataFrame, attributes: AttributeTable) -> dict[str, np.ndarray]:
    """The answers about every attribute that was asked, or that follows from those, int [n, R], by face and rater.

    A code is a class, the number of classes for "can't tell", or `NO_ANSWER`.
    """
    by_rater = []
    for _, answers in ratings.sort("rater").group_by("rater", maintain_order=True):
        wide = answers.with_columns(pl.col("group").fill_null(UNSURE)).pivot("attribute", index="key", values="group")
        rows = pl.DataFrame({"key": keys}, schema={"key": pl.String}).join(
            wide, on="key", how="left", maintain_order="left"
        )
        by_rater.append(class_codes(rows, attributes))
    names = [name for name in attributes if any(name in codes for codes in by_rater)]
    nothing = np.full(len(pl.Series(keys)), NO_ANSWER)
    return {name: np.stack([codes.get(name, nothing) for codes in by_rater], 1) for name in names}


def label_codes(
    connection: duckdb.DuckDBPyConnection,
    keys: pl.Series,
    *,
    source: tuple[str, str, str],
    attributes: AttributeTable,
) -> dict[str, np.ndarray]:
    """The labels of the faces `keys` by every attribute, int [n]; negative without a label.

    `source` is generated or train, the run, and the method.
    """
    side, run, method = source
    columns = unsure_labels.label_columns(attributes, unsure=attributes.labelled)
    text = f"""select key, {columns} from label_rows
        where source = $side and method = $method and ($side = 'train' or run = $run) and key in $keys"""
    values = {"side": side, "method": method, "run": run, "keys": keys.to_list()}
    labels = sql.select(connection, text, values)
    return class_codes(
        pl.DataFrame({"key": keys}).join(labels, on="key", how="left", maintain_order="left"), attributes
    )


def population_counts(
    connection: duckdb.DuckDBPyConnection,
    attribute: str,
    *,
    source: tuple[str, str, str],
    config: RunConfig,
    attributes: AttributeTable,
) -> np.ndarray:
    """All faces of a side by the label of an attribute, [K + 1]; training images count as often as trained on."""
    return count_cross(
        connection,
        [attribute],
        source=source,
        column=group_counts.target_column(config, attributes),
        weights=group_counts.image_weights(connection, config, attributes=attributes),
        attributes=attributes,
    )


def audited_faces(
    faces: pl.DataFrame, ratings: np.ndarray, *, labels: np.ndarray, label_counts: np.ndarray
) -> AuditedFaces:
    """The faces of one side of a plan with the answers about one attribute."""
    unsure = len(label_counts) - 1
    return AuditedFaces(
        ratings=ratings,
        labels=np.where(labels < 0, unsure, labels),
        strata=faces["stratum"].rank("dense").to_numpy().astype(int),
        probability=faces["probability"].to_numpy(),
        label_counts=label_counts,
    )


def weigh_training(
    connection: duckdb.DuckDBPyConnection,
    found: Mapping[tuple[str, str], AuditedFaces],
    table: pl.DataFrame,
    *,
    config: RunConfig,
    column: str,
    attributes: AttributeTable,
) -> dict[tuple[str, str], AuditedFaces]:
    """The faces with the training images weighted by how often the run was trained on them."""
    weights = group_counts.image_weights(connection, config, attributes=attributes) or {}
    keys = table.filter(source="train")["key"].to_list()
    text = f"select key, {sql.identifier(column)}::varchar as stratum from images where key in $keys"
    stratum = dict(sql.select(connection, text, {"keys": keys}).iter_rows())
    importance = np.array([weights.get(str(stratum.get(key)), 0.0) for key in keys])
    return {
        (source, name): faces.weighted(importance) if source == "train" else faces
        for (source, name), faces in found.items()
    }


def present_raters(faces: AuditedFaces) -> Sequence[int]:
    """The numbers of the raters who answered about a face."""
    return np.flatnonzero((faces.ratings != NO_ANSWER).any(0)).tolist()
