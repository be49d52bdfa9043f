"""`fairface audit import`: complete files of answers to the plan are stored, and any other is refused in one line."""

import re

import polars as pl
import pytest

from shards.audit import AuditPlan, RatingsDocument
from shards.audit_tables import RATING_COLUMNS, read_plan_table, read_ratings
from shards.documents import read_document
from shards.workspace import Workspace
from tests.pipeline.audit.helpers import answers_csv
from tests.pipeline.cli.helpers import error_line, fairface
from tests.reports.fake_workspace import make


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """An OUT folder with a plan of 40 faces and two questions about each."""
    folder = make(tmp_path_factory.mktemp("audit") / "out")
    attributes = ("--attribute", "gender", "--attribute", "skin_tone")
    fairface("audit", "plan", "--out", folder, "--labels", 40, "--raters", 3, *attributes)
    return folder


@pytest.fixture
def out(planned):
    """That folder without any answers."""
    yield planned
    for path in (audit_of(planned).ratings, audit_of(planned).ratings_document):
        path.unlink(missing_ok=True)


def audit_of(out):
    return Workspace(out).run("first").audit


def plan_of(out) -> AuditPlan:
    plan = read_document(audit_of(out).plan_document, AuditPlan)
    assert plan
    return plan


def write(path, out, rater="Ann", **options):
    path.write_text(answers_csv(audit_of(out), plan_of(out), rater, **options))
    return path


def ratings(out) -> pl.DataFrame:
    return read_ratings(audit_of(out), plan_of(out))


def test_answers_are_stored_by_face_and_rater(out, tmp_path):
    files = [
        write(tmp_path / "ann.csv", out, answers={"gender": "can't tell"}),
        write(tmp_path / "bo.csv", out, 'Bo, "of" =1+1', faces=range(30), answers={"skin_tone": "10"}),
    ]
    printed = fairface("audit", "import", "--out", out, *files)
    table = ratings(out)
    assert table.schema == pl.Schema(RATING_COLUMNS)
    assert set(table["rater"]) == {"Ann", 'Bo, "of" =1+1'}
    assert table.filter(rater="Ann", attribute="gender")["group"].null_count() == 40
    assert set(table.filter(attribute="skin_tone").select("rater", "group").rows()) == {
        ("Ann", "1"),
        ('Bo, "of" =1+1', "10"),
    }
    faces = read_plan_table(audit_of(out), plan_of(out))
    assert set(table.filter(rater="Ann")["key"]) == set(faces["key"])
    assert set(table.filter(file="bo.csv")["key"]) == set(faces["key"].head(30))
    assert 'Ann: 80 answers, 40 of them "can\'t tell"\n' in printed
    assert '60 answers, 0 of them "can\'t tell", 20 questions left' in printed
    assert "1 of 3 raters have not answered yet" in printed
    assert "next: `fairface report --run first`" in printed


def test_agreement_is_printed(out, tmp_path):
    def answers(first):
        return {"gender": first, "skin_tone": "3"}

    half = [write(tmp_path / "a.csv", out, "a", faces=range(20), answers=answers("female"))]
    rest = answers_csv(audit_of(out), plan_of(out), "a", faces=range(20, 40), answers=answers("male"))
    lines = half[0].read_text().splitlines() + rest.splitlines()[1:]
    half[0].write_text("\n".join(line.replace(",40,", ",80,", 1) for line in lines))
    (tmp_path / "b.csv").write_text(half[0].read_text().replace(",a,", ",b,"))
    printed = fairface("audit", "import", "--out", out, *half, tmp_path / "b.csv")
    assert "gender:       Krippendorff's alpha 1.00 (1.00 to 1.00); 100% of pairs of answers are equal" in printed
    assert "skin tone:    agreement undefined: all answers are equal; 100% of pairs" in printed


def test_a_file_may_be_imported_again_with_others(out, tmp_path):
    ann, bo = write(tmp_path / "ann.csv", out), write(tmp_path / "bo.csv", out, "Bo")
    fairface("audit", "import", "--out", out, ann)
    before = audit_of(out).ratings.read_bytes()
    assert 'Ann: 80 answers, 0 of them "can\'t tell", imported before' in fairface("audit", "import", "--out", out, ann)
    assert audit_of(out).ratings.read_bytes() == before
    fairface("audit", "import", "--out", out, ann, bo)
    assert ratings(out)["rater"].value_counts().sort("rater").rows() == [("Ann", 80), ("Bo", 80)]


def test_other_answers_of_a_rater_need_replace(out, tmp_path):
    fairface("audit", "import", "--out", out, write(tmp_path / "ann.csv", out, faces=range(30)))
    more = write(tmp_path / "more.csv", out, "ANN")
    assert "replace them with --replace" in error_line("audit", "import", "--out", out, more)
    assert len(ratings(out)) == 60
    fairface("audit", "import", "--out", out, more, "--replace")
    assert ratings(out)["rater"].value_counts().rows() == [("ANN", 80)]
    document = read_document(audit_of(out).ratings_document, RatingsDocument)
    assert document
    assert {name: (file.name, file.answers) for name, file in document.raters.items()} == {"ANN": ("more.csv", 80)}


