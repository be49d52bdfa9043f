"""What a training that fails leaves behind: all that was there before, and nothing of a run that it just began."""

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from pipeline.cli.main import main
from pipeline.gan.train import GanJob
from pipeline.training import checkpoint, event_file, lifecycle, loop
from pipeline.training.run_directory import read_run
from shards import atomic_io
from shards.documents import RunConfig, changed_files, write_document
from shards.errors import FairfaceError
from shards.locks import exclusive_lock, shared_lock
from shards.workspace import RunFolder, Workspace
from tests.pipeline.gan.helpers import TINY, is_equal, run_weights, train_run

OWN = "notes.txt"  # a file of the user's


class Stopped(BaseException):
    """As what the command raises for SIGTERM."""


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of every file below a folder, without locks."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.endswith("lock")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def add_results(run: RunFolder) -> None:
    """Samples and labels, as other commands leave them, and a file of the user's."""
    run.samples.mkdir()
    for path in (run.samples / "samples-000000.tar", run.samples_document, run.label_files.document, run.folder / OWN):
        path.write_text(path.name)


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def stop(*_: object, **__: object) -> None:
    raise Stopped


@contextmanager
def failing(place: str) -> Iterator[None]:
    """Let the disk be full, or a signal arrive, where `place` says."""
    real = os.replace

    def full_for_one_file(source: str, target: str | Path) -> None:
        if Path(target).match(place):
            full()
        real(source, target)

    with pytest.MonkeyPatch.context() as patch:
        if place == "start":
            patch.setattr(GanJob, "start", full)
        elif place == "tensorboard":
            patch.setattr(event_file.EventFile, "add_scalars", full)
        elif place == "signal before the first step":
            patch.setattr(loop.TrainingLoop, "run", stop)
        elif place == "signal before the loop":
            patch.setattr(event_file.EventFile, "__init__", stop)
        else:
            patch.setattr(atomic_io.os, "replace", full_for_one_file)
        yield


PLACES = [
    "start",
    "config.json",
    "steps.parquet",
    "step_*.pt",
    "step_*.png",
    "tensorboard",
    "signal before the loop",
    "signal before the first step",
]


@pytest.mark.parametrize("place", PLACES)
def test_a_new_run_that_fails_leaves_nothing(workspace, place):
    with failing(place), pytest.raises((OSError, Stopped)):
        train_run(workspace, 40, run="mine", sample_every=1)
    assert not workspace.run("mine").folder.exists()


@pytest.mark.parametrize("place", PLACES)
def test_a_resumed_run_that_fails_keeps_what_it_had_and_resumes(workspace, place):
    train_run(workspace, 9, run="mine", sample_every=5)
    run = workspace.run("mine")
    add_results(run)
    before = contents(run.folder)
    with failing(place), pytest.raises((OSError, Stopped)):
        train_run(workspace, 24, run="mine", sample_every=1)
    after = contents(run.folder)
    kept = [name for name in before if name not in ("config.json", "steps.parquet")]
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    train_run(workspace, 24, run="mine")
    train_run(workspace, 24, run="uninterrupted")
    assert is_equal(run_weights(workspace, "mine", 24), run_weights(workspace, "uninterrupted", 24))


@pytest.mark.parametrize("place", PLACES)
def test_a_run_without_checkpoints_that_fails_keeps_what_it_had(workspace, place):
    train_run(workspace, 9, run="mine", sample_every=5)
    run = workspace.run("mine")
    atomic_io.remove_tree(run.checkpoints)
    (run.folder / OWN).write_text("mine")
    before = contents(run.folder)
    with failing(place), pytest.raises((OSError, Stopped)):
        train_run(workspace, 9, run="mine")
    assert contents(run.folder).keys() >= before.keys()
    assert (run.folder / OWN).read_text() == "mine"
    assert not train_run(workspace, 9, run="mine").unchanged


@pytest.mark.parametrize("result", ["samples.json", "labels.json", "samples", "samples.parquet"])
def test_a_run_is_not_started_over_next_to_what_its_lost_checkpoints_made(workspace, result):
    train_run(workspace, 9, run="mine")
    run = workspace.run("mine")
    atomic_io.remove_tree(run.checkpoints)
    (run.folder / result).mkdir() if result == "samples" else (run.folder / result).write_text("{}")
    before = contents(run.folder)
    with pytest.raises(
        FairfaceError, match=f"no longer has a checkpoint, but has {result}.*--run, or replace it with --force"
    ):
        train_run(workspace, 9, run="mine")
    assert contents(run.folder) == before
    assert not train_run(workspace, 9, run="mine", force=True).unchanged
    assert not (run.folder / result).exists()


