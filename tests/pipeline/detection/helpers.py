"""What the tests of detectors share: options for a training of seconds, and how to run one."""

from dataclasses import replace
from typing import Any

import polars as pl
import torch
from torch import Tensor, nn

from models.detectors.backbones import Weights
from pipeline.detection.options import DetectorOptions
from pipeline.detection.train import DetectConfig, DetectResult, train_detector
from pipeline.training import checkpoint
from shards.workspace import Workspace

SMALL = DetectorOptions(
    image_size=64, batch_size=8, lr=5e-3, from_scratch=True, precision="fp32", compile=False, feed="resident"
)


def small_xception(weights: Weights, *, classes: int = 1, channels: int = 3, dropout: float = 0.0) -> nn.Module:
    """A network that replaces `models.detectors.registry.xception` and trains in milliseconds."""
    layers = [nn.Conv2d(channels, 8, 5, stride=4), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(4)]
    net = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(dropout), nn.Linear(128, classes))
    if weights.tag_or_path:
        net.load_state_dict(torch.load(weights.tag_or_path))
    return net


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
