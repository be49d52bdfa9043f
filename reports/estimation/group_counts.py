"""Counts of faces by group on each side, with the training side weighted as a run sampled it."""

import json
from collections.abc import Collection
from typing import Any

import duckdb
import polars as pl

import sql
from reports.estimation import unsure as unsure_labels
from shards.attributes import UNSURE, AttributeTable
from shards.documents import RunConfig
from shards.errors import FairfaceError
from sql.definitions import labelled_parts

FULLY_ANNOTATED = 0.98  # share of the images above which the remaining ones can't matter much
SUBSET_COLUMNS = ("target", "family", "subset")  # that a run can be balanced by, in addition to the attributes
SIDES = {"generated": "count", "train": "reference_count", "annotated": "annotated_count"}  # source -> column


def selected_methods(connection: duckdb.DuckDBPyConnection, run: str) -> dict[str, str]:
    """The labelling method that is used for each attribute: imported if the run has imported labels, else selected."""
    return dict(sql.select(connection, "from run_methods($run)", {"run": run}).iter_rows())


def target_column(config: RunConfig, attributes: AttributeTable) -> str | None:
    """The label by which a run was balanced or conditioned; None if it was trained on all images equally.

    Raises FairfaceError if config.json names another column.
    """
    options = config.options or {}
    column = options.get("balance_by") if options.get("balance", "natural") != "natural" else options.get("conditional")
    if column and column not in (*attributes, *SUBSET_COLUMNS):
        raise FairfaceError(f"config.json of run {config.name} names {column!r}, which is not a label")
    return column


def image_weights(
    connection: duckdb.DuckDBPyConnection, config: RunConfig, *, attributes: AttributeTable
) -> dict[str, float] | None:
    """How often a run was trained on an image of each group, relative to the packed images; None if equally often.

    Groups that are not listed, and images without the label, were not used.
    """
    if not (column := target_column(config, attributes)):
        return None
    name = sql.identifier(column)
    text = f"""select {name}::varchar as name, count(*) as n from images
        where status = 'packed' and {name} is not null group by all"""
    counts = dict(sql.select(connection, text).iter_rows())
    balance = (config.options or {}).get("balance", "natural")
    if balance == "natural":
        return dict.fromkeys(counts, 1.0)
    shares = dict.fromkeys(counts, 1.0) if balance == "uniform" else parse_shares(balance)
    total_share, total = sum(shares.values()) or 1.0, sum(counts.values())
    weights = {
        name: (share / total_share) / (counts[name] / total) for name, share in shares.items() if counts.get(name)
    }
    if not any(weights.values()):
        raise FairfaceError(
            f"run {config.name} was trained on groups of {column} that none of the packed images belongs to"
        )
    return weights


