"""What the tests of detectors share: options for a training of seconds, and how to run one."""

from dataclasses import replace
from typing import Any

import polars as pl
from torch import Tensor

from pipeline.detection.options import DetectorOptions
from pipeline.detection.train import DetectConfig, DetectResult, train_detector
from pipeline.training import checkpoint
from shards.workspace import Workspace

SMALL = DetectorOptions(
    image_size=64, batch_size=8, lr=5e-3, from_scratch=True, precision="fp32", compile=False, feed="resident"
)


def train(workspace: Workspace, options: DetectorOptions = SMALL, **config: Any) -> DetectResult:
    """Train and evaluate a detector, by default four steps of an Xception named `x`."""
    default = DetectConfig(options=options, name="x", preset="benchmark", steps=4, progress=False)
    return train_detector(workspace, replace(default, **config))


def weights(workspace: Workspace, name: str, step: int) -> dict[str, Tensor]:
    """The network's state in the checkpoint of a step."""
    path = checkpoint.checkpoint_path(workspace.detector(name).checkpoints, step)
    return checkpoint.load(path, "cpu")["networks"]["net"]


def predictions(workspace: Workspace, name: str = "x") -> pl.DataFrame:
    """A detector's predictions.parquet."""
    return pl.read_parquet(workspace.detector(name).predictions)
