import polars as pl

from reports.confusion import confusion_matrix


def test_unsure_labels_have_a_column_and_no_row():
    rows = [("a", "a", 6), ("a", "unsure", 2), ("b", "b", 4)]
    table = pl.DataFrame(rows, schema=["annotated", "labelled", "count"], orient="row")
    matrix = confusion_matrix(table, ["a", "b", "c"])
    assert matrix.groups == ["a", "b", "c", "unsure"]
    assert [(row.annotated, row.n, row.shares) for row in matrix.rows] == [
        ("a", 8, [0.75, 0, 0, 0.25]),
        ("b", 4, [0, 1, 0, 0]),
        ("c", 0, [None] * 4),
    ]
