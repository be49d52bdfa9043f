"""Defaults of a DCGAN's training: preset, length, name, and the values of options left at `auto`."""

from dataclasses import fields, replace

import torch

from models.precision import bf16_is_fast
from pipeline.data.loader import choose_feed
from pipeline.data.shard_set import ShardSet
from pipeline.gan.options import GAN_EXECUTION_OPTIONS, GanOptions
from pipeline.gan.trainer import step_flop
from pipeline.runtime import has_compiler, resolve_device
from shards.atomic_io import fingerprint
from shards.documents import ShardsDocument

SMALL_STEPS = {"sketch": 3000, "small-faces": 6000}
FACES_EPOCHS = 10  # as the original FairFace Generator trains
FACES_STEPS = 5000  # fewest, for small data sets
COMPILE_PAYS = 5e14  # FLOP of a run on a CPU above which half a minute of compiling is small in comparison
GPU_ADVISED = 1e11  # FLOP of a step that takes seconds on a CPU


def resolve_preset(preset: str, packed: ShardsDocument, *, device: str) -> str:
    """Resolve `auto`: to `sketch` for synthetic images, to `faces` for real ones on a GPU, otherwise to `small-faces`.

    Any other preset is returned unchanged. After minutes on a CPU, width 64 still shows noise, whereas the small
    networks show faces.
    """
    if preset != "auto":
        return preset
    if packed.synthetic:
        return "sketch"
    return "faces" if resolve_device(device).type == "cuda" else "small-faces"


def default_steps(preset: str, steps_per_epoch: int) -> int:
    """The steps of a run without --steps or --epochs: as many epochs as the original, but at least FACES_STEPS."""
    return SMALL_STEPS.get(preset) or max(FACES_EPOCHS * steps_per_epoch, FACES_STEPS)


def default_run_name(options: GanOptions, manifest: str) -> str:
    """A run's default name, derived from everything that affects its weights: the same command finds the same run."""
    # options at their defaults are left out, so that adding an option does not rename existing runs
    deciding = {f.name: value for f in fields(options) if (value := getattr(options, f.name)) != f.default}
    deciding = {name: value for name, value in deciding.items() if name not in GAN_EXECUTION_OPTIONS}
    return f"dcgan{options.image_size}-{fingerprint([deciding, manifest])[:8]}"


def resolve_auto(
    options: GanOptions, steps: int, *, shards: ShardSet, device: torch.device
) -> tuple[GanOptions, list[str]]:
    """Resolve every `auto` in the options for this machine; return the options and a note on each choice."""
    notes = []
    if options.precision == "auto":
        fast = bf16_is_fast(device)
        options = replace(options, precision="bf16" if fast else "fp32")
        notes.append("bf16" if fast else "fp32 (bfloat16 is slow on this processor)")
    if options.feed == "auto":
        options = replace(options, feed=choose_feed(shards, options.image_size, device=device))
        notes.append(f"{options.feed} feed")
    if options.compile is None:
        pays = device.type == "cuda" or step_flop(options) * options.batch_size * steps > COMPILE_PAYS
        options = replace(options, compile=pays)
        notes.append("compiled" if pays else "eager (compiling does not pay off in a run this short on a CPU)")
    if device.type == "cpu" and step_flop(options) * options.batch_size > GPU_ADVISED:
        notes.append("a network of this size needs a GPU: --preset small-faces (sketch, if synthetic) takes minutes")
    if options.compile and not has_compiler():
        options = replace(options, compile=False)
        notes.append("eager: torch.compile needs a C++ compiler (apt install g++)")
    return options, notes
