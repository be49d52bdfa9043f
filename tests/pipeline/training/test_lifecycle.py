"""The lifecycle of a run: what may be resumed, what is refused, what --force replaces, and who holds the lock."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from pipeline.gan.train import load_resumable
from pipeline.gan.trainer import GanTrainer
from pipeline.training import checkpoint
from pipeline.training.lifecycle import clear_run
from pipeline.training.run_directory import read_run
from shards.atomic_io import read_json
from shards.documents import RunConfig, write_document
from shards.errors import FairfaceError
from shards.locks import exclusive_lock
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
        exclusive_lock(workspace.run("mine").lock, "training"),
        pytest.raises(FairfaceError, match="another process is using"),
    ):
        train_run(workspace, 3, run="mine")
    assert train_run(workspace, 3, run="mine").config.steps == 3


def test_clearing_a_run_keeps_its_lock(workspace):
    train_run(workspace, 3, run="mine")
    folder = workspace.run("mine")
    with exclusive_lock(folder.lock, "training"):
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


def test_a_run_of_an_older_version_is_resumed_to_the_same_weights(workspace):
    """Without the options, the second moving average and the number of threads that have been added since."""
    added = {"loss", "regularizer", "gamma", "penalty_every", "lr_g", "lr_d", "ema_half_life", "diff_augment"}

    def older(options: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in options.items() if name not in added}

    train_run(workspace, 5, run="uninterrupted")
    train_run(workspace, 3, run="mine")
    folder = workspace.run("mine")
    config = read_json(folder.config)
    edit_json(folder.config, threads=None, **{name: older(config[name]) for name in ("options", "requested_options")})
    state = checkpoint.load(checkpoint.checkpoint_path(folder.checkpoints, 3))
    del state["networks"]["ema_long"]
    checkpoint.save(folder.checkpoints, 3, state | {"options": older(state["options"])}, keep=1)
    assert load_resumable(workspace, "mine").options == TINY
    train_run(workspace, 5, run="mine")
    weights, expected = (run_weights(workspace, run, 5) for run in ("mine", "uninterrupted"))
    assert is_equal(weights | {"ema_long": None}, expected | {"ema_long": None})
    with pytest.raises(FairfaceError, match="another loss"):
        train_run(workspace, 6, replace(TINY, loss="hinge"), run="mine")


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


def table_of(workspace: Workspace) -> pl.DataFrame:
    return pl.read_parquet(workspace.run("mine").steps)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda table: table.drop("loss_g"), "can't be read .*loss_g"),
        (lambda table: table.with_columns(pl.col("step").cast(pl.String)), "column step is String instead of Int64"),
        (lambda table: table.with_columns(loss_d=pl.lit(None, pl.Float32)), "or lacks values"),
        (lambda table: table.head(0), "does not end with the checkpoint's step 3"),
        (lambda table: table.with_columns(step=pl.col("step") - 1), "does not end with the checkpoint's step 3"),
    ],
)
def test_a_table_of_steps_of_another_shape_is_refused_and_may_be_removed(workspace, capsys, change, reason):
    train_run(workspace, 3, run="mine")
    path = workspace.run("mine").steps
    change(table_of(workspace)).write_parquet(path)
    with pytest.raises(FairfaceError, match=reason):
        train_run(workspace, 5, run="mine")
    path.unlink()
    train_run(workspace, 5, run="mine")
    assert "the losses up to step 3 are lost" in capsys.readouterr().out
    assert table_of(workspace)["step"].to_list() == [5]


def test_a_damaged_table_of_steps_is_refused(workspace):
    train_run(workspace, 3, run="mine")
    path = workspace.run("mine").steps
    content = bytearray(path.read_bytes())
    content[-6] ^= 255  # in the footer
    path.write_bytes(content)
    with pytest.raises(FairfaceError, match=r"steps\.parquet can't be read"):
        train_run(workspace, 5, run="mine")


def test_a_renamed_checkpoint_is_refused(workspace):
    train_run(workspace, 3, run="mine")
    checkpoints = workspace.run("mine").checkpoints
    checkpoint.checkpoint_path(checkpoints, 3).rename(checkpoint.checkpoint_path(checkpoints, 4))
    with pytest.raises(FairfaceError, match=r"step_000000004\.pt is the checkpoint of step 3"):
        train_run(workspace, 5, run="mine")


def drop_generator(networks: dict[str, Any]) -> None:
    del networks["g"]


def replace_generator(networks: dict[str, Any]) -> None:
    networks["g"] = {name: torch.zeros(3) for name in networks["g"]}


def replace_average(networks: dict[str, Any]) -> None:
    networks["adam_d"]["state"][0]["exp_avg"] = torch.zeros(3)


def drop_groups(networks: dict[str, Any]) -> None:
    networks["adam_g"]["param_groups"] = []


def replace_by_list(networks: dict[str, Any]) -> None:
    networks["ema"] = [1, 2]


@pytest.mark.parametrize(
    "change",
    [drop_generator, replace_generator, replace_average, drop_groups, replace_by_list],
    ids=lambda f: f.__name__,
)
def test_a_checkpoint_of_other_networks_is_refused(workspace, change):
    train_run(workspace, 3, run="mine")
    checkpoints = workspace.run("mine").checkpoints
    state = checkpoint.load(checkpoint.checkpoint_path(checkpoints, 3))
    change(state["networks"])
    checkpoint.save(checkpoints, 3, state, keep=3)
    with pytest.raises(FairfaceError, match=r"step_000000003\.pt is not a checkpoint of this network"):
        train_run(workspace, 5, run="mine")


def test_epochs_that_no_checkpoint_could_count_are_refused(workspace):
    with pytest.raises(FairfaceError, match="choose fewer --epochs"):
        train_run(workspace, 0, run="mine", epochs=10**8)


def test_networks_that_do_not_fit_into_the_memory_are_refused_before_they_are_built(workspace):
    with pytest.raises(FairfaceError, match=r"the networks and a batch need .* MB of memory"):
        train_run(workspace, 3, replace(TINY, width_g=10**4, width_d=10**4, latent_dim=10**5), run="mine")
    assert not workspace.run("mine").folder.exists()


def test_a_resident_feed_that_does_not_fit_is_refused(workspace, monkeypatch):
    monkeypatch.setattr("pipeline.runtime.free_memory", lambda _: 10**7)
    with pytest.raises(FairfaceError, match=r"the decoded images need .* use --feed streaming"):
        train_run(workspace, 3, replace(TINY, image_size=128, feed="resident", batch_size=2), run="mine")
    assert not workspace.run("mine").folder.exists()


@pytest.mark.parametrize("field", ["options", "requested_options"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image_size", 48),
        ("width_g", -3),
        ("width_d", "8"),
        ("lr", None),
        ("balance", {"a": "b"}),
        ("balance", "evenly"),
        ("seed", True),
        ("seed", 1.5),
        ("compile", None),
        ("precision", "auto"),
        ("feed", "pipe"),
        ("other", 1),
        ("flip", 0),
    ],
    ids=str,
)
def test_a_run_whose_options_were_edited_is_refused_in_one_line(workspace, field, name, value):
    train_run(workspace, 3, run="mine")
    path = workspace.run("mine").config
    edit_json(path, **{field: read_json(path)[field] | {name: value}})
    if field == "options":
        with pytest.raises(FairfaceError, match=r"damaged|can't be"):
            train_run(workspace, 5, run="mine")
    elif (name, value) not in (("compile", None), ("precision", "auto")):  # requests that may be made
        with pytest.raises(FairfaceError, match=r"damaged|can't be"):
            load_resumable(workspace, "mine")
