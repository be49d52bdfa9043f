"""The thirty cells of gender, skin group and age."""

import polars as pl

import sql
from shards.workspace import Workspace
from tests.reports.fake_workspace import page_text, replace_table


def test_thirty_cells_are_shown_including_empty_ones(built):
    html = (built / "report" / "index.html").read_text()
    cells = sql.ask(sql.connect(Workspace(built)), "comparison", attribute="intersection_age")
    assert len(cells) == 30
    assert html.count('<td class="none">') == cells.filter(pl.col("count") == 0).height
    assert not cells["corrected"].is_not_null().any()
    assert "30 groups are too many" in cells["correction_note"][0]


def test_unexpected_groups_do_not_shift_the_thirty_cells(world):
    out = world()
    path = out / "runs" / "first" / "labels.parquet"
    labels = pl.read_parquet(path)
    gender = pl.when(pl.int_range(pl.len()) < 40).then(pl.lit("NULL")).otherwise("gender")
    replace_table(path, labels.with_columns(gender=gender))
    text = page_text(out)
    rows = text[text.index("skin group and age combined") :].split("Query the data")[0]
    assert "NULL, light" not in rows
    assert "Further cells: NULL-" in rows
