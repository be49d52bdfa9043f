"""`fairface audit plan`: which faces are chosen, when a plan stays, and when it is refused."""

import json

import polars as pl
import pytest

from shards.audit import AuditPlan, RatingsDocument
from shards.audit_tables import read_plan_table, read_ratings
from shards.documents import LabelsDocument, ReferenceDocument, SamplesDocument, read_document, write_document
from shards.locks import exclusive_lock
from shards.workspace import Workspace
from tests.pipeline.audit.helpers import answers_csv
from tests.pipeline.cli.helpers import error_line, fairface
from tests.reports.fake_workspace import edit_document, make, replace_table


@pytest.fixture
def audit(tmp_path):
    """The audit of a run with 400 labelled samples, below an OUT folder with 1,200 training images."""
    return Workspace(make(tmp_path / "out")).run("first").audit


def plan(audit, *words, code=0):
    return fairface("audit", "plan", "--out", out(audit), *words, code=code)


def out(audit):
    return audit.folder.parents[2]


def read(audit) -> tuple[AuditPlan, pl.DataFrame]:
    document = read_document(audit.plan_document, AuditPlan)
    assert document
    return document, read_plan_table(audit, document)


def test_samples_are_chosen_by_the_attributes_of_the_verdict(audit):
    printed = plan(audit, "--labels", 100, "--raters", 2)
    document, faces = read(audit)
    assert "100 of 400 samples" in printed
    assert "300 answers from each of 2 raters, about gender, age, skin tone" in printed
    assert "next: `fairface audit page --run first`" in printed
    assert document.attributes == ["gender", "age", "skin_tone"]
    assert document.classes["skin_tone"] == [str(tone) for tone in range(1, 11)]
    assert faces["face"].to_list() == list(range(100))
    assert faces["key"].n_unique() == 100
    assert set(faces["source"]) == {"generated"}
    assert (1 / faces["probability"]).sum() == pytest.approx(400)
    assert "plan" not in fairface("verify", "--out", out(audit), code=1)  # the shards are damaged, the plan is not


def test_the_message_says_how_wide_the_intervals_will_be(tmp_path):
    audit = Workspace(make(tmp_path / "out", annotated=False)).run("first").audit

    def widths(labels):
        printed = plan(audit, "--labels", labels, "--force")
        return [float(line.split("±")[1].split()[0]) for line in printed.splitlines() if "±" in line]

    few, many = widths(50), widths(400)
    looked_at = [
        float(line.split("±")[1].split()[0]) for line in plan(audit, "--extend", 10).splitlines() if "±" in line
    ]
    assert all(wide > 1.2 * narrow for wide, narrow in zip(looked_at, many, strict=True))
    assert len(few) == 6
    assert all(wide > 1.2 * narrow for wide, narrow in zip(few, many, strict=True))


@pytest.mark.parametrize("design", ["stratified", "uniform"])
def test_a_plan_is_a_function_of_seed_and_options(audit, design):
    options = ("--labels", 60, "--attribute", "skin_tone", "--design", design)
    plan(audit, *options)
    before = audit.plan.read_bytes(), audit.plan_document.read_bytes()
    assert "unchanged" in plan(audit, *options)
    plan(audit, *options, "--force")
    assert (audit.plan.read_bytes(), audit.plan_document.read_bytes()) == before
    plan(audit, *options, "--force", "--seed", 1)
    assert audit.plan.read_bytes() != before[0]


def test_another_plan_needs_force_and_removes_the_answers(audit, tmp_path):
    plan(audit, "--labels", 60)
    (tmp_path / "ann.csv").write_text(answers_csv(audit, read(audit)[0]))
    fairface("audit", "import", "--out", out(audit), tmp_path / "ann.csv")
    assert "--extend" in error_line("audit", "plan", "--out", out(audit), "--labels", 61)
    assert "--force" in error_line("audit", "plan", "--out", out(audit), "--labels", 60, "--raters", 3)
    assert len(read_ratings(audit, read(audit)[0])) == 180
    plan(audit, "--labels", 61, "--force")
    assert read_document(audit.ratings_document, RatingsDocument) is None
    assert not audit.ratings.exists()


def test_answers_outlive_a_plan_that_was_lost_in_a_kill(audit, tmp_path):
    plan(audit, "--labels", 60)
    (tmp_path / "ann.csv").write_text(answers_csv(audit, read(audit)[0]))
    fairface("audit", "import", "--out", out(audit), tmp_path / "ann.csv")
    audit.plan_document.unlink()
    assert "with the same options" in error_line("audit", "plan", "--out", out(audit), "--labels", 61)
    plan(audit, "--labels", 60)
    assert len(read_ratings(audit, read(audit)[0])) == 180
    audit.plan_document.unlink()
    plan(audit, "--labels", 61, "--force")
    assert not audit.ratings.exists()


def test_an_extension_keeps_the_faces_and_the_answers(audit, tmp_path):
    plan(audit, "--labels", 60)
    first, faces = read(audit)
    (tmp_path / "ann.csv").write_text(answers_csv(audit, first))
    fairface("audit", "import", "--out", out(audit), tmp_path / "ann.csv")
    assert "100 of 400 samples" in plan(audit, "--extend", 40)
    document, extended = read(audit)
    kept = ["face", "source", "key", "round", "stratum"]
    assert extended.head(60).select(kept).equals(faces.select(kept))
    assert (extended["probability"].head(60) > faces["probability"]).any()
    assert extended["round"].to_list() == [0] * 60 + [1] * 40
    assert (document.id, document.labels) == (first.id, [60, 40])
    assert document.sides["generated"].faces == [60, 40]
    assert len(read_ratings(audit, document)) == 180
    assert "120 questions left" in fairface("audit", "import", "--out", out(audit), tmp_path / "ann.csv")
    assert "can't be combined with --labels" in plan(audit, "--extend", 40, "--labels", 40, code=2)


