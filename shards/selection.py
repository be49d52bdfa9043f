"""Selects the images to pack: by family or method, by split, by predicate, by random sample."""

import json
from collections.abc import Sequence

import duckdb
import numpy as np
import polars as pl

from shards.annotations import derived_class
from shards.attributes import AttributeTable
from shards.errors import FairfaceError
from shards.match import normalise_name

PREDICATE_COLUMNS = ("path", "family", "subset", "split", "target")  # in addition to the attributes


def in_subsets(frame: pl.DataFrame, names: Sequence[str], *, aliases: dict[str, str]) -> pl.Expr:
    """Whether a row belongs to one of `names`, families or methods, regardless of case, `_`, `-` and aliases."""

    def canonical(name: str) -> str:
        return aliases.get(normalise_name(name), normalise_name(name))

    wanted = {canonical(name) for name in names}
    present = {name for column in ("family", "subset") for name in frame[column].unique().drop_nulls()}
    selected = [name for name in present if canonical(name) in wanted]
    return (pl.col("family").is_in(selected) | pl.col("subset").is_in(selected)).fill_null(False)


def check_selection(
    option: str, names: Sequence[str], *, frame: pl.DataFrame, selected: pl.Expr, columns: Sequence[str]
) -> None:
    """Raise FairfaceError if `selected` is true for no row of `frame`; the message lists the names in `columns`."""
    if frame.select(selected.any()).item():
        return
    present = sorted({str(name) for column in columns for name in frame[column].unique().drop_nulls()})
    choices = ", ".join(present[:60]) or "none"
    raise FairfaceError(
        f"{option} {', '.join(names)} selects none of the {len(frame):,} images; the names are: {choices}"
    )


def rows_matching(frame: pl.DataFrame, predicate: str, attributes: AttributeTable) -> pl.Series:
    """The numbers of the rows that a DuckDB predicate over PREDICATE_COLUMNS and all attributes selects.

    Raises FairfaceError for an invalid predicate, one that names no column, and one that selects nothing.
    """
    if not predicate.strip():
        raise FairfaceError("--where is empty: leave it out, or give a predicate")
    columns = ", ".join((*PREDICATE_COLUMNS, *attributes))
    closed: dict[str, str | bool | int | float | list[str]] = {
        "enable_external_access": False,
        "python_enable_replacements": False,
    }
    connection = duckdb.connect(":memory:", config=closed)
    number, crosses = pl.int_range(pl.len()).alias("row number"), map(derived_class, attributes.crosses)
    numbered = frame.select(number, *PREDICATE_COLUMNS, *attributes.stored, *crosses)
    connection.register("images", numbered.to_arrow())
    text = f'select "row number" from images where (\n{predicate}\n)'
    try:
        tree = json.loads(connection.sql("select json_serialize_sql($1::varchar)", params=[text]).fetchall()[0][0])
        parsed = [statement["node"] for statement in tree.get("statements", [])]
        if len(parsed) != 1 or parsed[0]["type"] != "SELECT_NODE":
            raise FairfaceError(
                f"--where {predicate!r} is not one predicate: {tree.get('error_message', 'it is more than one')}"
            )
        if not references_column(parsed[0]["where_clause"]):
            raise FairfaceError(f"--where {predicate!r} names no column; the columns are {columns}")
        selected = connection.sql(text + ' order by "row number"').pl().to_series()
    except RecursionError:
        raise FairfaceError(f"--where {predicate[:80]!r} is nested too deeply") from None
    except duckdb.Error as error:
        reason = str(error).strip().split("\n")[0]
        hint = f"; the columns are {columns}" if "column" in reason else ""
        raise FairfaceError(f"--where {predicate!r}: {reason}{hint}") from error
    if selected.is_empty():
        raise FairfaceError(f"--where {predicate!r} selects none of the {len(frame):,} images")
    return selected


def references_column(tree: object) -> bool:
    """Whether a parsed expression refers to a column anywhere."""
    if isinstance(tree, dict):
        return tree.get("class") == "COLUMN_REF" or any(map(references_column, tree.values()))
    return isinstance(tree, list) and any(map(references_column, tree))


def shuffled_sample(count: int, limit: int | None, *, seed: int) -> np.ndarray:
    """The numbers below `count` in a seeded random order, or the first `limit` of them, int64 [N]."""
    return np.random.default_rng(seed).permutation(count)[:limit]
