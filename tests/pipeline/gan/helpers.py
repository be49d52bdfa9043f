"""A DCGAN that trains in a second, and what tests ask of its runs."""

import time
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from subprocess import Popen
from typing import Any

import torch

from pipeline.gan.options import GanOptions
from pipeline.gan.train import TrainConfig, TrainResult, train
from pipeline.training import checkpoint
from shards.workspace import Workspace

CPU = torch.device("cpu")
TINY = GanOptions(
    image_size=32, latent_dim=16, width_g=8, width_d=8, batch_size=16, ema_start=5, precision="fp32", compile=False
)


def train_run(workspace: Workspace, steps: int, options: GanOptions = TINY, **more: Any) -> TrainResult:
    """A run of `steps` steps; `more` are other fields of TrainConfig."""
    config = TrainConfig(options=options, preset="sketch", steps=steps, progress=False)
    return train(workspace, replace(config, **more))


def run_weights(workspace: Workspace, run: str, step: int) -> dict[str, Any]:
    """The networks' state in a run's checkpoint."""
    path = checkpoint.checkpoint_path(workspace.run(run).checkpoints, step)
    return checkpoint.load(path)["networks"]


def is_equal(a: Any, b: Any) -> bool:
    """Whether two nested states are equal bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(is_equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(is_equal, a, b))
    return a == b


def wait_for_checkpoint(folder: Path, process: Popen | BaseProcess) -> None:
    """Wait until a first checkpoint is in `folder`, or the process has ended."""
    for _ in range(1200):
        has_ended = process.poll() is not None if isinstance(process, Popen) else not process.is_alive()
        if checkpoint.list_checkpoints(folder) or has_ended:
            return
        time.sleep(0.05)
