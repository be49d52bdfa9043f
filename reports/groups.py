"""Counts faces by group on each side, the training side as a run was shown it."""

import json
from typing import Any

import duckdb
import polars as pl

import sql
from shards.errors import FairfaceError

DIVIDED = ("gender", "age", "skin_tone", "skin_group", "intersection", "intersection_age")  # what estimates are of
WHOLE = 0.98  # of the images annotated: what the others are like can't matter much then
COLUMNS = ("gender", "age", "skin_tone", "skin_group", "intersection", "race", "target", "family", "subset")


def counting(connection: duckdb.DuckDBPyConnection, run: str) -> dict[str, str]:
    """Attribute -> the method whose labels count for a run: those from elsewhere, else the better of CLIP and probe."""
    asked = """select attribute, coalesce(
            (select any_value(method) from labels where run = $run and method = 'imported'), method) as method
        from chosen"""
    return dict(sql.select(connection, asked, {"run": run}).iter_rows())


def steered_by(config: dict[str, Any]) -> str | None:
    """The label by which a run was shown other shares than the packed images have; None where it was not."""
    options = config.get("options") or {}
    column = options.get("balance_by") if options.get("balance", "natural") != "natural" else options.get("conditional")
    if column and column not in COLUMNS:
        raise FairfaceError(f"config.json of run {config.get('run')} names {column!r}, which is no label")
    return column


def weights(connection: duckdb.DuckDBPyConnection, config: dict[str, Any]) -> dict[str, float] | None:
    """How often a run was shown an image of each group, relative to the packed images; None for all alike.

    Groups that are not named, and images without the label, were not shown.
    """
    if not (column := steered_by(config)):
        return None
    asked = (
        f"select {column}::varchar as name, count(*) as n from images where status = 'packed' and {column} is not null"
    )
    counts = dict(sql.select(connection, f"{asked} group by all").iter_rows())
    balance = config["options"].get("balance", "natural")
    if balance == "natural":
        return dict.fromkeys(counts, 1.0)
    wanted = dict.fromkeys(counts, 1.0) if balance == "uniform" else shares_in(balance)
    asked_for, there = sum(wanted.values()) or 1.0, sum(counts.values())
    found = {name: (share / asked_for) / (counts[name] / there) for name, share in wanted.items() if counts.get(name)}
    if not any(found.values()):
        raise FairfaceError(
            f"run {config.get('run')} was shown groups of {column} that none of the packed images is of"
        )
    return found


def shares_in(balance: dict[str, float] | str) -> dict[str, float]:
    """Target shares as config.json holds them. FairfaceError for anything else."""
    try:
        read = json.loads(balance) if isinstance(balance, str) else balance
        return {str(name): float(share) for name, share in read.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise FairfaceError(f"config.json holds a balance that is none: {str(balance)[:80]!r}") from error


def cells(connection: duckdb.DuckDBPyConnection, run: str, config: dict[str, Any]) -> pl.DataFrame:
    """The three sides of every attribute, by every method that labelled the run's samples and every class in its order.

    attribute, method, group, rank, count, reference_count, annotated_count (float64), and `whole`: whether at least
    WHOLE of what the run was shown is annotated. Where it was not shown the images as they are, the training side is
    weighted, and its counts are those of as many faces as tell as much: Kish's effective sample size (Survey Sampling,
    1965, section 8.2).
    """
    column, weight = steered_by(config), weights(connection, config)
    beside = f"left join (select key, {column}::varchar as stratum from images where status = 'packed') using (key)"
    alike = f"""select source, method, {", ".join(DIVIDED)}, {"stratum" if column else "null as stratum"}, count(*) as n
        from stated {beside if column else ""} where source <> 'generated' or run = $run group by all"""
    text = ", ".join(f"{name}::varchar as {name}" for name in DIVIDED)  # counted before it is taken apart
    asked = f"""select source, method, attribute, "group", stratum, sum(n)::bigint as n
        from (select * replace ({text}) from ({alike})) unpivot ("group" for attribute in ({", ".join(DIVIDED)}))
        group by all"""
    found = sql.select(connection, asked, {"run": run}).cast({"stratum": pl.String})
    side, factor = pl.col("source") == "generated", pl.lit(1.0)
    if weight is not None:
        named = pl.col("stratum").replace_strict(weight, default=0.0, return_dtype=pl.Float64).fill_null(0.0)
        factor = pl.when(side).then(1.0).otherwise(named)
    by = ["source", "method", "attribute"]
    found = found.with_columns(w=factor * pl.col("n"), w2=factor**2 * pl.col("n"))
    total, square = pl.col("w").sum().over(by), pl.col("w2").sum().over(by)
    found = found.with_columns(effective=pl.when(square > 0).then(pl.col("w") * total / square).otherwise(0.0))
    asked = f"select {'stratum' if column else 'null as stratum'}, count(*) as n from images {beside if column else ''}"
    there = sql.select(connection, f"{asked} where status = 'packed' group by all").cast({"stratum": pl.String})
    shown = there["n"].sum()
    if weight is not None:
        shown = sum(n * weight.get(name, 0.0) for name, n in there.iter_rows())
    annotated = found.filter(source="annotated").group_by("attribute").agg(pl.col("w").sum())
    whole = annotated.select("attribute", whole=pl.col("w") >= WHOLE * shown)
    found = found.group_by(*by, "group").agg(pl.col("effective").sum())
    counted = pl.DataFrame(list(counting(connection, run).items()), schema=["attribute", "method"], orient="row")
    cells = laid_out(found, counted, sql.select(connection, 'select attribute, "group", rank from vocabulary'))
    return cells.join(whole, on="attribute", how="left", maintain_order="left").with_columns(
        pl.col("whole").fill_null(False)
    )


def laid_out(found: pl.DataFrame, counted: pl.DataFrame, vocabulary: pl.DataFrame) -> pl.DataFrame:
    """The three sides of each attribute and method beside each other, with a row for every group that any has.

    Those pairs of attribute and method that are `counted` are there even where no face was labelled so.
    """
    on, names = (
        ["attribute", "group"],
        {"generated": "count", "train": "reference_count", "annotated": "annotated_count"},
    )
    drawn = pl.concat([found.filter(source="generated").select("attribute", "method"), counted]).unique()
    groups = pl.concat([vocabulary.select(on), found.select(on)]).unique()
    table = drawn.join(groups, on="attribute").join(vocabulary, on=on, how="left")
    for source, name in names.items():
        side = found.filter(source=source).rename({"effective": name})
        keys = on if source == "annotated" else [*on, "method"]
        table = table.join(side.select(*keys, name), on=keys, how="left")
    table = table.with_columns(pl.col(*names.values()).fill_null(0.0), pl.col("rank").fill_null(1000))
    return table.sort("attribute", "method", "rank", "group")