def test_force_removes_the_run_and_its_results_and_no_other_file(workspace):
    train_run(workspace, 9, run="mine", sample_every=5)
    run = workspace.run("mine")
    add_results(run)
    train_run(workspace, 3, replace(TINY, seed=1), run="mine", force=True)
    assert {path.name for path in checkpoint.list_checkpoints(run.checkpoints)} == {"step_000000003.pt"}
    left = {path.name for path in run.folder.iterdir() if not path.name.endswith("lock")}
    assert left == {"config.json", "steps.parquet", "checkpoints", "grids", "tensorboard", OWN}
    assert [path.name for path in run.grids.iterdir()] == ["step_000000003.png"]


@pytest.mark.parametrize("place", ["start", "memory", "disk"])
def test_force_keeps_the_run_if_the_new_one_does_not_start(workspace, monkeypatch, place):
    train_run(workspace, 9, run="mine")
    run = workspace.run("mine")
    add_results(run)
    before = contents(run.folder)
    if place == "memory":
        monkeypatch.setattr("pipeline.runtime.free_memory", lambda _: 10**5)
    elif place == "disk":
        monkeypatch.setattr(lifecycle.shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    else:
        monkeypatch.setattr(GanJob, "start", full)
    with pytest.raises((OSError, FairfaceError), match="No space" if place == "start" else " MB"):
        train_run(workspace, 9, replace(TINY, width_g=32), run="mine", force=True)
    assert contents(run.folder) == before


@pytest.mark.parametrize("lock", ["samples_lock", "labels_lock"])
@pytest.mark.parametrize("kind", [exclusive_lock, shared_lock])
def test_force_is_refused_while_the_samples_or_labels_are_in_use(workspace, kind, lock):
    train_run(workspace, 3, run="mine")
    run = workspace.run("mine")
    add_results(run)
    before = contents(run.folder)
    path = run.samples_lock if lock == "samples_lock" else run.label_files.lock
    with kind(path, "a test"), pytest.raises(FairfaceError, match="another process is using"):
        train_run(workspace, 3, run="mine", force=True)
    assert contents(run.folder) == before
    with kind(path, "a test"):
        train_run(workspace, 5, run="mine")  # a run may be sampled while it is trained


def test_a_run_is_described_and_trained_under_its_locks(workspace, monkeypatch):
    held = []
    run, real = workspace.run("mine"), lifecycle._prepare

    def is_locked(path: Path) -> bool:
        try:
            with exclusive_lock(path, "a test"):
                return False
        except FairfaceError:
            return True

    def prepare(job):
        held.append(is_locked(run.lock) and is_locked(workspace.shards.lock))
        return real(job)

    monkeypatch.setattr(lifecycle, "_prepare", prepare)
    monkeypatch.setattr(loop.TrainingLoop, "run", lambda *_, **__: held.append(is_locked(workspace.shards.lock)))
    train_run(workspace, 3, run="mine")
    assert held == [True, True]
    assert not is_locked(workspace.shards.lock)


def test_shards_that_are_being_packed_are_not_read(workspace):
    with exclusive_lock(workspace.shards.lock, "packing"), pytest.raises(FairfaceError, match="another process"):
        train_run(workspace, 3, run="mine")
    assert not workspace.run("mine").folder.exists()


def test_the_document_has_the_hashes_of_what_training_wrote(workspace, monkeypatch):
    config, run = train_run(workspace, 32, run="mine", save_every_epoch=1).config, workspace.run("mine")
    names = {f"checkpoints/step_{step:09d}.pt" for step in (15, 30, 32)}
    assert set(config.files) == {"steps.parquet", *names}
    assert not changed_files(run.folder, config.files)
    with failing("signal before the loop"), pytest.raises(Stopped):
        train_run(workspace, 40, run="mine")
    stopped = read_run(run)
    assert (stopped.status, stopped.files) == ("stopped", config.files)
    during = []
    step = loop.TrainingLoop._next_batch
    monkeypatch.setattr(loop.TrainingLoop, "_next_batch", lambda *a: during.append(read_run(run)) or step(*a))
    train_run(workspace, 33, run="mine")
    assert [(config.status, config.files) for config in during] == [("running", {})]


def test_a_run_that_was_killed_after_its_last_checkpoint_is_finished_by_the_next_command(workspace):
    config = train_run(workspace, 9, run="mine").config
    write_document(workspace.run("mine").config, replace(config, status="running", finished=None, files={}))
    result = train_run(workspace, 9, run="mine")
    assert (result.unchanged, result.config.status, result.config.files) == (True, "finished", config.files)
    assert read_run(workspace.run("mine")) == result.config


@pytest.mark.parametrize("name", ["checkpoints", "grids", "tensorboard", "samples"])
def test_links_to_folders_are_refused_before_anything_is_written(workspace, tmp_path, name):
    train_run(workspace, 3, run="mine")
    run, elsewhere = workspace.run("mine"), tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / OWN).write_text("mine")
    if (run.folder / name).exists():
        atomic_io.remove_tree(run.folder / name)
    (run.folder / name).symlink_to(elsewhere)
    before = contents(run.folder)
    for force in (False, True):
        with pytest.raises(FairfaceError, match="is a link"):
            train_run(workspace, 5, run="mine", force=force)
        assert contents(run.folder) == before
        assert contents(elsewhere) == {OWN: b"mine"}


