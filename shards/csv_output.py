"""Escapes text in a CSV that spreadsheets would run as a formula.

A cell that begins with = + - @, a tab or a carriage return gets an apostrophe in front, as OWASP recommends ("CSV
Injection"). So does a cell that has apostrophes before such a character, so that `unescape_formulas` is exact.
"""

import polars as pl

ESCAPED, UNESCAPED = r"^'+[=+\-@\t\r]", r"^'*[=+\-@\t\r]"


def escape_formulas(table: pl.DataFrame) -> pl.DataFrame:
    """`table` with an apostrophe before every text and every column name that would be a formula."""
    text = pl.col(pl.String)
    table = table.with_columns(pl.when(text.str.contains(UNESCAPED)).then("'" + text).otherwise(text).name.keep())
    names = pl.Series(table.columns, dtype=pl.String)
    is_formula = names.str.contains(UNESCAPED).to_list()
    return table.rename({name: f"'{name}" for name, formula in zip(names, is_formula, strict=True) if formula})


def unescape_formulas(table: pl.DataFrame) -> pl.DataFrame:
    """`table` as it was before `escape_formulas`, except for the names of its columns."""
    text = pl.col(pl.String)
    return table.with_columns(pl.when(text.str.contains(ESCAPED)).then(text.str.slice(1)).otherwise(text).name.keep())
