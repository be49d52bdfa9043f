"""What `detect` refuses, leaves out and keeps: damaged predictions, samples of other runs, kills between two files."""

import os
from contextlib import suppress

import numpy as np
import polars as pl
import pytest

import sql
from pipeline.detection import evaluate, import_predictions
from pipeline.detection.evaluate import find_cached, merge_predictions, write_cached
from pipeline.detection.import_predictions import import_predictions as import_csv
from reports.estimation.detection_metrics import update_metrics
from shards.documents import PredictionsDocument, check_files, read_document
from shards.errors import FairfaceError
from shards.locks import exclusive_lock
from shards.workspace import DetectorFolder, Workspace
from tests.pipeline.detection.helpers import predictions, train

ROWS = ["female,light,adult,1,1", "male,dark,adult,0,-1"]


class Killed(BaseException):
    """The process is killed."""


def write_csv(path, rows):
    path.write_text("\n".join(["gender,skin_group,age,target,logit", *rows]) + "\n")
    return path


def flip_a_bit(path, position=0.5):
    """Change one bit of a file at a share of its length."""
    content = bytearray(path.read_bytes())
    content[int(len(content) * position)] ^= 16
    path.write_bytes(content)


def rows_of_set(logits):
    """Predictions of test faces with these logits."""
    about = {"detector": "x", "part": "test", "source": "images", "run": None, "perturbation": "none"}
    columns = {"key": [f"{number}" for number in range(len(logits))]} | about | {"grouped_by": "annotated"}
    targets = ["fake" if number % 2 else "real" for number in range(len(logits))]
    table = pl.DataFrame(columns, schema_overrides={"run": pl.String})
    return table.with_columns(target=pl.Series(targets), logit=pl.Series(np.array(logits, float)))


def kill_at(monkeypatch, number):
    """Kill the process before the `number`-th change of a file's name or removal."""
    count = [0]
    for name in ("replace", "unlink", "rename"):
        original = getattr(os, name)

        def killed(*arguments, original=original, **options):
            count[0] += 1
            if count[0] >= number:
                raise Killed
            return original(*arguments, **options)

        monkeypatch.setattr(os, name, killed)


def test_a_flipped_bit_in_cached_predictions_is_not_merged(tmp_path):
    folder = DetectorFolder(tmp_path)
    path = write_cached(folder, "a" * 16, rows_of_set([1, 2]))
    assert find_cached(folder, "a" * 16) == path
    flip_a_bit(path)
    assert find_cached(folder, "a" * 16) is None
    assert write_cached(folder, "a" * 16, rows_of_set([1, 2])) == path
    assert find_cached(folder, "a" * 16) == path


def test_only_outdated_predictions_are_discarded_and_no_file_of_the_users(tmp_path):
    folder = Workspace(tmp_path).detector("x")
    old = write_cached(folder, "a" * 16, rows_of_set([1, 2]))
    new = write_cached(folder, "b" * 16, rows_of_set([3, -4]))
    mine = folder.cached_predictions / "mine.parquet"
    mine.write_bytes(old.read_bytes())
    merge_predictions(folder, [new], manifest=None, samples={}, discard=True)
    assert sorted(folder.cached_predictions.iterdir()) == sorted([mine, new])


@pytest.mark.parametrize("number", range(1, 8))
def test_predictions_killed_between_two_files_are_merged_again(tmp_path, monkeypatch, number):
    workspace = Workspace(tmp_path)
    folder = workspace.detector("x")
    old = [write_cached(folder, "a" * 16, rows_of_set([1, 2]))]
    new = [write_cached(folder, "b" * 16, rows_of_set([3, -4]))]
    about = {"manifest": None, "samples": {}, "discard": False}
    merge_predictions(folder, old, **about)
    update_metrics(workspace, detector="x")
    with monkeypatch.context() as patch:
        kill_at(patch, number)
        try:
            merge_predictions(folder, new, **about)
        except Killed:
            pass
        else:
            assert number > 6
    answers = sql.select(sql.connect(workspace), "select logit from predictions order by key")["logit"].to_list()
    metrics = sql.select(sql.connect(workspace), "from detection_metrics where measure = 'auc' and attribute = 'all'")
    assert answers in ([], [1, 2], [3, -4])
    assert answers == [1, 2] or metrics.is_empty()
    merge_predictions(folder, new, **about)
    assert pl.read_parquet(folder.predictions)["logit"].to_list() == [3, -4]
    assert not merge_predictions(folder, new, **about)


@pytest.mark.parametrize("number", range(1, 8))
def test_an_import_killed_between_two_files_is_never_shown(tmp_path, monkeypatch, number):
    workspace, csv = Workspace(tmp_path / "o"), write_csv(tmp_path / "x.csv", ROWS)
    import_csv(workspace, csv)
    update_metrics(workspace, detector="x")
    write_csv(csv, [row[:-1] + "9" for row in ROWS])
    with monkeypatch.context() as patch:
        kill_at(patch, number)
        with suppress(Killed):
            import_csv(workspace, csv, force=True)
    answers = sql.select(sql.connect(workspace), "select logit from predictions order by key")["logit"].to_list()
    assert answers in ([], [1, -1], [9, -9])
    assert answers == [1, -1] or sql.select(sql.connect(workspace), "from detection_metrics").is_empty()
    import_csv(workspace, csv, force=True)
    folder = workspace.detector("x")
    document = read_document(folder.predictions_document, PredictionsDocument)
    check_files(folder.folder, document, document.files)
    assert pl.read_parquet(folder.predictions)["logit"].to_list() == [9, -9]


