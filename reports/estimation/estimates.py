"""From the labels of both sides to shares, ratios, verdicts and distances, each with its uncertainty.

The reference is the training images, weighted as in training: counted by the same labeller's labels for raw shares, and
by the annotations for corrected ones. Even if every training image is labelled, they are treated as a sample of the
faces that could have been collected, so the reference has intervals too.
"""

import io
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import duckdb
import numpy as np
import polars as pl
from threadpoolctl import threadpool_limits

import sql
from reports.estimation import group_counts, neighbours, quality
from reports.estimation import unsure as unsure_labels
from reports.estimation.attribute_estimate import AttributeCounts, AttributeEstimate, estimate_attribute
from reports.estimation.audit.read import Audit, read_audit
from reports.estimation.audited import add_audit, audit_confusion_rows, audit_rows
from reports.estimation.confidence_shift import SHIFT_SCHEMA, confidence_shift, shifted_attributes
from reports.estimation.cross_counts import CrossCounter
from reports.estimation.detection_rates import detection_rate_rows
from reports.estimation.embeddings import read_embeddings
from reports.estimation.estimate_rows import Rows, distance_rows, estimate_rows, method_estimate_rows
from reports.estimation.external_reference import REFERENCE_SCHEMA, equal_shares, find_reference, reference_rows
from reports.estimation.first_faces import first_faces
from reports.estimation.intervals import holm_significant, wilson
from reports.estimation.labelled_sides import check_labels, has_training_images
from reports.estimation.rate_tables import save_rates
from reports.publish import publish
from shards import provenance
from shards.atomic_io import read_parquet, write_parquet
from shards.attributes import UNSURE, Attribute, AttributeTable, workspace_attributes
from shards.concurrency import available_cpus
from shards.documents import RunConfig, TablesDocument, changed_files, read_document
from shards.errors import FairfaceError
from shards.provenance import TRAINING
from shards.workspace import REPORT_TABLES, Workspace
from sql.definitions import labelled_parts

