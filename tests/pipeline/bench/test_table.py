"""BENCHMARKS.md keeps what was not measured again."""

from pipeline.bench.measure import Row
from pipeline.bench.table import format_number, format_row, write_section


def test_a_section_keeps_other_machines_and_stages_that_were_not_measured_again(tmp_path):
    path = tmp_path / "BENCHMARKS.md"
    pack, feed = Row("pack", "all", "img/s", 5437, 1490, 3.65, "note"), Row("feed", "streaming", "img/s", 2270)
    write_section(path, "2 cores of A", rows=[pack, feed], images="2,000 images")
    write_section(path, "4 cores of B", rows=[feed], images="2,000 images")
    write_section(path, "2 cores of A", rows=[Row("feed", "resident", "ms", 3.14159, 6.2, 2)], images="100 images")
    text = path.read_text()
    assert text.startswith("# Speed\n")
    b, a = text.split("\n## ")[1:]
    assert b.startswith("4 cores of B\n")
    assert a.startswith("2 cores of A\n")
    assert "| feed | streaming | 2,270 | | |  |" in b
    assert "| pack | all | 5,437 | 1,490 | 3.65 | note |" in a
    assert "| feed | resident | 3.1 ms | 6.2 ms | 2.00 |  |" in a
    assert "streaming" not in a
    assert "100 images; python " in a


def test_rows_are_formatted_for_the_terminal():
    assert format_number(19.96) == "20.0"
    assert format_number(12345.6) == "12,346"
    assert "1,490     3.65 x  note" in format_row(Row("pack", "all", "img/s", 5437, 1490, 3.65, "note"))
    assert format_row(Row("train", "arithmetic", "GFLOP/s", 64, note="note")).endswith("note")
