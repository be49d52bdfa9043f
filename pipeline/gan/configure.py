"""Builds the config of a DCGAN's training from a preset or an existing run, and the user's options."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pipeline.gan.defaults import resolve_preset
from pipeline.gan.options import PRESETS
from pipeline.gan.train import TrainConfig, load_resumable
from shards.documents import load_shards_json
from shards.errors import FairfaceError
from shards.workspace import Workspace


def build_train_config(
    workspace: Workspace,
    overrides: Mapping[str, Any],
    *,
    preset: str = "auto",
    resume: bool = False,
    device: str = "auto",
    **settings: Any,
) -> TrainConfig:
    """Build the config of a training run: the preset's options, replaced by `overrides` (fields of GanOptions).

    With `resume`, name, preset, options and length are those of the existing run `settings["run"]`, or of the newest.
    `settings` are the other fields of TrainConfig. Raises FairfaceError if there are no shards, if no run can be
    resumed, and for options that have no effect.
    """
    if resume:
        existing = load_resumable(workspace, settings.get("run"))
        preset, options = existing.preset, existing.options
        settings["run"] = existing.name
        if not settings.get("epochs"):
            settings["steps"] = settings.get("steps") or existing.steps
    else:
        preset = resolve_preset(preset, load_shards_json(workspace.shards), device=device)
        options = PRESETS[preset]
    if "ema" in overrides:
        options = replace(options, ema_half_life=None)  # it would take precedence over `ema`
    options = replace(options, **overrides)
    if not options.has_penalty and overrides.keys() & {"gamma", "penalty_every"}:
        raise FairfaceError(
            "--gamma and --penalty-every need --regularizer r1 or r1r2: without it, they have no effect"
        )
    return TrainConfig(options=options, preset=preset, device=device, **settings)