ESTIMATE_SCHEMA = {
    **dict.fromkeys(("run", "attribute", "group", "method"), pl.String),
    **dict.fromkeys(("n", "count"), pl.Int64),
    **dict.fromkeys(("share", "share_low", "share_high"), pl.Float64),
    **dict.fromkeys(("reference_n", "reference_count"), pl.Int64),
    **dict.fromkeys(("reference", "reference_low", "reference_high"), pl.Float64),
    **dict.fromkeys(("corrected", "corrected_low", "corrected_high", "annotated"), pl.Float64),
    **dict.fromkeys(("best_estimate", "correction_note", "strata"), pl.String),
    "is_shifted": pl.Boolean,
    "unsure": pl.Int64,
    **dict.fromkeys(("best_share", "best_share_low", "best_share_high"), pl.Float64),
    **dict.fromkeys(("best_reference", "best_reference_low", "best_reference_high"), pl.Float64),
    "best_reference_n": pl.Int64,
    **dict.fromkeys(("ratio", "ratio_low", "ratio_high"), pl.Float64),
    **dict.fromkeys(("verdict", "inconclusive_reason"), pl.String),
    "significant": pl.Boolean,
    "n_needed": pl.Int64,
    **dict.fromkeys(("human", "human_low", "human_high"), pl.Float64),
    **dict.fromkeys(("audited", "audited_low", "audited_high"), pl.Float64),
    **dict.fromkeys(("labels", "labels_needed"), pl.Int64),
    "unaudited_verdict": pl.String,
    **dict.fromkeys(("audited_least", "audited_most", "tuned_weight"), pl.Float64),
}
AUDIT_SCHEMA = {
    **dict.fromkeys(("run", "attribute", "source", "design"), pl.String),
    **dict.fromkeys(("looks", "planned", "answered", "classified"), pl.Int64),
    "cant_tell": pl.Float64,
    **dict.fromkeys(("raters", "rated_twice"), pl.Int64),
    **{
        f"{name}{end}": pl.Float64
        for name in ("alpha_nominal", "alpha_ordinal", "same", "close")
        for end in ("", "_low", "_high")
    },
    "errors_p": pl.Float64,
}
AUDIT_CONFUSION_SCHEMA = {
    **dict.fromkeys(("run", "attribute", "seen", "labelled"), pl.String),
    **dict.fromkeys(("faces", "share", "share_low", "share_high"), pl.Float64),
    "photographs": pl.Int64,
    "photographs_share": pl.Float64,
}
METHOD_ESTIMATE_SCHEMA = {
    **dict.fromkeys(("run", "attribute", "group", "method", "labeller", "estimate"), pl.String),
    **dict.fromkeys(("share", "low", "high", "reference", "ratio"), pl.Float64),
    "used": pl.Boolean,
}
DISTANCE_SCHEMA = {
    **dict.fromkeys(("run", "attribute", "estimate", "measure", "baseline"), pl.String),
    **dict.fromkeys(("value", "low", "high", "null_floor"), pl.Float64),
}
QUALITY_SCHEMA = {
    **dict.fromkeys(("run", "attribute", "group"), pl.String),
    "n": pl.Int64,
    **dict.fromkeys(quality.QUALITY_COLUMNS, pl.Float64),
}
SCHEMAS: dict[str, dict[str, Any]] = {  # of the tables of a run; `confusion` is that of the training images
    "estimates": ESTIMATE_SCHEMA,
    "method_estimates": METHOD_ESTIMATE_SCHEMA,
    "reference_estimates": REFERENCE_SCHEMA,
    "distances": DISTANCE_SCHEMA,
    "quality": QUALITY_SCHEMA,
    "neighbours": neighbours.NEIGHBOUR_SCHEMA,
    "confidence_shift": SHIFT_SCHEMA,
    "audit": AUDIT_SCHEMA,
    "audit_confusion": AUDIT_CONFUSION_SCHEMA,
}
WITHOUT_TRAINING = {  # fields of `estimates` where no training images are packed
    **dict.fromkeys(("reference_low", "reference_high", "best_reference_low", "best_reference_high")),
    **dict.fromkeys(("ratio_low", "ratio_high")),
    "verdict": None,
    "inconclusive_reason": None,
    "significant": None,
    "labels_needed": None,
    "unaudited_verdict": None,
    "correction_note": "no training images are packed, so the labeller's error rates are unknown",
}
UNTRUSTED = "the labeller was made for synthetic faces"
QUALITY_IMAGES, LEAST_QUALITY_IMAGES = 500, 100  # of a group on either side: at most, and where there are many groups
QUALITY_FACES = 18_500  # of all groups together, on either side: the time grows with the square of a group's images


@dataclass(frozen=True)
class RunEstimates:
    """The estimates of a run's attributes by the selected methods, and its audit."""

    selected: list[AttributeEstimate]
    audit: Audit | None


def choose_run(connection: duckdb.DuckDBPyConnection, workspace: Workspace, *, run: str | None) -> str:
    """`run`, or the newest run for None. Raises FairfaceError if there is no such run, or if it can't be read."""
    if run is not None and (folder := workspace.run(run)).config.exists():
        read_document(folder.config, RunConfig)  # the questions leave a damaged one out
    runs = sql.ask(connection, "runs")
    if not len(runs):
        if damaged := [reason for folder in workspace.runs() if (reason := provenance.config_problem(folder))]:
            raise FairfaceError(damaged[0])
        raise FairfaceError(f"there is no run below {workspace.root}: train one with `fairface train`")
    if run is None:
        newest: str = sql.select(connection, "select resolve_run('newest') as run")["run"][0]
        return newest
    if run not in runs["run"]:
        raise FairfaceError(f"there is no run {run!r} below {workspace.root}; the runs are: {', '.join(runs['run'])}")
    return run


