"""Importing the predictions of detectors that were trained elsewhere."""

import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import sql
from pipeline.cli.main import main
from shards.workspace import Workspace

HEADER = "gender,skin_group,age,target,logit\n"


def detect_import(out: Path, csv: Path, *words: str) -> Result:
    return CliRunner().invoke(main, ["detect", "--out", str(out), "--import", str(csv), *words])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "lacks target and logit and an attribute"),
        (HEADER, "holds no predictions"),
        (HEADER + "female,light,adult,2,1\n", "target in row 1 is not one of 0, 1"),
        (HEADER + "female,light,adult,1,much\n", "logit in row 1 is not a finite number"),
        (HEADER + "female,light,adult,1,inf\n", "logit in row 1 is not a finite number"),
        (HEADER + "female,light,adult,1,\n", "logit in row 1"),
        (HEADER + "woman,light,adult,1,1\n", "'woman' is not a valid gender"),
        (HEADER.replace("age", "gender") + "female,light,female,1,1\n", "the column 'gender' twice"),
        ("key," + HEADER + "a,female,light,adult,1,1\na,male,light,adult,0,1\n", "a unique key"),
        ("", "can't be read as CSV"),
    ],
)
def test_a_malformed_file_is_refused_in_one_line(tmp_path, text, message):
    (tmp_path / "x.csv").write_text(text)
    done = detect_import(tmp_path / "o", tmp_path / "x.csv")
    assert done.exit_code == 1
    assert message in done.output
    assert len(done.output.splitlines()) == 1
    assert not (tmp_path / "o").exists()


def test_a_file_whose_name_no_document_can_hold_is_refused(tmp_path):
    csv = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.csv"))
    csv.write_text(HEADER + "female,light,adult,1,1\nmale,dark,adult,0,-1\n")
    done = detect_import(tmp_path / "o", csv)
    assert (done.exit_code, "is not valid UTF-8" in done.output) == (2, True)
    assert not (tmp_path / "o").exists()


def test_foreign_files_in_the_folder_are_kept(tmp_path):
    precious = tmp_path / "o" / "detectors" / "x" / "checkpoints" / "best.pt"
    precious.parent.mkdir(parents=True)
    precious.write_text("precious")
    (tmp_path / "x.csv").write_text(HEADER + "female,light,adult,1,1\nmale,dark,adult,0,-1\n")
    for words in ([], ["--force"]):
        done = detect_import(tmp_path / "o", tmp_path / "x.csv", *words)
        assert (done.exit_code, "holds files that don't belong to a detector" in done.output) == (1, True)
    assert precious.read_text() == "precious"
    assert not (precious.parents[1] / "predictions.parquet").exists()


def test_other_predictions_are_replaced_only_with_force(tmp_path):
    out, csv = tmp_path / "o", tmp_path / "x.csv"
    csv.write_text(HEADER + "female,light,adult,1,1\nmale,dark,adult,0,-1\n")
    assert detect_import(out, csv).exit_code == 0
    assert detect_import(out, csv).exit_code == 0  # the same again
    metrics = sql.ask(sql.connect(Workspace(out)), "detection_metrics", detector="x", measure="tpr")
    assert metrics.select("attribute", "value").row(0) == ("all", 1.0)
    csv.write_text(HEADER + "female,light,adult,1,-1\nmale,dark,adult,0,-1\n")
    assert "has other predictions" in detect_import(out, csv).output
    assert "2 predictions, 1 of real faces and 1 of fakes" in detect_import(out, csv, "--force").output


def test_a_link_in_the_place_of_a_folder_is_refused_before_anything_is_removed(tmp_path):
    csv = tmp_path / "mine.csv"
    csv.write_text("gender,skin_group,age,target,logit\nfemale,light,young,1,2.5\n")
    assert detect_import(tmp_path / "out", csv).exit_code == 0
    folder = Workspace(tmp_path / "out").detector("mine")
    before = {path: path.read_bytes() for path in folder.folder.glob("*.*")}
    folder.tensorboard.symlink_to(csv)
    folder.config.write_text("{}")  # as of a detector that was trained here
    result = detect_import(tmp_path / "out", csv, "--force")
    assert result.exit_code == 1
    assert "tensorboard is a link" in result.output
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("name", ["all", "../x"])
def test_a_detectors_name_is_that_of_a_single_folder(tmp_path, name):
    csv = tmp_path / "x.csv"
    csv.write_text(HEADER + "female,light,adult,1,1\nmale,dark,adult,0,-1\n")
    done = detect_import(tmp_path / "o", csv, "--name", name)
    assert done.exit_code == 1
    assert f"--name {name!r}: give the name of a single folder" in done.output


def test_figures_that_four_faces_cannot_have_are_undefined_without_a_warning(tmp_path, recwarn):
    (tmp_path / "x.csv").write_text(
        "target,logit,gender\nfake,1e308,female\nreal,-1e308,female\nfake,0,male\nreal,1,male\n"
    )
    done = detect_import(tmp_path / "o", tmp_path / "x.csv")
    assert done.exit_code == 0, done.output
    assert not [one for one in recwarn if issubclass(one.category, RuntimeWarning)]
    connection = sql.connect(Workspace(tmp_path / "o"))
    calibration = sql.ask(connection, "calibration", detector="x").select("squared_error", "calibration_error")
    assert calibration.null_count().row(0) == (len(calibration),) * 2  # no bin has two faces
    worst = sql.ask(connection, "worst_groups", detector="x").row(0, named=True)
    assert worst["largest_calibration_error"] is worst["worst_calibrated_group"] is worst["calibration_gap"] is None