def parse_shares(balance: Any) -> dict[str, float]:
    """Parse the target shares in config.json. Raises FairfaceError for anything else."""
    try:
        shares = json.loads(balance) if isinstance(balance, str) else balance
        return {str(name): float(share) for name, share in shares.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise FairfaceError(f"config.json holds an invalid balance: {str(balance)[:80]!r}") from error


def count_groups(
    connection: duckdb.DuckDBPyConnection, run: str, *, config: RunConfig, attributes: AttributeTable
) -> pl.DataFrame:
    """The counts of every attribute's groups on all three sides, by every method that labelled the run's samples.

    Columns: attribute, method, group, rank, count (generated faces), reference_count (training faces, labelled),
    annotated_count (training faces, as annotated), all float64, and is_fully_annotated: whether at least
    `FULLY_ANNOTATED` of the training faces are annotated. If a run was not trained on all images equally, the
    training side is weighted and its counts are effective sample sizes: Kish, Survey Sampling, 1965, section 8.2.
    """
    column = target_column(config, attributes)
    weights = image_weights(connection, config, attributes=attributes)
    counts = weigh_counts(count_sides(connection, run, column=column, attributes=attributes), weights)
    total = count_packed(connection, column=column)
    trained_on: float = int(total["n"].sum())
    if weights is not None:
        trained_on = sum(n * weights.get(name, 0.0) for name, n in total.iter_rows())
    annotated = counts.filter(source="annotated").group_by("attribute").agg(pl.col("weight").sum())
    fully_annotated = annotated.select("attribute", is_fully_annotated=pl.col("weight") >= FULLY_ANNOTATED * trained_on)
    # in a fixed order, as the last bit of a sum of weights depends on it
    groups = counts.group_by("source", "method", "attribute", "group", maintain_order=True)
    effective = groups.agg(pl.col("effective").sum())
    selected = list(selected_methods(connection, run).items())
    table = align_sides(
        effective,
        pl.DataFrame(selected, schema=["attribute", "method"], orient="row"),
        vocabulary=sql.select(connection, 'select attribute, "group", rank from vocabulary'),
    )
    return table.join(fully_annotated, on="attribute", how="left", maintain_order="left").with_columns(
        pl.col("is_fully_annotated").fill_null(False)
    )


def count_sides(
    connection: duckdb.DuckDBPyConnection, run: str, *, column: str | None, attributes: AttributeTable
) -> pl.DataFrame:
    """source, method, attribute, group, stratum (the class of `column`, null without it), n."""
    text = """select source, method, attribute, "group", null as stratum, sum(n)::bigint as n from class_counts
        where source <> 'generated' or run = $run group by all order by all"""
    if column:
        # combinations of all labels are counted before they are unpivoted: there are few of them
        names = [sql.identifier(name) for name in attributes]
        combinations = f"""select source, method, {", ".join(names)}, {stratum(column)}, count(*) as n
            from labels_wide {join_strata(column)} where source <> 'generated' or run = $run group by all"""
        as_text = ", ".join(f"{name}::varchar as {name}" for name in names)
        text = f"""select source, method, attribute, "group", stratum, sum(n)::bigint as n
            from (select * replace ({as_text}) from ({combinations}))
            unpivot ("group" for attribute in ({", ".join(names)})) group by all order by all"""
    counts = sql.select(connection, text, {"run": run}).cast({"stratum": pl.String})
    unsure = unsure_labels.unsure_attributes(connection, attributes)
    return pl.concat([counts, *count_unsure(connection, run, column=column, attributes=attributes, unsure=unsure)])


def count_unsure(
    connection: duckdb.DuckDBPyConnection,
    run: str,
    *,
    column: str | None,
    attributes: AttributeTable,
    unsure: Collection[str],
) -> list[pl.DataFrame]:
    """The faces that are `UNSURE` in an attribute, in the columns of `count_sides`; a table for each."""
    affected = [item for item in attributes.values() if labelled_parts(item, attributes) & set(unsure)]
    columns = unsure_labels.label_columns(attributes, unsure=unsure)
    return [
        sql.select(
            connection,
            f"""select source, method, {sql.quote(item.name)} as attribute, {sql.quote(UNSURE)} as "group",
                {stratum(column)}, count(*)::bigint as n
            from (select key, source, run, method, {columns} from label_rows)
                {join_strata(column)}
            where (source = 'train' or (source = 'generated' and run = $run))
                and {unsure_labels.class_or_unsure(item, attributes)} = {sql.quote(UNSURE)}
            group by all order by all""",
            {"run": run},
        ).cast({"stratum": pl.String})
        for item in affected
    ]


def count_packed(connection: duckdb.DuckDBPyConnection, *, column: str | None) -> pl.DataFrame:
    """stratum and n of all packed images."""
    text = f"""select {stratum(column)}, count(*) as n from images {join_strata(column)}
        where status = 'packed' group by all"""
    return sql.select(connection, text).cast({"stratum": pl.String})


def stratum(column: str | None) -> str:
    """SQL column `stratum`, null without a `column`."""
    return "stratum" if column else "null as stratum"


def join_strata(column: str | None) -> str:
    """SQL join that adds `stratum`, the class of each packed image in `column`; none without a `column`."""
    if not column:
        return ""
    name = sql.identifier(column)
    return f"left join (select key, {name}::varchar as stratum from images where status = 'packed') using (key)"


def weigh_counts(counts: pl.DataFrame, weights: dict[str, float] | None) -> pl.DataFrame:
    """The counts with the `weight` of their faces, and with `effective`: their part of the effective sample size."""
    factor = pl.lit(1.0)
    if weights is not None:
        by_stratum = pl.col("stratum").replace_strict(weights, default=0.0, return_dtype=pl.Float64).fill_null(0.0)
        factor = pl.when(pl.col("source") == "generated").then(1.0).otherwise(by_stratum)
    side = ["source", "method", "attribute"]
    counts = counts.with_columns(weight=factor * pl.col("n"), squared_weight=factor**2 * pl.col("n"))
    total, squared = pl.col("weight").sum().over(side), pl.col("squared_weight").sum().over(side)
    return counts.with_columns(effective=pl.when(squared > 0).then(pl.col("weight") * total / squared).otherwise(0.0))


def align_sides(effective: pl.DataFrame, selected: pl.DataFrame, *, vocabulary: pl.DataFrame) -> pl.DataFrame:
    """Join the three sides of each attribute and method, with a row for every group that any of them has.

    The `selected` pairs of attribute and method have rows even if no face was labelled by them, unless nothing is known
    of the attribute.
    """
    keys = ["attribute", "group"]
    pairs = pl.concat([effective.filter(source="generated").select("attribute", "method"), selected]).unique()
    pairs = pairs.join(effective, on="attribute", how="semi")
    groups = pl.concat([vocabulary.select(keys), effective.select(keys)]).unique()
    table = pairs.join(groups, on="attribute").join(vocabulary, on=keys, how="left")
    for source, name in SIDES.items():
        side = effective.filter(source=source).rename({"effective": name})
        side_keys = keys if source == "annotated" else [*keys, "method"]
        table = table.join(side.select(*side_keys, name), on=side_keys, how="left")
    table = table.with_columns(pl.col(*SIDES.values()).fill_null(0.0), pl.col("rank").fill_null(1000))
    return table.sort("attribute", "method", "rank", "group")
