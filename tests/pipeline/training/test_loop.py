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


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_saved(tmp_path, value):
    folder, trainer = TrainingFolder(tmp_path), CountingTrainer()
    state: Any = {"ema": torch.zeros(3)}
    trainer.state = lambda: state

    def step(number: int, images: Tensor, labels: Any) -> Tensor:
        state["ema"][1] = number if number < 25 else value
        return torch.tensor([float(number)])

    trainer.step = step
    with pytest.raises(FairfaceError, match="weights became NaN or infinite near step 30"):
        run_loop(folder, trainer, last=40, save_every_epoch=1)
    assert saved_steps(folder) == [10, 20]
    assert pl.read_parquet(folder.steps)["step"].to_list() == [10, 20]


def test_training_that_takes_days_is_announced_once(tmp_path, capsys):
    run_loop(TrainingFolder(tmp_path / "a"), CountingTrainer(), last=12, log_every=3)
    assert "days" not in capsys.readouterr().out
    trainer = CountingTrainer()
    trainer.step, fast = lambda *a: (time.sleep(0.02), fast(*a))[1], trainer.step
    folder = TrainingFolder(tmp_path / "b")
    loop = TrainingLoop(trainer, folder, LoopConfig(10, log_every=2, progress=False), rows=[], header={"run": "x"})
    batches = iter([next(BATCHES) for _ in range(12)])
    with pytest.raises(StopIteration):
        loop.run(batches, first=0, last=10**8, signals=SimpleNamespace(received=False, exit_code=130))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "days" in line]
    assert line.startswith("the remaining 99,999,996 steps will take about ")
    assert float(line.split()[-2].replace(",", "")) == pytest.approx(23, abs=8)


def test_tensorboard_reads_the_losses_and_drops_those_after_a_checkpoint(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = TrainingFolder(tmp_path)
    run_loop(folder, CountingTrainer(), last=25, log_every=10)
    rows = pl.read_parquet(folder.steps).head(1).to_dicts()  # as after a kill at step 15
    time.sleep(1.1)  # the names of files begin with the second
    loop = TrainingLoop(CountingTrainer(), folder, LoopConfig(10, log_every=10, progress=False), rows=rows, header={})
    loop.run(BATCHES, first=10, last=30, signals=SimpleNamespace(received=False, exit_code=130))
    events = EventAccumulator(str(folder.tensorboard)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("number")] == [(10, 4.5), (20, 14.5), (30, 24.5)]
    assert set(events.Tags()["scalars"]) == {"number", "images_per_s", "data_wait"}
