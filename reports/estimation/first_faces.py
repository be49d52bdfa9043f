"""The first faces of every group by key, whose order is random because of packing and sampling."""

from collections.abc import Sequence

import duckdb
import polars as pl

import sql


def first_faces(
    connection: duckdb.DuckDBPyConnection, attributes: Sequence[str], *, run: str, faces: int
) -> pl.DataFrame:
    """source (train, generated, annotated), attribute, group and key of the first `faces` of each group, in order.

    The groups of sides `generated` and `train` are the labels of the selected methods.
    """
    names = list(map(sql.identifier, attributes))
    # planning over `selected_labels`, with a branch for each attribute, would take longer than reading all columns
    text = f"""
        with faces as (
            select source, method, key, {", ".join(f"{name}::varchar as {name}" for name in names)} from labels_wide
            where source <> 'generated' or run = $run
        ), labels as (
            unpivot faces on {", ".join(names)} into name attribute value "group"
        )
        select source, attribute, "group", min(key, $faces) as key from labels join selected_method using (attribute)
        where labels.method in (selected_method.method, 'annotated', 'imported') group by all"""
    table = sql.select(connection, text, {"run": run, "faces": faces})
    return table.explode("key").sort("source", "attribute", "group", "key")
