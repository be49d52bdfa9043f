"""Defaults of a DCGAN's training: name, length, preset, and options left at `auto`."""

from dataclasses import replace

import pytest
import torch

from pipeline.data.shard_set import ShardSet
from pipeline.gan.defaults import default_run_name, default_steps, resolve_auto, resolve_preset
from shards.documents import load_shards_json
from tests.pipeline.gan.helpers import CPU, TINY


def test_a_runs_name_follows_what_decides_its_weights():
    name = default_run_name(TINY, "m")
    assert default_run_name(replace(TINY, feed="streaming"), "m") == name
    assert default_run_name(replace(TINY, cuda_graphs=True), "m") == name  # the same weights at another speed
    assert default_run_name(replace(TINY, seed=1), "m") != name
    assert default_run_name(TINY, "other") != name


@pytest.mark.parametrize(("mode", "precision"), [("on", "bf16"), ("off", "fp32")])
def test_automatic_choices_are_resolved_and_noted(workspace, monkeypatch, mode, precision):
    monkeypatch.setenv("FAIRFACE_BF16", mode)
    shards = ShardSet.open(workspace.shards)
    options, notes = resolve_auto(replace(TINY, precision="auto", compile=None), 100, shards=shards, device=CPU)
    assert (options.precision, options.compile, options.feed) == (precision, False, "resident")
    assert len(notes) == 3
    options, _ = resolve_auto(replace(TINY, compile=None), 10**9, shards=shards, device=CPU)
    assert options.compile is True


def test_a_run_is_eager_where_there_is_no_compiler(workspace, monkeypatch):
    monkeypatch.setattr("pipeline.gan.defaults.has_compiler", lambda: False)
    shards = ShardSet.open(workspace.shards)
    options, notes = resolve_auto(replace(TINY, compile=None), 10**9, shards=shards, device=CPU)
    assert options.compile is False
    assert "needs a C++ compiler" in notes[-1]


def test_default_lengths():
    assert default_steps("sketch", 375) == 3000
    assert default_steps("small-faces", 375) == 6000
    assert default_steps("faces", 135_766 // 128) == 10 * 1060


@pytest.mark.parametrize(
    ("gpu", "synthetic", "preset"),
    [(True, True, "sketch"), (True, False, "faces"), (False, True, "sketch"), (False, False, "small-faces")],
)
def test_the_preset_follows_data_and_device(workspace, monkeypatch, gpu, synthetic, preset):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    packed = replace(load_shards_json(workspace.shards), synthetic=synthetic)
    assert resolve_preset("auto", packed, device="auto") == preset
    assert resolve_preset("faces", packed, device="auto") == "faces"
