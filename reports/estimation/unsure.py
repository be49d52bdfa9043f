"""Labels of faces that a labeller abstains from: the SQL that finds them, and how the estimates count them.

Their class is null and their probabilities are not. They are a label of their own, `UNSURE`, but no class: shares are
estimated from the sure labels, and the confusion has one more column.
"""

from collections.abc import Collection

import duckdb

import sql
from shards.attributes import PROBABILITY_PREFIX, UNSURE, Attribute, AttributeTable
from sql.definitions import labelled_parts


def unsure_attributes(connection: duckdb.DuckDBPyConnection, attributes: AttributeTable) -> set[str]:
    """The labelled attributes that a labeller abstains from for some face."""
    names = list(attributes.labelled)
    # a column of classes is read much faster than one of lists of probabilities, of which few are needed
    missing = ", ".join(f"count_if({sql.identifier(name)} is null)" for name in names)
    rows = sql.select(connection, f"select {missing} from label_rows").row(0)
    found = set()
    for name in [name for name, count in zip(names, rows, strict=True) if count]:
        text = f"select 1 from label_rows where {is_unsure(name)} limit 1"
        if len(sql.select(connection, text)):
            found.add(name)
    return found


def is_unsure(attribute: str, *, table: str = "label_rows") -> str:
    """SQL: whether a row of labels abstains from an attribute."""
    name, probabilities = (sql.identifier(text) for text in (attribute, PROBABILITY_PREFIX + attribute))
    return f"({table}.{name} is null and {table}.{probabilities} is not null)"


def label_text(attribute: str, *, unsure: Collection[str], table: str = "label_rows") -> str:
    """SQL: the label of an attribute as text, `UNSURE` where the labeller abstains."""
    text = f"{table}.{sql.identifier(attribute)}::varchar"
    if attribute not in unsure:
        return text
    return f"coalesce({text}, if({is_unsure(attribute, table=table)}, {sql.quote(UNSURE)}, null))"


def class_or_unsure(attribute: Attribute, attributes: AttributeTable, *, suffix: str = "") -> str:
    """SQL: an attribute's class as text, from columns of labels, as text or numbers, whose names end with `suffix`.

    It is `UNSURE` if the labeller abstains from one of its parts and has labelled all others.
    """
    parts = [f"{sql.identifier(name + suffix)}::varchar" for name in sorted(labelled_parts(attribute, attributes))]
    is_labelled = " and ".join(f"{part} is not null" for part in parts)
    text = sql.class_expression(attribute, attributes, suffix=suffix)
    return f"if({sql.quote(UNSURE)} in ({', '.join(parts)}) and {is_labelled}, {sql.quote(UNSURE)}, {text}::varchar)"


def label_columns(attributes: AttributeTable, *, unsure: Collection[str]) -> str:
    """SQL: a column of `label_text` for each labelled attribute."""
    return ", ".join(f"{label_text(name, unsure=unsure)} as {sql.identifier(name)}" for name in attributes.labelled)