@pytest.mark.parametrize("position", [0.1, 0.5, 0.999])
def test_no_rows_are_taken_from_damaged_metrics(tmp_path, position):
    workspace = Workspace(tmp_path / "o")
    detectors = [workspace.detector(name) for name in ("x", "y")]
    for folder, logit in zip(detectors, (1, 2), strict=True):
        import_csv(workspace, write_csv(tmp_path / f"{folder.name}.csv", [row[:-1] + f"{logit}" for row in ROWS]))
        update_metrics(workspace, detector=folder.name)

    def rows(folder):
        return {table.stem: sorted(map(str, pl.read_parquet(table).rows())) for table in folder.tables()}

    written = list(map(rows, detectors))
    for damaged, other in (detectors, detectors[::-1]):
        for table in damaged.tables():
            flip_a_bit(table, position)
        other.metrics_document.unlink()
        assert update_metrics(workspace, detector=other.name)
        assert update_metrics(workspace, detector=damaged.name)
        assert list(map(rows, detectors)) == written


def test_a_full_disk_keeps_the_detector_that_an_import_would_replace(tmp_path, monkeypatch):
    workspace, csv = Workspace(tmp_path / "o"), write_csv(tmp_path / "x.csv", ROWS)
    folder = workspace.detector("x")
    folder.checkpoints.mkdir(parents=True)
    for path in (folder.config, folder.checkpoints / "step_000000001.pt", folder.steps, folder.folder / "notes.txt"):
        path.write_text("{}")

    def state():
        files = [path for path in folder.folder.rglob("*") if path.is_file() and path != folder.lock]
        return {path: path.read_bytes() for path in files}

    before = state()

    def full(*_, **__):
        raise OSError(28, "No space left on device", "x")

    with monkeypatch.context() as patch:
        patch.setattr(import_predictions, "write_parquet", full)
        with pytest.raises(OSError, match="No space"):
            import_csv(workspace, csv, force=True)
    assert {
        path: path.read_bytes() for path in folder.folder.rglob("*") if path.is_file() and path != folder.lock
    } == before
    import_csv(workspace, csv, force=True)
    left = {path.name for path in folder.folder.iterdir()} - {folder.lock.name}
    assert left == {"predictions.parquet", "predictions.json", "notes.txt"}


@pytest.mark.parametrize("name", ["checkpoints", "cached_predictions"])
def test_linked_folders_are_refused_before_anything_is_removed(tmp_path, name):
    workspace, csv = Workspace(tmp_path / "o"), write_csv(tmp_path / "x.csv", ROWS)
    folder, mine = workspace.detector("x"), tmp_path / "mine"
    mine.mkdir()
    (mine / "a.parquet").write_text("mine")
    folder.folder.mkdir(parents=True)
    folder.config.write_text("{}")
    (folder.folder / name).symlink_to(mine)
    with pytest.raises(FairfaceError, match="is a link"):
        import_csv(workspace, csv, force=True)
    assert folder.config.exists()
    assert (mine / "a.parquet").read_text() == "mine"


def test_damaged_predictions_are_evaluated_again_and_other_runs_are_left_out(workspace, monkeypatch):
    folder = workspace.detector("x")
    train(workspace, steps=1)
    first = predictions(workspace)
    document = read_document(folder.predictions_document, PredictionsDocument)
    assert set(document.samples) == {"early", "mine"}
    assert document.manifest is not None
    flip_a_bit(folder.predictions)
    with pytest.raises(FairfaceError, match=r"predictions\.parquet is missing or was changed .* `fairface detect`"):
        update_metrics(workspace, detector="x")
    assert not train(workspace, steps=1).unchanged
    assert predictions(workspace).equals(first)
    for content in ("{}", "", '{"format": 3}'):  # the advice of the error, `fairface detect`, mends it
        folder.predictions_document.write_text(content)
        train(workspace, steps=1)
        assert predictions(workspace).equals(first)
    early = workspace.run("early")
    evaluated = []
    monkeypatch.setattr(evaluate, "predict_logits", lambda *_, **__: evaluated.append(1))
    with exclusive_lock(early.samples_lock, "sampling"):
        (reason,) = train(workspace, steps=1).left_out
    assert "the samples of run early are left out: another process is using" in reason
    assert set(predictions(workspace)["run"].drop_nulls()) == {"mine"}
    assert not train(workspace, steps=1).unchanged
    assert predictions(workspace).equals(first)  # its cached predictions were kept
    for path, content in ((early.samples_document, b"{}"), (early.config, b"[")):
        before = path.read_bytes()
        path.write_bytes(content)
        assert len(train(workspace, steps=1, run="mine").left_out) == (path == early.samples_document)
        path.write_bytes(before)
    flip_a_bit(early.samples_table)
    (reason,) = train(workspace, steps=1).left_out
    assert "samples.parquet is missing or was changed" in reason
    assert evaluated == []


@pytest.mark.parametrize("name", ["shards/images.parquet", "shards/labels.parquet", "runs/mine/samples.parquet"])
def test_a_detector_is_not_trained_on_damaged_tables(workspace, name):
    flip_a_bit(workspace.root / name)
    with pytest.raises(FairfaceError, match=r"is missing or was changed after it was written: .* `fairface"):
        train(workspace, steps=1)
    assert not workspace.detector("x").folder.exists()


def test_a_detector_is_not_trained_on_what_is_being_written(workspace):
    mine, shards = workspace.run("mine"), workspace.shards
    for lock in (shards.lock, shards.label_files.lock, mine.samples_lock, mine.label_files.lock):
        with exclusive_lock(lock, "x"), pytest.raises(FairfaceError, match="another process is using"):
            train(workspace, steps=1)
    assert not workspace.detector("x").folder.exists()
