"""Checkpoints: the newest few are kept, and a broken one is refused with the name of the last good one."""

import os

import pytest
import torch

from pipeline.training import checkpoint
from shards.errors import FairfaceError
from tests.pipeline.gan.helpers import train_run


def test_the_newest_checkpoints_are_kept(tmp_path):
    for step in (3, 20, 100, 1000):
        checkpoint.save(tmp_path, step, {"networks": torch.full((2,), step)}, keep=2)
    steps = [checkpoint.checkpoint_step(path) for path in checkpoint.list_checkpoints(tmp_path)]
    assert steps == [100, 1000]
    state = checkpoint.load(checkpoint.checkpoint_path(tmp_path, 1000))
    assert (state["step"], state["networks"].tolist()) == (1000, [1000, 1000])


@pytest.mark.parametrize("damage", ["cut", "foreign", "pickle", "format"])
def test_a_broken_checkpoint_is_named_with_the_last_good_one(workspace, damage):
    train_run(workspace, 32, run="mine", save_every_epoch=1)
    path = checkpoint.list_checkpoints(workspace.run("mine").checkpoints)[-1]
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:5000])
    elif damage == "foreign":
        torch.save({"weights": torch.zeros(3)}, path)
    elif damage == "format":
        torch.save(checkpoint.load(path) | {"fairface": 1}, path)
    else:
        torch.save({"code": os.system}, path)
    with pytest.raises(FairfaceError, match="step_000000030"):
        train_run(workspace, 40, run="mine")
