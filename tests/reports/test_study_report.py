"""The report of a study: its tables, its questions and its page, for arms with known shares."""

import shutil

import polars as pl
import pytest

import sql
from pipeline.verify import verify
from reports.study_report import write_study_report
from shards.documents import read_document, write_document
from shards.errors import FairfaceError
from shards.provenance import current_files
from shards.study import StudyDocument, StudyRun, StudyRunDocument
from shards.workspace import Workspace
from tests.reports.fake_study import WOMEN, make_study
from tests.reports.fake_workspace import build, replace_table, text_of


@pytest.fixture
def study(tmp_path, short_reports):
    """A maker of OUT folders with a study: study(arms=..., seeds=..., failed=...)."""
    return lambda **options: make_study(tmp_path / "out", **options)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """An OUT folder with the report of a study of two arms by four seeds; tests only read it."""
    workspace = make_study(tmp_path_factory.mktemp("study") / "out")
    write_study_report(workspace, "study")
    return workspace


@pytest.fixture
def copied(written, tmp_path, short_reports):
    """A copy of that folder, for tests that change it."""
    return Workspace(shutil.copytree(written.root, tmp_path / "copy"))


def page_text(workspace):
    return text_of(write_study_report(workspace, "study").read_text())


def table(workspace, name):
    return pl.read_parquet(workspace.study("study").report.table(name)).filter("used")


def test_a_balanced_arm_is_found_closer_to_equal_shares(written):
    text = text_of(written.study("study").report.page.read_text())
    assert "Does uniform generate more balanced faces than natural?" in text
    assert (
        "Yes: over 4 seeds, uniform is closer to equal shares of genders than natural; for skin groups and ages, the"
        in text
    )
    assert "5 pairs can never reach 0.05; 6 can" in text
    row = table(written, "paired").filter(attribute="gender", group="female", metric="share").row(0, named=True)
    assert row["low"] < WOMEN["uniform"] - WOMEN["natural"] < row["high"] < 0
    assert (row["pairs"], row["least_sign_flip_p"]) == (4, 0.125)
    assert row["difference"] == pytest.approx(row["value"] - row["compared_value"])


def test_the_interval_over_seeds_is_wider_than_a_single_run_claims(written):
    spread = sql.ask(sql.connect(written), "seed_spread", attribute="gender").filter(group="female")
    assert spread["arm"].to_list() == ["natural", "uniform"]
    for row in spread.to_dicts():
        assert row["smallest"] < row["mean"] < row["largest"]
        assert row["seed_half_width"] > row["claimed_half_width"]
        assert row["seed_sd_low"] <= row["seed_sd"] <= row["seed_sd_high"]
    arms = sql.ask(sql.connect(written), "arms", attribute="gender")
    means = arms.filter(pl.col("seed").is_null(), group="female")
    assert means.select((pl.col("high") - pl.col("low")) / 2).min().item() > spread["claimed_half_width"].max() / 2
    assert means["seeds"].to_list() == [4, 4]


def test_a_runs_shares_are_those_of_its_own_report(copied):
    build(copied.root, "study-natural-1")
    connection = sql.connect(copied)
    own = sql.ask(connection, "comparison", run="study-natural-1", attribute="gender")
    rows = sql.ask(connection, "arms", attribute="gender", estimate="corrected").filter(arm="natural", seed=1)
    assert rows["value"].to_list() == pytest.approx(own["corrected"].to_list())
    raw = sql.ask(connection, "arms", attribute="gender", estimate="raw").filter(arm="natural", seed=1)
    assert raw.select("value", "low", "high").rows() == own.select("share", "share_low", "share_high").rows()


def test_one_seed_claims_nothing(study):
    workspace = study(seeds=(3,))
    assert "Not answered: a single seed does not show how much training runs differ by chance" in page_text(workspace)
    means = table(workspace, "estimates").filter(pl.col("seed").is_null())
    assert means["value"].is_not_null().any()
    assert means["low"].is_null().all()
    paired = table(workspace, "paired")
    assert paired["low"].is_null().all()
    assert not paired["significant"].any()
    assert paired["seeds_needed"].is_null().all()


def test_equal_arms_are_undecided(study):
    assert "Undecided: over 2 seeds" in page_text(study(arms={"a": 0.6, "b": 0.6}, seeds=(1, 2)))


