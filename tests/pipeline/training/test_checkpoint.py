"""Checkpoints: the newest few are kept, and a damaged one is refused with the name of the last good one."""

import os
import random
import zipfile
from pathlib import Path

import pytest
import torch

from pipeline.gan.trainer import GanTrainer
from pipeline.training import checkpoint
from shards.errors import FairfaceError
from tests.pipeline.gan.helpers import CPU, TINY, is_equal, train_run

STATE = {"networks": {"g": torch.arange(40.0), "d": {"weight": torch.ones(9, dtype=torch.bfloat16)}}}


def save_two(folder: Path) -> Path:
    """The newer of two checkpoints."""
    return [checkpoint.save(folder, step, STATE, keep=2) for step in (3, 7)][-1]


def rewrite(path: Path, *, compression: int = zipfile.ZIP_STORED, repeat: int = 1) -> None:
    """Write the archive of a checkpoint again, each member `repeat` times."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in [*members.items()] * repeat:
            archive.writestr(name, content)


def test_the_newest_checkpoints_are_kept(tmp_path):
    for step in (3, 20, 100, 1000):
        checkpoint.save(tmp_path, step, {"networks": {"g": torch.full((2,), step)}}, keep=2)
    steps = [checkpoint.checkpoint_step(path) for path in checkpoint.list_checkpoints(tmp_path)]
    assert steps == [100, 1000]
    state = checkpoint.load(checkpoint.checkpoint_path(tmp_path, 1000))
    assert (state["step"], state["networks"]["g"].tolist()) == (1000, [1000, 1000])


def test_a_loaded_state_is_saved_as_the_same_bytes(tmp_path):
    trainer, resumed = (GanTrainer(TINY, CPU) for _ in range(2))
    trainer.step(0, torch.zeros(TINY.batch_size, 32, 32, 3, dtype=torch.uint8))
    path = checkpoint.save(tmp_path, 1, {"networks": trainer.state()}, keep=1)
    content = path.read_bytes()
    resumed.load(checkpoint.load(path)["networks"])
    assert checkpoint.save(tmp_path, 1, {"networks": resumed.state()}, keep=1).read_bytes() == content


@pytest.mark.parametrize("damage", ["cut", "foreign", "pickle", "format", "flipped"])
def test_a_broken_checkpoint_is_named_with_the_last_good_one(workspace, damage):
    train_run(workspace, 32, run="mine", save_every_epoch=1)
    older, path = checkpoint.list_checkpoints(workspace.run("mine").checkpoints)[-2:]
    state = checkpoint.load(path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:5000])
    elif damage == "foreign":
        torch.save({"weights": torch.zeros(3)}, path)
    elif damage == "format":
        torch.save(state | {"fairface": 1}, path)
    elif damage == "pickle":
        torch.save(state | {"code": os.system}, path)
    else:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 16
        path.write_bytes(content)
    with pytest.raises(FairfaceError, match="the newest other one is step_000000030"):
        train_run(workspace, 40, run="mine")
    older.write_bytes(b"damaged, too")
    with pytest.raises(FairfaceError, match="the newest other one is step_000000015"):
        train_run(workspace, 40, run="mine")


def test_no_flipped_bit_changes_a_weight(tmp_path):
    path = save_two(tmp_path)
    content, state = path.read_bytes(), checkpoint.load(path)
    refused = 0
    for bit in random.Random(0).sample(range(8 * len(content)), 2000):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            assert is_equal(checkpoint.load(path), state), bit
        except FairfaceError:
            refused += 1
    assert refused > 800  # the others are in the padding, or in fields of the directory without meaning


def test_every_flipped_bit_of_the_weights_is_a_fault(tmp_path):
    path = save_two(tmp_path)
    assert checkpoint.find_fault(path) is None
    content = path.read_bytes()
    start = content.index(STATE["networks"]["g"].numpy().tobytes())
    for byte in range(start, start + 160):
        flipped = bytearray(content)
        flipped[byte] ^= 1 << byte % 8
        path.write_bytes(flipped)
        assert "CRC" in (checkpoint.find_fault(path) or "")
    path.unlink()
    os.mkfifo(path)  # must not block
    assert "not a regular file" in (checkpoint.find_fault(path) or "")


@pytest.mark.parametrize("change", [{"compression": zipfile.ZIP_DEFLATED}, {"repeat": 2}], ids=str)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_that_may_expand_is_refused_before_it_is_read(tmp_path, change):
    path = save_two(tmp_path)
    rewrite(path)
    assert is_equal(checkpoint.load(path)["networks"], STATE["networks"])
    rewrite(path, **change)
    with pytest.raises(FairfaceError, match="not a complete checkpoint"):
        checkpoint.load(path)


def test_a_checkpoint_larger_than_the_memory_is_refused(tmp_path):
    path = save_two(tmp_path)
    os.truncate(path, 1 << 42)  # without using the disk
    with pytest.raises(FairfaceError, match=r"more than the .* that are read; the newest other one is step_000000003"):
        checkpoint.load(path)


@pytest.mark.parametrize(
    "fields", [{"step": "3"}, {"step": -1}, {"step": 10**9}, {"step": True}, {"networks": [1]}], ids=str
)
def test_a_state_with_other_fields_is_refused(tmp_path, fields):
    path = save_two(tmp_path)
    torch.save(checkpoint.load(path) | fields, path)
    with pytest.raises(FairfaceError, match="not a checkpoint that this version"):
        checkpoint.load(path)


def test_numbers_that_are_not_finite_are_found_anywhere():
    state = {"a": torch.zeros(3), "b": [{"c": torch.ones(2, 2)}], "step": 3, "n": torch.zeros(0)}
    assert checkpoint.is_finite(state)
    for value in (float("nan"), float("inf"), -float("inf")):
        state["b"][0]["c"][1, 0] = value
        assert not checkpoint.is_finite(state)