@pytest.mark.parametrize(("name", "other"), [("Ann", "ann"), ("Ann", "Ann "), ("Zoë B", "Zoe\u0308  b")])
def test_two_files_of_one_rater_are_refused(out, tmp_path, name, other):
    files = [write(tmp_path / "a.csv", out, name), write(tmp_path / "b.csv", out, other, faces=range(20))]
    assert "both have answers of" in error_line("audit", "import", "--out", out, *files)
    assert ratings(out).is_empty()


def test_a_byte_order_mark_and_escaped_names_are_read(out, tmp_path):
    file = write(tmp_path / "a.csv", out, "'=Ann")
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    fairface("audit", "import", "--out", out, file)
    assert set(ratings(out)["rater"]) == {"=Ann"}


BAD = {
    "another plan": (
        lambda text: re.sub(r"^[0-9a-f]{16},", "0" * 16 + ",", text, flags=re.M),
        "not to the current plan",
    ),
    "cut between rows": (lambda text: "\n".join(text.splitlines()[:-3]), "has 77 of 80 answers: the file was cut off"),
    "cut in a row": (lambda text: text.rstrip()[:-8].rpartition(",")[0], "cells: the file was cut off"),
    "cut in quotes": (lambda text: text + '"', "can't be read as CSV"),
    "unknown class": (lambda text: text.replace("female", "Female", 1), "'Female' is not a valid gender"),
    "empty answer": (lambda text: text.replace("female", "", 1), "'' is not a valid gender"),
    "unknown face": (lambda text: text.replace(",39,gender", ",40,gender"), "'40' is not one of the plan's 40 faces"),
    "face twice": (lambda text: text.replace(",39,gender", ",38,gender"), "two answers for face 38, gender"),
    "unknown attribute": (lambda text: text.replace("gender", "age", 1), "does not ask about 'age' of samples"),
    "no rater": (lambda text: text.replace(",Ann,", ", ,"), "is not the name of a rater"),
    "two raters": (lambda text: text.replace(",Ann,", ",Bo,", 1), "more than one value of rater"),
    "other columns": (lambda text: text.replace("plan,", "plans,", 1), "its columns must be plan, run, rater"),
    "no rows": (lambda text: text.splitlines()[0], "has no answers"),
    "nothing": (lambda _: "", "is not a file of answers"),
    "a control character": (lambda text: text.replace(",Ann,", ",A\x1bn,"), "is not the name of a rater"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_refused_in_one_line_and_nothing_is_stored(out, tmp_path, kind):
    damage, reason = BAD[kind]
    good, bad = write(tmp_path / "good.csv", out, "Bo"), write(tmp_path / "bad.csv", out)
    text = bad.read_text()
    bad.write_text(damage(text))
    assert bad.read_text() != text
    message = error_line("audit", "import", "--out", out, "--run", "first", good, bad)
    assert reason in message
    assert "bad.csv" in message
    assert ratings(out).is_empty()


def test_files_that_are_not_csv_are_refused(out, tmp_path):
    (tmp_path / "image.csv").write_bytes(b"\x89PNG\r\n\xff\xfe")
    assert "is not a CSV in UTF-8" in error_line("audit", "import", "--out", out, tmp_path / "image.csv")
    with open(tmp_path / "huge.csv", "wb") as file:
        file.truncate(1 << 40)
    assert "more than the" in error_line("audit", "import", "--out", out, tmp_path / "huge.csv")
    assert "is not a regular file" in error_line("audit", "import", "--out", out, "/dev/zero")
    assert "there is no such file" in error_line("audit", "import", "--out", out, tmp_path / "none.csv")


def test_the_files_name_the_run(out, tmp_path):
    file = write(tmp_path / "a.csv", out, run="elsewhere")
    assert "run elsewhere has no audit plan" in error_line("audit", "import", "--out", out, file)
    assert not (out / "runs" / "elsewhere").exists()
    file = write(tmp_path / "a.csv", out, run="../first")
    assert "--run '../first'" in error_line("audit", "import", "--out", out, file)


def test_changed_answers_are_found(out, tmp_path):
    fairface("audit", "import", "--out", out, write(tmp_path / "ann.csv", out))
    audit_of(out).ratings.write_bytes(audit_of(out).ratings.read_bytes() + b" ")
    assert "ratings.parquet was changed" in error_line(
        "audit", "import", "--out", out, write(tmp_path / "b.csv", out, "B")
    )
    assert "ratings.parquet was changed" in fairface("verify", "--out", out, code=1)


def test_a_killed_import_loses_nobodys_answers(out, tmp_path):
    files = [write(tmp_path / f"{name}.csv", out, name) for name in ("ann", "bo")]
    fairface("audit", "import", "--out", out, *files)
    audit_of(out).ratings_document.unlink()  # it is removed before, and written after the table
    assert "are not completely stored: run `fairface audit import` again" in fairface(
        "sql", "--out", out, "-c", "from ratings"
    )
    fairface("audit", "import", "--out", out, files[0])
    assert ratings(out)["rater"].value_counts().sort("rater").rows() == [("ann", 80), ("bo", 80)]
    audit_of(out).ratings_document.unlink()
    of_others = pl.read_parquet(audit_of(out).ratings).with_columns(key=pl.lit("another"))
    of_others.write_parquet(audit_of(out).ratings)
    fairface("audit", "import", "--out", out, files[0])
    assert set(ratings(out)["rater"]) == {"ann"}