def test_failed_and_unfinished_runs_are_named_and_left_out(study):
    workspace = study(
        seeds=(1, 2, 3), arms={**WOMEN, "broken": 0.5}, failed=[("uniform", 2), *(("broken", s) for s in (1, 2, 3))]
    )
    (workspace.root / "runs" / "study-natural-3" / "labels.json").unlink()
    page = write_study_report(workspace, "study")
    text = text_of(page.read_text())
    assert "uniform, seed 2 failed: train: no &lt;memory&gt;" in page.read_text()
    assert "natural, seed 3: " in text
    assert "No run of broken is labelled: all of them failed. It is not compared." in text
    assert "Not answered: broken and natural have no labelled runs with the same seed." in text
    assert set(table(workspace, "paired")["pairs"]) == {1}  # of natural and uniform
    assert sql.ask(sql.connect(workspace), "study").filter(status="failed").height == 4


def test_the_same_labels_give_the_same_tables(study):
    workspace = study(seeds=(1, 2))
    folder = workspace.study("study").report
    write_study_report(workspace, "study")
    tables = [folder.table(name) for name in ("estimates", "paired")]
    before = [path.read_bytes() for path in tables]
    for path in tables:
        path.unlink()
    write_study_report(workspace, "study")
    assert [path.read_bytes() for path in tables] == before


def test_tables_of_other_labels_are_left_out(copied):
    assert sql.ask(sql.connect(copied), "arms").height
    labels = copied.run("study-natural-1").label_files.labels
    replace_table(labels, pl.read_parquet(labels).head(300))
    (warning,) = (text for text in current_files(copied).warnings if "study" in text)
    assert "were not computed from the present labels of study-natural-1: run `fairface study` again" in warning
    assert sql.ask(sql.connect(copied), "arms").is_empty()


def test_verify_finds_a_changed_table(copied):
    folder = copied.study("study").report
    assert folder.folder not in verify(copied, progress=False).faults
    folder.table("paired").write_bytes(b"")
    (fault,) = verify(copied, progress=False).faults[folder.folder]
    assert fault.startswith(str(folder.table("paired")))
    assert fault.endswith("run the study again with `fairface study`")


def test_a_group_without_training_faces_has_no_ratio(study):
    workspace = study(seeds=(1, 2))
    for path in (workspace.shards.images, workspace.shards.label_files.labels):
        replace_table(path, pl.read_parquet(path).filter(pl.col("skin_tone") != 1))
    write_study_report(workspace, "study")
    ratios = table(workspace, "estimates").filter(attribute="skin_tone", metric="ratio")
    assert ratios.filter(group="1")["value"].is_null().all()
    assert ratios.filter(pl.col("group") != "1")["value"].is_not_null().all()


def test_an_arm_on_other_shards_is_compared_by_its_own_calibration(written, copied):
    folder = copied.study("study")
    document = read_document(folder.document, StudyDocument)
    document.arms[1].out = str(written.root)
    write_document(folder.document, document)
    write_study_report(copied, "study")
    same, apart = (
        table(workspace, "paired").filter(attribute="intersection", metric="share") for workspace in (written, copied)
    )
    assert apart["difference"].to_list() == pytest.approx(same["difference"].to_list())
    assert (apart["high"] - apart["low"] > same["high"] - same["low"]).any()  # the labeller's errors don't cancel


def test_a_runs_record_is_newer_than_the_plan(study):
    workspace = study(seeds=(1,), failed=[("natural", 1)])
    folder = workspace.study("study")
    folder.records.mkdir()
    run = StudyRun(arm="natural", seed=1, run="study-natural-1", trained_run="study-natural-1", status="trained")
    write_document(folder.record(run.run), StudyRunDocument(**vars(run)))
    rows = sql.ask(sql.connect(workspace), "study").select("arm", "status", "reason", "train_seconds").rows()
    assert rows == [("natural", "trained", None, None), ("uniform", "labelled", None, 401.0)]


@pytest.mark.parametrize(
    ("failed", "name", "message"),
    [
        ([("natural", 1), ("uniform", 1)], "study", "no run of study study is labelled yet: natural, seed 1 failed"),
        ([], "other", "there is no study 'other'"),
    ],
)
def test_a_study_without_labelled_runs_is_reported_in_one_line(study, failed, name, message):
    workspace = study(seeds=(1,), failed=failed)
    with pytest.raises(FairfaceError, match=message) as error:
        write_study_report(workspace, name)
    assert "\n" not in str(error.value)
    assert not workspace.study(name).report.page.exists()


def test_arms_with_other_groups_are_refused(study):
    workspace = study(seeds=(1,))
    table_path = workspace.run("study-uniform-1").label_files.labels
    replace_table(table_path, pl.read_parquet(table_path).with_columns(gender=pl.lit("unknown")))
    with pytest.raises(FairfaceError, match="the arms have different groups of gender"):
        write_study_report(workspace, "study")