def write_estimates(
    workspace: Workspace,
    connection: duckdb.DuckDBPyConnection,
    *,
    run: str,
    detectors: Collection[str] = (),
    untrusted: Collection[str] = (),
) -> dict[str, pl.DataFrame]:
    """Estimate a run and write the tables of `report/`, in addition to the rows of other runs; returns the run's.

    The rates at which the `detectors` call its samples fake are written as well. They are not corrected with the error
    rates of `untrusted` methods.

    Raises MissingLabels if a side has no labels, FairfaceError if the labels can't be compared.
    """
    config = read_document(workspace.run(run).config, RunConfig)
    if config is None:
        raise FairfaceError(f"there is no run {run!r} below {workspace.root}")
    attributes = workspace_attributes(workspace)
    # more BLAS threads would spin while waiting for each other
    with threadpool_limits(max(available_cpus() // 2, 1)), ThreadPoolExecutor(2) as pool:
        compared = pool.submit(quality_table, workspace, sql.connect(workspace), run=run, attributes=attributes)
        nearest = pool.submit(neighbours.find_nearest, workspace, run)
        tables, estimates = estimate_tables(workspace, connection, run=run, config=config, attributes=attributes)
        tables |= {"quality": compared.result(), "neighbours": nearest.result()}
    save_tables(workspace, connection, run=run, tables=tables)
    rates = detection_rate_rows(
        connection,
        run,
        detectors=detectors,
        estimates=[
            replace(one, corrected=None, correction_note=UNTRUSTED) if one.counts.method in untrusted else one
            for one in estimates.selected
        ],
        audit=estimates.audit,
        attributes=attributes,
    )
    save_rates(workspace, connection, run=run, detectors=detectors, rows=rates)
    return tables


def estimate_tables(
    workspace: Workspace,
    connection: duckdb.DuckDBPyConnection,
    *,
    run: str,
    config: RunConfig,
    attributes: AttributeTable,
) -> tuple[dict[str, pl.DataFrame], RunEstimates]:
    """A run's tables that are derived from counts of labels, and `confusion`; and the estimates behind them."""
    has_training = has_training_images(workspace, run)
    labellers = check_labels(connection, run, has_training=has_training).methods
    confusion = confusion_table(connection, attributes)
    selected = group_counts.selected_methods(connection, run)
    counted = ("estimates", "method_estimates", "reference_estimates", "distances", "audit", "audit_confusion")
    rows: dict[str, Rows] = {name: [] for name in counted}
    reference = find_reference(workspace, attributes)
    audit = read_audit(connection, workspace, run, config=config, attributes=attributes)
    shifts = confidence_shift(connection, run, attributes=attributes, selected=selected)
    all_counts = count_attributes(connection, run, config=config, confusion=confusion, attributes=attributes)
    shifted = shifted_attributes(shifts, attributes)
    estimates = [
        estimate_attribute(replace(counts, is_shifted=(counts.attribute, counts.method) in shifted))
        for counts in all_counts
    ]
    for seed, estimate in enumerate(estimates):
        counts = estimate.counts
        if counts.method not in labellers:  # CLIP, for an attribute that only the pixels label
            continue
        is_selected = selected[counts.attribute] == counts.method
        if audit and is_selected:
            estimate = add_audit(estimate, audit)
            rows["audit"] += audit_rows(estimate, run, audit)
            rows["audit_confusion"] += audit_confusion_rows(estimate, run, audit)
        rows["method_estimates"] += method_estimate_rows(
            estimate, run, labeller=labellers[counts.method], is_selected=is_selected
        )
        if is_selected:
            rows["estimates"] += estimate_rows(estimate, run)
            external = reference.attributes.get(counts.attribute) if reference else None
            if external is None and not has_training:
                external = equal_shares(attributes[counts.attribute].names)
            if external:
                rows["reference_estimates"] += reference_rows(estimate, run, external)
            rows["distances"] += distance_rows(estimate, run, seed=seed)
    for name in ("estimates", "reference_estimates"):
        rows[name] = add_significance(rows[name], attributes)
    if not has_training:
        rows["estimates"] = [row | WITHOUT_TRAINING for row in rows["estimates"]]
    tables = {name: pl.DataFrame(rows[name], schema=SCHEMAS[name]) for name in rows}
    used = [estimate for estimate in estimates if selected[estimate.counts.attribute] == estimate.counts.method]
    return tables | {"confidence_shift": shifts, "confusion": confusion}, RunEstimates(used, audit)


def discard_estimates(
    workspace: Workspace, connection: duckdb.DuckDBPyConnection, *, run: str, detectors: Collection[str] = ()
) -> None:
    """Remove a run's rows from `report/`, because its labels are missing or can't be compared."""
    tables = {name: pl.DataFrame(schema=schema) for name, schema in SCHEMAS.items()}
    tables["confusion"] = confusion_table(connection, workspace_attributes(workspace))
    save_tables(workspace, connection, run=run, tables=tables)
    save_rates(workspace, connection, run=run, detectors=detectors, rows=[])


def save_tables(
    workspace: Workspace, connection: duckdb.DuckDBPyConnection, *, run: str, tables: dict[str, pl.DataFrame]
) -> None:
    """Write a run's tables, keeping the rows of other runs that were labelled by the same labellers."""
    made_of = {
        name: inputs for name, inputs in tables_made_of(workspace).items() if name in comparable_runs(connection)
    }
    kept = sorted(made_of.keys() - {run})
    files = {}
    for name, table in tables.items():
        if name in SCHEMAS:
            others = sql.select(connection, f"from {name}").filter(pl.col("run").is_in(kept))
            table = pl.concat([others.select(table.columns), table], how="vertical_relaxed")
        path, data = workspace.report.table(name), io.BytesIO()
        write_parquet(path, table, output=data)
        files[path.name] = data.getvalue()
    made_of |= {run: provenance.estimate_inputs(workspace, run) or "", TRAINING: provenance.training_inputs(workspace)}
    publish(workspace.report.tables_document, TablesDocument(made_of=made_of, files={}), files)


def tables_made_of(workspace: Workspace) -> dict[str, str]:
    """What the rows of each run were made of; empty if the tables are not those that their document describes."""
    folder = workspace.report
    try:
        document = read_document(folder.tables_document, TablesDocument)
    except FairfaceError:
        return {}
    is_complete = document and document.files.keys() == {folder.table(name).name for name in REPORT_TABLES}
    return document.made_of if document and is_complete and not changed_files(folder.folder, document.files) else {}


def discard_damaged_tables(workspace: Workspace) -> set[str]:
    """Remove the report's tables if they are incomplete or damaged; returns the runs whose rows could be read."""
    folder, runs = workspace.report, set[str]()
    if tables_made_of(workspace):
        return runs
    for name in REPORT_TABLES:
        path = folder.table(name)
        if name in SCHEMAS and path.is_file():
            with suppress(FairfaceError):  # the damaged one
                runs.update(read_parquet(path, {"run": pl.String})["run"].drop_nulls())
        path.unlink(missing_ok=True)
    folder.tables_document.unlink(missing_ok=True)  # last: tables without it were not written by fairface
    return runs


def has_estimates(workspace: Workspace, run: str) -> bool:
    """Whether the tables are those of a run's present labels: the pages of other runs write them, too."""
    return tables_made_of(workspace).get(run) == provenance.estimate_inputs(workspace, run)


def comparable_runs(connection: duckdb.DuckDBPyConnection) -> set[str]:
    """The runs whose estimates are based on the training images' current labellers, or on no training images."""
    text = """select run from runs join method_estimates using (run) where used group by run
        having bool_and(labeller in (select labeller from labels where source = 'train'))
            or not exists (from labels where source = 'train')"""
    return set(sql.select(connection, text)["run"])


def confusion_table(connection: duckdb.DuckDBPyConnection, attributes: AttributeTable) -> pl.DataFrame:
    """method, labeller, attribute, annotated, labelled, count over the training images that have both.

    `labelled` is `UNSURE` where the labeller abstains.
    """
    unsure = unsure_labels.unsure_attributes(connection, attributes)
    # as in view `class_counts`: a few sets of combinations are counted, from which those of every attribute follow
    sides = ("annotated", "labelled")
    columns = {name: [sql.identifier(f"{name}_{side}") for side in sides] for name in attributes.labelled}

    def read_label(name: str) -> str:
        is_certain = name not in unsure
        return f"l.{sql.identifier(name)}" if is_certain else unsure_labels.label_text(name, unsure=unsure, table="l")

    read = ", ".join(
        f"a.{sql.identifier(name)} as {annotated}, {read_label(name)} as {labelled}"
        for name, (annotated, labelled) in columns.items()
    )
    sets = sql.grouping_sets(attributes)
    counted = ", ".join(
        f"(method, {', '.join(column for name in names for column in columns[name])})"
        for names in dict.fromkeys(sets.values())
    )
    labelled = list(attributes.labelled)
    grouping = f"grouping({', '.join(columns[name][0] for name in labelled)})"

    def pairs(attribute: Attribute) -> str:
        classes = [sql.class_expression(attribute, attributes, suffix=f"_{side}") for side in sides]
        if labelled_parts(attribute, attributes) & unsure:
            classes[1] = unsure_labels.class_or_unsure(attribute, attributes, suffix="_labelled")
        grouping_id = sql.grouping_id(attribute, attributes)
        return f"""select method, {sql.quote(attribute.name)} as attribute, {classes[0]}::varchar as annotated,
            {classes[1]}::varchar as labelled, n from counts where grouping_id = {grouping_id}"""

    text = f"""
        with names as (
            select method, any_value(labeller) as labeller from label_rows where source = 'train' group by method
        ), faces as (
            select l.method, {read} from label_rows as l join image_rows as a using (key)
            where l.source = 'train' and a.status = 'packed'
        ), counts as materialized (
            select *, {grouping} as grouping_id, count(*) as n from faces group by grouping sets ({counted})
        )
        select method, labeller, attribute, annotated, labelled, sum(n)::bigint as count
        from ({" union all ".join(map(pairs, attributes.values()))}) join names using (method)
        where annotated is not null and labelled is not null
        group by all order by all"""
    return sql.select(connection, text)


def labeller_accuracy(confusion: pl.DataFrame) -> pl.DataFrame:
    """method, attribute, n, accuracy, low, high, balanced_accuracy (mean recall) from a table of `confusion_table`.

    Only sure labels count.
    """
    confusion = confusion.filter(pl.col("labelled") != UNSURE)
    is_correct, by = pl.col("annotated") == pl.col("labelled"), ["method", "attribute"]
    correct = pl.col("count").filter(is_correct).sum()
    recalls = confusion.group_by(*by, "annotated").agg(recall=correct / pl.col("count").sum())
    balanced = recalls.group_by(by).agg(balanced_accuracy=pl.col("recall").mean())
    table = confusion.group_by(by).agg(n=pl.col("count").sum(), correct=correct).join(balanced, on=by)
    low, high = wilson(table["correct"].to_numpy(), table["n"].to_numpy())
    return (
        table.with_columns(accuracy=pl.col("correct") / pl.col("n"), low=pl.Series(low), high=pl.Series(high))
        .select(*by, "n", "accuracy", "low", "high", "balanced_accuracy")
        .sort("attribute", "method")
    )


def count_attributes(
    connection: duckdb.DuckDBPyConnection,
    run: str,
    *,
    config: RunConfig,
    confusion: pl.DataFrame,
    attributes: AttributeTable,
) -> list[AttributeCounts]:
    """The counts of every attribute by every labelling method, absent groups included."""
    counter = CrossCounter(connection, run, config=config, attributes=attributes)
    table = group_counts.count_groups(connection, run, config=config, attributes=attributes)
    return [
        counter.with_strata(attribute_counts(str(attribute), str(method), rows, confusion=confusion))
        for (attribute, method), rows in table.group_by("attribute", "method", maintain_order=True)
    ]


def attribute_counts(attribute: str, method: str, table: pl.DataFrame, *, confusion: pl.DataFrame) -> AttributeCounts:
    """One labeller's counts of one attribute, from rows of `count_groups` and the table of `confusion_table`."""
    is_unsure = table["group"] == UNSURE
    sure, unsure = table.filter(~is_unsure), table.filter(is_unsure)
    cells = confusion.filter(attribute=attribute, method=method)
    labels = [*sure["group"], *([UNSURE] if len(unsure) or (cells["labelled"] == UNSURE).any() else [])]
    index = {name: i for i, name in enumerate(labels)}
    matrix = np.zeros((len(sure), len(labels)), int)
    for row in cells.iter_rows(named=True):
        matrix[index[row["annotated"]], index[row["labelled"]]] = row["count"]
    return AttributeCounts(
        attribute=attribute,
        method=method,
        groups=sure["group"].to_list(),
        count=sure["count"].to_numpy(),
        reference=sure["reference_count"].to_numpy(),
        annotated=sure["annotated_count"].to_numpy(),
        confusion=matrix,
        is_fully_annotated=bool(table["is_fully_annotated"][0]),
        unsure=float(unsure["count"].sum()),
    )


def add_significance(rows: Rows, attributes: AttributeTable) -> Rows:
    """Replace `p` by `significant` in rows of `estimates`: Holm's procedure over all groups, small cells separately."""
    is_cell = np.array([not attributes[row["attribute"]].is_tabulated for row in rows], bool)
    p, significant = np.array([row.pop("p") for row in rows]), np.zeros(len(rows), bool)
    for family in (is_cell, ~is_cell):
        significant[family] = holm_significant(p[family])
    return [row | {"significant": bool(value)} for row, value in zip(rows, significant, strict=True)]


def quality_table(
    workspace: Workspace, connection: duckdb.DuckDBPyConnection, *, run: str, attributes: AttributeTable
) -> pl.DataFrame:
    """A run's rows of `quality`; none without embeddings of both sides.

    The first images of each group by key are compared; their order is random because of packing and sampling.
    """
    paths = {
        "train": workspace.shards.label_files.embeddings,
        "generated": workspace.run(run).label_files.embeddings,
    }
    if not all(path.is_file() for path in paths.values()):
        return pl.DataFrame(schema=QUALITY_SCHEMA)
    compared = [name for name, item in attributes.items() if item.headline or len(item.cross) == 2]
    groups = sum(len(attributes[name].names) for name in compared)
    images = min(QUALITY_IMAGES, max(LEAST_QUALITY_IMAGES, QUALITY_FACES // max(groups, 1)))
    keys = first_faces(connection, compared, run=run, faces=2 * images)
    limits = {"train": 2 * images, "generated": images}
    vectors = {
        source: read_embeddings(path, keys.filter(source=source).select("key").unique()["key"])
        for source, path in paths.items()
    }
    rows = []
    for seed, (attribute, classes) in enumerate(attribute_groups(connection).items()):
        of_attribute = keys.filter(attribute=attribute)
        sides = {
            source: embedded_images(table, of_attribute.filter(source=source), limit=limits[source])
            for source, table in vectors.items()
        }
        if not len(of_attribute) or not all(len(side.groups) for side in sides.values()):
            continue
        values = quality.quality_rows(sides["train"], sides["generated"], groups=classes, seed=seed, limit=images)
        rows += [{"run": run, "attribute": attribute, **row} for row in values]
    return pl.DataFrame(rows, schema=QUALITY_SCHEMA)


def embedded_images(vectors: pl.DataFrame, keys: pl.DataFrame, *, limit: int) -> quality.EmbeddedImages:
    """The embeddings of at most `limit` images of each group; `keys` has key and group."""
    first = keys.group_by("group", maintain_order=True).head(limit)
    table = vectors.join(first, on="key", how="inner", maintain_order="left")
    return quality.EmbeddedImages(table["embedding"].to_numpy(), table["group"].to_list())


def attribute_groups(connection: duckdb.DuckDBPyConnection) -> dict[str, list[str]]:
    """Attribute -> its groups, in their order."""
    table = sql.select(connection, "from vocabulary order by attribute, rank")
    groups = table.group_by("attribute", maintain_order=True)
    return {str(attribute): rows["group"].to_list() for (attribute,), rows in groups}
