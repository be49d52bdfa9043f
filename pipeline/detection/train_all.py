"""Trains and evaluates several detectors, one after the other."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from models.detectors import DETECTORS, find_detector
from pipeline.data.decoder import DecoderConfig
from pipeline.detection import train
from pipeline.detection.dataset import build_pool
from pipeline.detection.defaults import build_options, resolve_preset
from pipeline.detection.evaluate import EvaluationConfig
from pipeline.detection.hold_out import resolve_hold_out
from shards import distributed
from shards.atomic_io import fingerprint
from shards.errors import WeightsUnavailable
from shards.workspace import Workspace, is_valid_name


@dataclass(frozen=True)
class DetectorsConfig:
    """Detectors to train and evaluate with the same options."""

    models: tuple[str, ...]  # keys of DETECTORS
    overrides: Mapping[str, Any] = field(default_factory=dict)  # of fields of DetectorOptions
    name: str | None = None  # of a single detector, which `hold_out` appends to; None: `default_name`
    preset: str = "auto"  # auto | benchmark | sketch
    steps: int | None = None  # of a whole training; None: the options' epochs
    fakes: str = "auto"  # auto | images | samples
    run: str | None = None  # whose samples are the fakes
    group_by: str | None = None  # attribute whose classes are the groups
    hold_out: tuple[str, ...] = ()  # of `hold_out.resolve_hold_out`; a detector for each
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    device: str = "auto"
    threads: int | None = None  # of torch on a CPU; see DetectConfig
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    force: bool = False
    progress: bool = True


@dataclass(frozen=True)
class SkippedDetector:
    """A detector whose pretrained weights are not available."""

    model: str
    reason: str


def resolve_models(names: tuple[str, ...]) -> tuple[str, ...]:
    """The keys of DETECTORS behind names, aliases and `all`; each once. Raises FairfaceError for an unknown name."""
    if "all" in names:
        return tuple(DETECTORS)
    return tuple(dict.fromkeys(find_detector(name)[0] for name in names))


def train_detectors(workspace: Workspace, config: DetectorsConfig) -> Iterator[train.DetectResult | SkippedDetector]:
    """Train and evaluate each detector of a config, and yield its result as soon as it is finished.

    With `hold_out`, there is a detector for each model and each set of held-out generators.
    One of several detectors whose weights are not available is skipped, and WeightsUnavailable is raised at the end.
    Other errors are those of `train_detector`.
    """
    skipped: list[str] = []
    for model, held_out in product(config.models, held_out_generators(workspace, config)):
        if model in skipped:
            continue
        try:
            yield train.train_detector(workspace, build_config(workspace, config, model=model, hold_out=held_out))
        except WeightsUnavailable as error:
            if len(config.models) == 1 or distributed.world_size() > 1:
                raise
            skipped.append(model)
            yield SkippedDetector(model, str(error))
    if skipped:
        raise WeightsUnavailable(f"{', '.join(skipped)} could not be trained: see the warnings for what is missing")


def held_out_generators(workspace: Workspace, config: DetectorsConfig) -> list[tuple[str, ...]]:
    """The generators that each training of a model holds out; without `hold_out`, a single training holds out none.

    Raises FairfaceError for an unknown generator, and for faces without any to hold out.
    """
    if not config.hold_out:
        return [()]
    with distributed.process_group(), ExitStack() as locks:
        fakes = "samples" if config.run and config.fakes == "auto" else config.fakes
        faces = build_pool(workspace, fakes, run=config.run, group_by=config.group_by, locks=locks)
        return resolve_hold_out(faces, config.hold_out)


def default_name(model: str, backbone: str | None) -> str:
    """The name of a detector: the model's, with the backbone if one is chosen."""
    return f"{model}-{backbone.replace('/', '-')}" if backbone and DETECTORS[model].backbone else model


def build_config(
    workspace: Workspace, config: DetectorsConfig, *, model: str, hold_out: tuple[str, ...]
) -> train.DetectConfig:
    """The config of a single detector, whose training holds out the generators `hold_out`."""
    name = config.name or default_name(model, config.overrides.get("backbone"))
    if hold_out:
        listed = f"{name}-without-{'+'.join(hold_out)}"
        name = listed if is_valid_name(listed) else f"{name}-without-{fingerprint(hold_out)}"
    preset = resolve_preset(config.preset, workspace, name=name, device=config.device)
    return train.DetectConfig(
        options=build_options(workspace, model, preset=preset, overrides=config.overrides),
        name=name,
        preset=preset,
        steps=config.steps,
        is_short=preset == "sketch" and "epochs" not in config.overrides,
        fakes=config.fakes,
        group_by=config.group_by,
        hold_out=hold_out,
        run=config.run,
        evaluation=config.evaluation,
        device=config.device,
        threads=config.threads,
        decoder=config.decoder,
        force=config.force,
        progress=config.progress,
    )
