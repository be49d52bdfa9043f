"""How long the trainings of a study will take on this machine, and on how many devices they can run side by side."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from models.precision import bf16_is_fast
from pipeline.gan.defaults import default_steps, resolve_preset
from pipeline.gan.options import PRESETS, GanOptions
from pipeline.gan.trainer import GanTrainer
from pipeline.runtime import resolve_device
from shards.documents import load_shards_json
from shards.workspace import Workspace

WARM_UP, MEASURED_STEPS, MEASURED_SECONDS = 3, 16, 3.0  # steps; steps and seconds, of which the later one ends a trial


@dataclass(frozen=True)
class TrainingCost:
    """The length of a training, measured in a trial with random images."""

    steps: int
    step_seconds: float

    @property
    def seconds(self) -> float:
        return self.steps * self.step_seconds


def gpu_count() -> int:
    """The number of GPUs that torch sees."""
    return torch.cuda.device_count()


def measure_training(workspace: Workspace, parameters: Mapping[str, Any]) -> TrainingCost:
    """Take some steps of a training with the parameters of `fairface train`, without compiling them.

    Raises FairfaceError for options that are out of range, and if nothing was packed.
    """
    packed = load_shards_json(workspace.shards)
    preset = resolve_preset(parameters["preset"], packed, device=parameters["device"])
    given = {item.name: parameters.get(item.name) for item in fields(GanOptions)}
    options = replace(PRESETS[preset], **{name: value for name, value in given.items() if value is not None})
    steps_per_epoch = max(packed.images // options.batch_size, 1)
    steps = parameters["steps"] or (
        parameters["epochs"] * steps_per_epoch if parameters["epochs"] else default_steps(preset, steps_per_epoch)
    )
    return TrainingCost(steps, step_seconds(options, resolve_device(parameters["device"])))


def step_seconds(options: GanOptions, device: torch.device) -> float:
    """The seconds of one step, without reading images."""
    precision = options.precision
    if precision == "auto":
        precision = "bf16" if bf16_is_fast(device) else "fp32"
    trial = replace(options, precision=precision, compile=False, cuda_graphs=False, conditional=None)
    trainer = GanTrainer(trial, device)
    shape = (trial.batch_size, trial.image_size, trial.image_size, 3)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    for step in range(WARM_UP):
        trainer.step(step, images).tolist()  # waits for the device
    start, step = time.perf_counter(), 0
    while step < MEASURED_STEPS or time.perf_counter() - start < MEASURED_SECONDS:
        trainer.step(WARM_UP + step, images).tolist()
        step += 1
    return (time.perf_counter() - start) / step