def test_links_below_the_folders_of_a_run_are_not_followed(workspace, tmp_path):
    train_run(workspace, 3, run="mine", sample_every=1)
    run, elsewhere = workspace.run("mine"), tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / OWN).write_text("mine")
    for folder in (run.checkpoints, run.grids, run.tensorboard):
        (folder / "folder").symlink_to(elsewhere)
        (folder / "file").symlink_to(elsewhere / OWN)
    run.grid(4).symlink_to(elsewhere / OWN)
    (run.checkpoints / "step_000000002.pt").symlink_to(elsewhere / OWN)
    train_run(workspace, 4, run="mine", sample_every=1, keep=1)
    assert not run.grid(4).is_symlink()
    with pytest.raises(FairfaceError, match="is not a file of fairface"):
        train_run(workspace, 3, run="mine", force=True)
    for folder in (run.checkpoints, run.grids, run.tensorboard):
        (folder / "folder").unlink()
        (folder / "file").unlink()
    train_run(workspace, 3, run="mine", force=True)
    assert contents(elsewhere) == {OWN: b"mine"}


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
@pytest.mark.parametrize("kilobytes", [pytest.param(1000, marks=pytest.mark.attack), 5600])
def test_a_full_disk_ends_training_in_one_line_and_the_next_command_resumes(packed, workspace, tmp_path, kilobytes):
    disk = tmp_path / "disk"
    disk.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(disk)]
    if subprocess.run(options, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    (disk / "shards").symlink_to(packed / "shards")
    words = f"train --out {disk} --run mine --steps 90 --preset sketch --image-size 32 --width-g 8 --width-d 8 "
    words += "--batch-size 16 --save-every-epoch 1 --keep 3 --sample-every 1"
    try:
        failed = CliRunner().invoke(main, words)
        assert failed.exit_code == 1, failed.output
        assert failed.stderr.count("Error: ") == 1
        assert "Traceback" not in failed.stderr
        assert not list(disk.rglob("*.partial"))
        run = Workspace(disk).run("mine")
        saved = checkpoint.list_checkpoints(run.checkpoints)
        assert all(checkpoint.find_fault(path) is None for path in saved)
        assert bool(saved) == run.config.exists()
        subprocess.run(["mount", "-o", "remount,size=50m", str(disk)], check=True)
        done = CliRunner().invoke(main, words)
        assert "trained 90 steps" in done.stdout, done.output
        assert read_run(run).status == "finished"
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_run_that_was_never_trained_keeps_its_labels(workspace):
    run = workspace.run("mine")
    write_document(run.config, RunConfig(name="mine", status="imported", started="2026", imported="x.csv"))
    run.label_files.document.write_text("{}")
    with pytest.raises(FairfaceError, match=r"holds labels imported from x\.csv"):
        train_run(workspace, 3, run="mine")
    assert run.label_files.document.exists()
