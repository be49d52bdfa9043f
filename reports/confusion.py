"""Confusion matrices of the selected labellers, for the page."""

from collections.abc import Sequence
from dataclasses import dataclass

import duckdb
import polars as pl

import sql
from shards.attributes import AttributeTable


@dataclass(kw_only=True)
class ConfusionRow:
    """The training faces of one annotated group."""

    annotated: str
    n: int
    shares: list[float | None]  # labelled as each group; None if n is 0


@dataclass(kw_only=True)
class ConfusionMatrix:
    """One attribute: annotated groups in rows, labelled ones in columns."""

    groups: list[str]  # of the columns; the rows are some of them, in the same order
    rows: list[ConfusionRow]


def confusion_matrices(connection: duckdb.DuckDBPyConnection, attributes: AttributeTable) -> dict[str, ConfusionMatrix]:
    """The confusion matrix of every attribute that images are annotated with."""
    text = (
        """select attribute, annotated, labelled, count from confusion join selected_method using (attribute, method)"""
    )
    tables = sql.select(connection, text).partition_by("attribute", as_dict=True)
    return {
        name: confusion_matrix(tables[name,], attribute.names)
        for name, attribute in attributes.tabulated.items()
        if (name,) in tables
    }


def confusion_matrix(table: pl.DataFrame, names: Sequence[str]) -> ConfusionMatrix:
    """An attribute's confusion matrix, absent groups included; `unsure` and unexpected ones last.

    Labels may be unsure; annotations are not, and have no such row.
    """
    groups = list(names)
    groups += sorted({*table["annotated"], *table["labelled"]} - set(groups))
    is_annotated = {*names, *table["annotated"]}
    cells = {(row["annotated"], row["labelled"]): row["count"] for row in table.to_dicts()}
    rows = []
    for annotated in filter(is_annotated.__contains__, groups):
        counts = [cells.get((annotated, labelled), 0) for labelled in groups]
        n = sum(counts)
        rows.append(ConfusionRow(annotated=annotated, n=n, shares=[count / n if n else None for count in counts]))
    return ConfusionMatrix(groups=groups, rows=rows)
