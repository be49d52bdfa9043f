"""The lifecycle of a run: what may be resumed, what is refused, what --force replaces, and who holds the lock."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.gan.train import load_resumable
from pipeline.gan.trainer import GanTrainer
from pipeline.training import checkpoint
from pipeline.training.lifecycle import clear_run
from pipeline.training.run_directory import read_run
from shards.atomic_io import exclusive_lock, read_json
from shards.documents import RunConfig, write_document
from shards.errors import FairfaceError
from shards.workspace import Workspace
from tests.pipeline.gan.helpers import TINY, is_equal, run_weights, train_run


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(read_json(path) | changes))


@pytest.fixture
def other_images(workspace, packed) -> Workspace:
    """A run `mine` of three steps, on other images than the shards hold now."""
    train_run(workspace, 3, run="mine")
    workspace.shards.folder.unlink()  # a symbolic link
    shutil.copytree(Workspace(packed).shards.folder, workspace.shards.folder)
    edit_json(workspace.shards.document, manifest="other")
    return workspace


def test_a_finished_run_is_not_trained_again(workspace):
    train_run(workspace, 3, run="mine")
    files = {path: path.stat().st_mtime_ns for path in workspace.run("mine").folder.rglob("*")}
    result = train_run(workspace, 2, run="mine")
    assert (result.unchanged, result.config.steps) == (True, 3)
    assert {path: path.stat().st_mtime_ns for path in workspace.run("mine").folder.rglob("*")} == files


def test_a_run_refuses_other_options(workspace):
    train_run(workspace, 3, run="mine")
    with pytest.raises(FairfaceError, match="another lr: choose another --run, or replace it with --force"):
        train_run(workspace, 5, replace(TINY, lr=1e-3), run="mine")
    assert train_run(workspace, 5, replace(TINY, feed="streaming"), run="mine").config.options["feed"] == "streaming"


def test_a_run_refuses_other_images_unless_they_are_intended(other_images):
    with pytest.raises(FairfaceError, match="other images"):
        train_run(other_images, 5, run="mine")
    config = train_run(other_images, 5, run="mine", other_data=True).config
    assert (config.data.manifest, len(config.previous_data)) == ("other", 1)
    path = checkpoint.checkpoint_path(other_images.run("mine").checkpoints, 5)
    assert checkpoint.load(path)["data"] == asdict(config.data)


def test_force_replaces_a_run_of_other_images(other_images):
    assert not train_run(other_images, 3, run="mine", force=True).unchanged


def test_a_conditional_run_refuses_images_of_other_groups(workspace):
    conditional = replace(TINY, conditional="gender")
    train_run(workspace, 3, conditional, run="mine")
    edit_json(workspace.run("mine").config, classes={"female": 1.0})
    with pytest.raises(FairfaceError, match="is conditioned on the genders female, and"):
        train_run(workspace, 5, conditional, run="mine", other_data=True)
    with pytest.raises(FairfaceError, match="another conditional"):
        train_run(workspace, 5, replace(TINY, conditional="age"), run="mine")


def test_force_replaces_a_run_only_once_the_new_one_is_ready(workspace):
    train_run(workspace, 3, run="mine")
    with pytest.raises(FairfaceError, match="--batch-size"):
        train_run(workspace, 3, replace(TINY, batch_size=500), run="mine", force=True)
    before = run_weights(workspace, "mine", 3)
    train_run(workspace, 3, replace(TINY, seed=5), run="mine", force=True)
    assert not is_equal(before, run_weights(workspace, "mine", 3))


def test_a_second_training_of_a_run_at_the_same_time_is_refused(workspace):
    with (
        exclusive_lock(workspace.run("mine").folder, "training"),
        pytest.raises(FairfaceError, match="another process is using"),
    ):
        train_run(workspace, 3, run="mine")
    assert train_run(workspace, 3, run="mine").config.steps == 3


def test_clearing_a_run_keeps_its_lock(workspace):
    train_run(workspace, 3, run="mine")
    folder = workspace.run("mine")
    with exclusive_lock(folder.folder, "training"):
        clear_run(folder)
        with pytest.raises(FairfaceError, match="another process is using"):
            train_run(workspace, 3, run="mine", force=True)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"status": "imported", "imported": "theirs.csv"}, r"holds labels imported from theirs\.csv"),
        ({"status": "finished", "checkpoint": "/elsewhere/step.pt"}, r"was sampled from /elsewhere/step\.pt"),
    ],
)
def test_a_run_that_was_not_trained_here_is_refused(workspace, fields, reason):
    write_document(workspace.run("mine").config, RunConfig(name="mine", started="2026-01-01T00:00:00+00:00", **fields))
    with pytest.raises(FairfaceError, match=f"{reason}.*choose another --run"):
        train_run(workspace, 3, run="mine")
    with pytest.raises(FairfaceError, match=f"{reason}.*it can't be resumed"):
        load_resumable(workspace, "mine")


def test_a_folder_of_other_files_is_refused(workspace):
    folder = workspace.run("mine").folder
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(FairfaceError, match="holds files that don't belong to a run: choose another --run"):
        train_run(workspace, 3, run="mine", force=True)
    assert (folder / "notes.txt").exists()


def test_a_run_of_another_version_is_refused_in_one_line(workspace):
    train_run(workspace, 3, run="mine")
    edit_json(workspace.run("mine").config, format=1)
    with pytest.raises(FairfaceError, match="is of format 1, and this version reads 2: choose another name"):
        train_run(workspace, 5, run="mine")
    assert not train_run(workspace, 3, run="mine", force=True).unchanged


@pytest.mark.parametrize("name", ["../mine", ".mine", "a/b", "all"])
def test_a_run_needs_the_name_of_a_single_folder(workspace, name):
    with pytest.raises(FairfaceError, match=r"--run .*: give the name of a single folder"):
        train_run(workspace, 3, run=name)


def test_the_newest_run_is_resumed_with_its_own_options(workspace):
    train_run(workspace, 3, replace(TINY, seed=7), run="mine")
    existing = load_resumable(workspace, None)
    assert (existing.name, existing.preset, existing.steps) == ("mine", "sketch", 3)
    assert existing.options == replace(TINY, seed=7)


def test_a_loss_that_is_not_finite_ends_a_new_run_without_a_trace(workspace):
    with pytest.raises(FairfaceError, match="--lr"):
        train_run(workspace, 80, replace(TINY, lr=1e30), run="never")
    assert not workspace.run("never").folder.exists()  # else later commands would take it for the newest run


def test_a_loss_that_is_not_finite_keeps_the_last_checkpoint(workspace, monkeypatch):
    real = GanTrainer.step
    monkeypatch.setattr(GanTrainer, "step", lambda self, step, *batch: real(self, step, *batch) / (step != 33))
    with pytest.raises(FairfaceError):
        train_run(workspace, 80, run="late", save_every_epoch=1)
    folder = workspace.run("late")
    assert checkpoint.checkpoint_step(checkpoint.list_checkpoints(folder.checkpoints)[-1]) == 30
    assert read_run(folder).status == "stopped"


def test_checkpoints_name_their_run(workspace):
    config = train_run(workspace, 3, run="mine").config
    state = checkpoint.load(checkpoint.checkpoint_path(workspace.run("mine").checkpoints, 3), torch.device("cpu"))
    assert state.keys() == {"fairface", "step", "run", "options", "data", "classes", "networks"}
    assert (state["step"], state["run"], state["options"]) == (3, "mine", config.options)