def test_training_images_are_chosen_as_well_if_they_are_not_annotated(tmp_path):
    audit = Workspace(make(tmp_path / "out", annotated=False)).run("first").audit
    assert "51 of 400 samples and 50 of 1,200 training images" in plan(audit, "--labels", 101)
    document, faces = read(audit)
    assert document.sides["train"].attributes == ["gender", "age", "skin_tone"]
    assert dict(faces["source"].value_counts().iter_rows()) == {"generated": 51, "train": 50}
    assert faces["source"].head(20).n_unique() == 2  # mixed, so that a face's number says nothing about its side
    plan(audit, "--extend", 10)
    assert [side.faces for side in read(audit)[0].sides.values()] == [[51, 5], [50, 5]]


def test_training_images_are_not_chosen_if_a_census_replaces_them(tmp_path):
    workspace = Workspace(make(tmp_path / "out", annotated=False))
    document = ReferenceDocument(name="census.csv", sha256="", files={}, replaces_training=True)
    write_document(workspace.reference_document, document)
    assert "100 of 400 samples, stratified" in plan(workspace.run("first").audit, "--labels", 100)


def test_other_samples_make_a_plan_stale(audit):
    plan(audit, "--labels", 60)
    run = Workspace(out(audit)).run("first")
    edit_document(run.samples_document, SamplesDocument, fingerprint="new")
    edit_document(run.label_files.document, LabelsDocument, images_hash="new")
    for words in (["plan", "--extend", 40], ["page"]):
        message = error_line("audit", *words, "--out", out(audit))
        assert "was made for other samples than those labelled now" in message
        assert "audit plan --force" in message


def test_other_labels_only_make_an_extension_impossible(audit, tmp_path):
    plan(audit, "--labels", 60)
    labels = Workspace(out(audit)).run("first").label_files.labels
    replace_table(labels, pl.read_parquet(labels).with_columns(gender=pl.lit("male")))
    assert "the labels changed" in error_line("audit", "plan", "--out", out(audit), "--extend", 40)
    (tmp_path / "ann.csv").write_text(answers_csv(audit, read(audit)[0]))
    assert "Ann: 180 answers" in fairface("audit", "import", "--out", out(audit), tmp_path / "ann.csv")


def test_other_classes_make_a_plan_stale(audit):
    plan(audit, "--labels", 60, "--attribute", "gender")
    own = '[gender]\ntitle = "G"\nsubject = "G"\nplural = "G"\n[gender.classes]\nfemale = {}\nmale = {}\nother = {}\n'
    Workspace(out(audit)).attributes.write_text(own)
    assert "classes of gender" in error_line("audit", "page", "--out", out(audit))


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--attribute", "intersection"], "it is derived from gender and skin_tone"),
        (["--attribute", "race"], "the samples only have labels of gender, age, skin_tone"),
        (["--labels", 401], "401 faces can't be chosen from 400 labelled samples"),
        (["--design", "active"], "needs the labeller's probabilities, and its labels of gender have none"),
        (["--run", "second"], "there is no run 'second'"),
        (["--extend", 10], "run first has no audit plan"),
    ],
)
def test_an_impossible_plan_is_refused_in_one_line(audit, words, reason):
    assert reason in error_line("audit", "plan", "--out", out(audit), *words)
    assert not audit.folder.exists()


def test_samples_without_labels_or_images_are_refused(audit):
    run = Workspace(out(audit)).run("first")
    run.label_files.labels.unlink()
    assert "have no labels: run `fairface label" in error_line("audit", "plan", "--out", out(audit))
    run.samples_document.unlink()
    assert "has no samples: run `fairface sample" in error_line("audit", "plan", "--out", out(audit))


def test_a_changed_plan_is_found(audit):
    plan(audit, "--labels", 60)
    audit.plan.write_bytes(audit.plan.read_bytes()[:-1] + b" ")
    assert "plan.parquet was changed" in error_line("audit", "page", "--out", out(audit))
    assert "plan.parquet was changed" in fairface("verify", "--out", out(audit), code=1)
    assert "60 of 400 samples" in plan(audit, "--labels", 60, "--force")
    fairface("sql", "audit", "--out", out(audit))


def test_a_link_in_the_place_of_the_folder_is_refused(audit, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "page.html").write_text("a page of the user's")
    audit.folder.symlink_to(tmp_path / "elsewhere")
    assert "is a link" in error_line("audit", "plan", "--out", out(audit), "--labels", 60)
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["page.html"]


def test_another_command_that_writes_the_audit_excludes_this_one(audit):
    with exclusive_lock(audit.lock, "testing"):
        assert "another process is using" in error_line("audit", "plan", "--out", out(audit), "--labels", 60)


@pytest.mark.parametrize(
    "change",
    [
        {"attributes": ["gender", "hair"]},
        {"classes": {}},
        {"design": "none"},
        {"sides": {}},
        {"labels": [60, -1]},
        {"labels": [70]},
        {"raters": "two"},
    ],
    ids=str,
)
def test_a_damaged_document_is_refused_in_one_line(audit, change):
    plan(audit, "--labels", 60, "--attribute", "gender")
    document = json.loads(audit.plan_document.read_text())
    audit.plan_document.write_text(json.dumps(document | change))
    assert "audit plan --force" in error_line("audit", "page", "--out", out(audit))
