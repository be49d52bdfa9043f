"""What the training runs of a study will do on this machine: with which options, for how long, on how many devices."""

import time
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Any

import torch

from models.precision import bf16_is_fast
from pipeline.gan.configure import build_train_config
from pipeline.gan.defaults import default_steps
from pipeline.gan.options import GanOptions
from pipeline.gan.trainer import GanTrainer
from pipeline.runtime import resolve_device
from shards.atomic_io import fingerprint
from shards.documents import load_shards_json
from shards.workspace import Workspace

WARM_UP, MEASURED_STEPS, MEASURED_SECONDS = 3, 16, 1.5  # steps; steps and seconds, of which the later one ends a trial


def gpu_count() -> int:
    """The number of GPUs that torch sees."""
    return torch.cuda.device_count()


def resolve_training(workspace: Workspace, parameters: Mapping[str, Any]) -> tuple[GanOptions, int]:
    """The options of a training run with the parameters of `fairface train`, and its steps.

    Raises FairfaceError for options that are out of range or have no effect, and if nothing was packed.
    """
    given = {item.name: value for item in fields(GanOptions) if (value := parameters.get(item.name)) is not None}
    preset, device = parameters["preset"], parameters["device"]
    config = build_train_config(workspace, given, preset=preset, device=device)
    steps_per_epoch = max(load_shards_json(workspace.shards).images // config.options.batch_size, 1)
    epochs = parameters["epochs"]
    steps = (
        parameters["steps"] or (epochs and epochs * steps_per_epoch) or default_steps(config.preset, steps_per_epoch)
    )
    return config.options, steps


def training_fingerprint(workspace: Workspace, parameters: Mapping[str, Any]) -> str:
    """A text that is the same for parameters of `fairface train` with the same effect, such as one set to its default.

    Raises FairfaceError as `resolve_training`.
    """
    options, steps = resolve_training(workspace, parameters)
    resolved = {"preset", "steps", "epochs", *(item.name for item in fields(GanOptions))}
    others = {name: value for name, value in parameters.items() if name not in resolved}
    return fingerprint([asdict(options), steps, others])


def training_seconds(workspace: Workspace, parameters: Mapping[str, Any]) -> float:
    """The seconds of a training run, estimated from some steps on random images without compilation.

    Raises FairfaceError as `resolve_training`.
    """
    options, steps = resolve_training(workspace, parameters)
    return steps * step_seconds(options, resolve_device(parameters["device"]))


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
