"""Confusion matrices of the selected labellers, for the page."""

from dataclasses import dataclass

import duckdb

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
    """One attribute: annotated groups in rows, labelled ones in columns, in the same order."""

    groups: list[str]
    rows: list[ConfusionRow]


def confusion_matrices(connection: duckdb.DuckDBPyConnection, attributes: AttributeTable) -> dict[str, ConfusionMatrix]:
    """The confusion matrix of every attribute that images are annotated with."""
    matrices = {attribute: confusion_matrix(connection, attribute) for attribute in attributes.tabulated}
    return {attribute: matrix for attribute, matrix in matrices.items() if any(row.n for row in matrix.rows)}


def confusion_matrix(connection: duckdb.DuckDBPyConnection, attribute: str) -> ConfusionMatrix:
    """An attribute's confusion matrix, absent groups included and unexpected ones last."""
    table = sql.ask(connection, "confusion", attribute=attribute)
    vocabulary = 'select "group" from vocabulary where attribute = $attribute order by rank'
    groups = sql.select(connection, vocabulary, {"attribute": attribute})["group"].to_list()
    groups += sorted({*table["annotated"], *table["labelled"]} - set(groups))
    cells = {(row["annotated"], row["labelled"]): row["count"] for row in table.to_dicts()}
    rows = []
    for annotated in groups:
        counts = [cells.get((annotated, labelled), 0) for labelled in groups]
        n = sum(counts)
        rows.append(ConfusionRow(annotated=annotated, n=n, shares=[count / n if n else None for count in counts]))
    return ConfusionMatrix(groups=groups, rows=rows)
