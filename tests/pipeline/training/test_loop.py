"""The training loop with a trainer of one number: what is logged, when it saves, and how it ends at a signal."""

import time
from collections.abc import Sequence
from itertools import repeat
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
import torch
from torch import Tensor

from pipeline.data.sampler import SINGLE_RANK
from pipeline.training import checkpoint
from pipeline.training.loop import LoopConfig, TrainingLoop
from pipeline.training.signals import TrainingInterrupted
from shards.errors import FairfaceError
from shards.workspace import TrainingFolder

BATCHES = repeat((torch.zeros(4, 2, 2, 3, dtype=torch.uint8), None))


class CountingTrainer:
    """Its metric is the step's number."""

    rank_slice, device, batch_size, metric_names = SINGLE_RANK, torch.device("cpu"), 4, ("number",)

    def __init__(self) -> None:
        self.steps = 0

    def step(self, step: int, images: Tensor, labels: Any) -> Tensor:
        self.steps += 1
        return torch.tensor([float(step)])

    def summary(self, values: Sequence[float]) -> str:
        return f"number {values[0]:.1f}"

    def state(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]


def run_loop(folder: TrainingFolder, trainer: Any, *, last: int, received: bool = False, **config: Any) -> None:
    settings = LoopConfig(steps_per_epoch=10, progress=False, **config)
    loop = TrainingLoop(trainer, folder, settings, rows=[], header={"run": "x"})
    signals: Any = SimpleNamespace(received=received, exit_code=130)
    loop.run(BATCHES, first=0, last=last, signals=signals)


def saved_steps(folder: TrainingFolder) -> list[int]:
    return [checkpoint.checkpoint_step(path) for path in checkpoint.list_checkpoints(folder.checkpoints)]


def test_rows_are_means_since_the_last_row(tmp_path):
    folder = TrainingFolder(tmp_path)
    run_loop(folder, CountingTrainer(), last=25, log_every=10)
    rows = pl.read_parquet(folder.steps)
    assert rows.select("step", "epoch", "images").rows() == [(10, 1, 40), (20, 2, 80), (25, 3, 100)]
    assert rows["number"].to_list() == [4.5, 14.5, 22.0]
    assert rows["seconds"].is_sorted()
    assert checkpoint.load(checkpoint.checkpoint_path(folder.checkpoints, 25))["networks"] == {"steps": 25}


def test_checkpoints_are_saved_by_epoch_and_the_newest_kept(tmp_path):
    folder = TrainingFolder(tmp_path)
    run_loop(folder, CountingTrainer(), last=65, save_every_epoch=2, keep=3)
    assert saved_steps(folder) == [40, 60, 65]


def test_checkpoints_are_saved_by_time_where_a_row_is_logged(tmp_path):
    folder = TrainingFolder(tmp_path)
    run_loop(folder, CountingTrainer(), last=35, save_every_seconds=0, log_every=10, keep=9)
    assert saved_steps(folder) == [10, 20, 30, 35]


def test_a_signal_ends_the_loop_after_the_step_with_a_checkpoint(tmp_path):
    folder = TrainingFolder(tmp_path)
    with pytest.raises(TrainingInterrupted, match=r"step 1 of 9\. Progress is saved; rerun") as interrupted:
        run_loop(folder, CountingTrainer(), last=9, received=True)
    assert interrupted.value.exit_code == 130
    assert saved_steps(folder) == [1]
    run_loop(folder, CountingTrainer(), last=1, received=True)  # at the last step nothing is left to interrupt


def test_a_metric_that_is_not_finite_is_not_saved(tmp_path):
    trainer: Any = CountingTrainer()
    trainer.step = lambda step, images, labels: torch.tensor([torch.inf])
    with pytest.raises(FairfaceError, match="no checkpoint was saved after it; try a lower --lr"):
        run_loop(TrainingFolder(tmp_path), trainer, last=3)
    assert saved_steps(TrainingFolder(tmp_path)) == []


def test_the_rate_includes_the_wait_for_the_device(tmp_path, monkeypatch):
    stack = torch.stack
    monkeypatch.setattr(torch, "stack", lambda tensors: (time.sleep(0.2), stack(tensors))[1])
    folder = TrainingFolder(tmp_path)
    run_loop(folder, CountingTrainer(), last=5)
    row = pl.read_parquet(folder.steps).row(0, named=True)
    assert row["seconds"] >= 0.2
    assert row["images_per_s"] <= 20 / 0.2
