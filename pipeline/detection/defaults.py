"""Defaults of a detector's training: preset, options, and the values of options left at `auto`."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from models.detectors import resolve_spec
from models.precision import bf16_is_fast
from pipeline.data.loader import choose_feed
from pipeline.data.shard_set import ShardSet
from pipeline.detection.options import DetectorOptions
from pipeline.runtime import has_compiler, resolve_device
from shards.documents import DetectorConfig, load_shards_json, read_document
from shards.workspace import Workspace

SKETCH_STEPS = 300  # at most, unless epochs are requested
SKETCH_BACKBONE = "pe-tiny"  # of the detectors whose backbone can be chosen
SKETCH_IMAGE_SIZE = 64  # pixels, rounded up to what the detector takes
SKETCH_LR_FACTOR = 10  # of the learning rate, because there are few steps


def resolve_preset(preset: str, workspace: Workspace, *, name: str, device: str) -> str:
    """Resolve the preset `auto`; return any other preset unchanged.

    `auto` is the preset of the existing detector `name`; otherwise `benchmark` for real faces on a GPU, else `sketch`.
    """
    if preset != "auto":
        return preset
    if (existing := read_document(workspace.detector(name).config, DetectorConfig)) and existing.preset:
        return existing.preset
    real = not load_shards_json(workspace.shards).synthetic
    return "benchmark" if real and resolve_device(device).type == "cuda" else "sketch"


def build_options(workspace: Workspace, model: str, *, preset: str, overrides: Mapping[str, Any]) -> DetectorOptions:
    """Build the options of a detector: the preset's, replaced by `overrides` (fields of DetectorOptions)."""
    has_choice = resolve_spec(model).backbone is not None
    overrides = {name: value for name, value in overrides.items() if name != "backbone" or has_choice}
    backbone = overrides.get("backbone")
    if preset == "sketch" and has_choice and not backbone:
        backbone = SKETCH_BACKBONE
    spec = resolve_spec(model, backbone)
    options = DetectorOptions(model, spec.image_size, lr=spec.lr, weight_decay=spec.weight_decay, backbone=backbone)
    if preset == "sketch":
        options = sketch_options(options)
    if load_shards_json(workspace.shards).synthetic and "pretrained" not in overrides:
        options = replace(options, from_scratch=True)  # weights pretrained on photographs don't help on synthetic faces
    return replace(options, **overrides)


def sketch_options(options: DetectorOptions) -> DetectorOptions:
    """The options for a minute of training on a laptop: small images and batches."""
    multiple = options.spec.size_multiple
    size = -(-SKETCH_IMAGE_SIZE // multiple) * multiple
    return replace(options, image_size=size, batch_size=16, epochs=1, lr=SKETCH_LR_FACTOR * options.lr)


def resolve_auto(options: DetectorOptions, *, shards: ShardSet, device: torch.device) -> DetectorOptions:
    """Resolve every `auto` in the options for this machine; the feed depends on the number of faces."""
    if options.precision == "auto":
        options = replace(options, precision="bf16" if bf16_is_fast(device) else "fp32")
    if options.compile is None:  # on a CPU convolutions take nearly all the time, and compiled ones are slower
        options = replace(options, compile=device.type == "cuda" and has_compiler())
    if options.feed == "auto":
        options = replace(options, feed=choose_feed(shards, options.image_size, device=device))
    return options
