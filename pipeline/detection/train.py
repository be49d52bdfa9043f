"""Trains a detector of generated faces, and writes down what it says of the test faces and of our own samples."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, fields, replace
from pathlib import Path

import polars as pl
import torch

from models.detectors import DETECTORS, Labels
from models.precision import bf16_is_fast
from pipeline.data.loader import FEEDS, DecoderConfig, choose_feed
from pipeline.data.sampler import NaturalSampler, PairedSampler, RankSlice, iterate_batches
from pipeline.detection.dataset import FacePool, build_pool
from pipeline.detection.evaluate import EvaluationConfig, evaluate
from pipeline.detection.trainer import (
    EXECUTION_OPTIONS,
    DetectorOptions,
    DetectorTrainer,
    check_frozen_weights,
    frozen_hash,
)
from pipeline.gan.train import PreparedRun, finalize_interrupted, has_compiler, ready
from pipeline.runtime import command_line, device_name, resolve_device, tune_allocator, utc_now, versions
from pipeline.training import checkpoint
from pipeline.training.loop import StopSignals, TrainingLoop
from shards import distributed
from shards.atomic_io import exclusive_lock, read_json, read_parquet, write_json
from shards.errors import FairfaceError
from shards.verify import load_shards_json

SKETCH_STEPS = 300


def sketch_options(options: DetectorOptions) -> DetectorOptions:
    """The same for a minute of a laptop's time: small images and batches."""
    kind = options.kind
    return replace(options, image_size=-(-64 // kind.step) * kind.step, batch_size=16, epochs=1, lr=5e-3)


def options_of(out: Path, model: str, preset: str, given: dict) -> DetectorOptions:
    """The options of a detector: the preset's, and what was `given` beside them."""
    options = replace(DetectorOptions(model), image_size=DETECTORS[model].size)
    if preset == "sketch":
        options = sketch_options(options)
    if (
        load_shards_json(out / "shards").get("drawn") and "pretrained" not in given
    ):  # photographs teach nothing of drawn faces
        options = replace(options, from_scratch=True)
    return replace(options, **given)


def preset_for(out: Path, name: str, device: str) -> str:
    """That of the detector `name`, if it is there; else `benchmark` for real faces on a GPU, and `sketch` elsewhere."""
    if begun := read_json(out / "detectors" / name / "config.json"):
        return begun["preset"]
    real = not load_shards_json(out / "shards").get("drawn")
    return "benchmark" if resolve_device(device).type == "cuda" and real else "sketch"


def train_and_evaluate(
    out: Path,
    options: DetectorOptions,
    name: str,
    preset: str = "benchmark",
    steps: int | None = None,
    short: bool = False,
    fakes: str = "auto",
    run: str | None = None,
    judging: EvaluationConfig | None = None,
    device: str = "auto",
    decoding: DecoderConfig | None = None,
    force: bool = False,
    progress: bool = True,
) -> dict:
    """Trains, or continues, the detector `name`, and judges it; returns its config.json with `counts` and `unchanged`.

    Without `steps`, the options' epochs are trained, but where it is to be `short` no more than SKETCH_STEPS. A
    detector goes on with the samples that it began with, whatever run is the newest now.

    Raises FairfaceError for faces that can't be learnt from and for a detector of other options or faces, ClickException
    where pretrained weights can't be had, FloatingPointError for a loss that is not finite, Stopped on SIGTERM or
    SIGINT, after saving.
    """
    if name != Path(name).name or name.startswith(".") or name == "all":
        raise FairfaceError(f"--name {name}: a detector's name is the name of one folder, and not `all`")
    with distributed.process_group(), ExitStack() as stack:
        target = resolve_device(device)
        if target.index:
            torch.cuda.set_device(target)
        tune_allocator()
        torch.backends.cudnn.benchmark = True
        folder, part = out / "detectors" / name, RankSlice(distributed.rank(), distributed.world_size())
        if fakes == "auto" and not run and not force:
            run = ((read_json(folder / "config.json") or {}).get("data") or {}).get("run")
        faces = build_pool(out, "samples" if run and fakes == "auto" else fakes, run)
        decoding = replace(decoding or DecoderConfig(), through=faces.image_size)
        share = faces.share(part)
        order = distributed.run_on_all_ranks(lambda: order_of(options, share, part.world))
        order.length = min(distributed.all_gather(order.length))  # the same on every rank
        per_epoch = order.length // (options.images // part.world)
        steps = steps or min(options.epochs * per_epoch, SKETCH_STEPS if short else sys.maxsize)
        begun = distributed.run_on_rank0(
            lambda: prepare_run(folder, options, preset, steps, faces, per_epoch, target, force)
        )
        distributed.run_on_rank0(lambda: stack.enter_context(exclusive_lock(folder, "training")), lambda _: None)
        shown = progress and part.rank == 0
        if not begun.finished:
            train_steps(begun, share, order, part, target, decoding, shown, force)
        config = distributed.run_on_rank0(lambda: read_json(folder / "config.json"))
        judged = evaluate(out, folder, config, faces, judging or EvaluationConfig(), target, decoding, shown)
        done = checkpoint.checkpoint_step(checkpoint.list_checkpoints(folder / "checkpoints")[-1])
        return config | {
            "steps": done,
            "counts": faces.counts(),
            "unchanged": begun.finished and not judged,
            "grouped_by": faces.grouped_by,
        }


def order_of(options: DetectorOptions, faces: FacePool, world: int) -> NaturalSampler | PairedSampler:
    """The order in which a rank's share of the faces is learnt from. FairfaceError where that fills no batch."""
    images, paired = options.images, options.kind.paired
    if images % (world * (2 if paired else 1)):
        raise FairfaceError(f"a batch of {images} can't be shared by {world} processes: give another --train-batchsize")
    local = images // world
    if paired:
        order = PairedSampler(faces.sizes, options.seed, local, faces.mask(False), faces.mask(True))
    else:
        order = NaturalSampler(faces.sizes, options.seed, kept=faces.mask(False) | faces.mask(True))
    if order.length < local:
        raise FairfaceError(
            f"there are fewer faces to learn from than a batch of {images}: give a smaller --train-batchsize"
        )
    return order


def prepare_run(
    folder: Path,
    options: DetectorOptions,
    preset: str,
    steps: int,
    faces: FacePool,
    per_epoch: int,
    device: torch.device,
    force: bool,
) -> PreparedRun:
    """Finds the training in `folder`, or settles what a new one is; nothing is written yet."""
    old = None if force else read_json(folder / "config.json")
    if not force and "imported" in (read_json(folder / "predictions.json") or {}):
        raise FairfaceError(
            f"{folder} has predictions that were imported: choose another --name, or replace them with --force"
        )
    if options.kind.by_group and not sum(faces.groups()):
        raise FairfaceError(
            f"{options.kind.title} learns from groups, and no face has one: run `fairface label`, or pack annotated "
            "faces"
        )
    if old:
        check_resumable(old, options, faces, folder)
        feed = choose_feed(faces.shards, options.image_size, device) if options.feed == "auto" else options.feed
        config = old | {"options": old["options"] | {"feed": feed}}
    else:
        config = {
            "run": folder.name,
            "detector": folder.name,
            "status": "running",
            "started": utc_now(),
            "finished": None,
            "command": command_line(),
            "asked": asdict(options),
            "options": asdict(resolve_auto(options, faces, device)),
            "data": {
                "manifest": faces.manifest,
                "run": faces.run,
                "grouped_by": faces.grouped_by,
                "groups": faces.group_mark() if options.kind.by_group else None,
            }
            | faces.counts(),
            "groups": faces.groups(),
            "classes": None,
            "versions": versions(),
            "device": device_name(device),
            "preset": preset,
            "steps": steps,
            "per_epoch": per_epoch,
        }
    saved = checkpoint.list_checkpoints(folder / "checkpoints") if old else []
    done = bool(saved) and checkpoint.checkpoint_step(saved[-1]) >= steps
    if not done:
        config |= {"status": "running", "steps": steps}
    return PreparedRun(folder, config, saved, done)


def resolve_auto(options: DetectorOptions, faces: FacePool | None, device: torch.device) -> DetectorOptions:
    """The options with every `auto` chosen for this machine, the feed's by the faces."""
    if options.precision == "auto":
        options = replace(options, precision="bf16" if bf16_is_fast(device) else "fp32")
    if options.compile is None:  # on a CPU convolutions are all of it, and compiled ones are slower
        options = replace(options, compile=device.type == "cuda" and has_compiler())
    if options.feed == "auto":
        options = replace(options, feed=choose_feed(faces.shards, options.image_size, device))
    return options


def check_resumable(config: dict, options: DetectorOptions, faces: FacePool, folder: Path) -> None:
    """A detector's folder takes no other options and no other faces."""
    if config["data"]["manifest"] != faces.manifest:
        of = f", the samples of run {config['data']['run']} among them" if config["data"]["run"] else ""
        raise FairfaceError(
            f"{folder} learnt from other faces than these{of}: choose another --name, or replace it with --force"
        )
    if options.kind.by_group and config["data"]["groups"] != faces.group_mark():
        raise FairfaceError(
            f"{folder} learnt from faces that were labelled otherwise: choose another --name, or replace it with "
            "--force"
        )
    asked = {f.name: config["asked"].get(f.name, f.default) for f in fields(DetectorOptions)}
    if differing := [
        n for n, value in asked.items() if n not in (*EXECUTION_OPTIONS, "epochs") and value != getattr(options, n)
    ]:
        raise FairfaceError(
            f"{folder} was trained with another {', '.join(differing)}: choose another --name, or replace it with "
            "--force"
        )


def train_steps(
    begun: PreparedRun,
    faces: FacePool,
    order: NaturalSampler | PairedSampler,
    part: RankSlice,
    device: torch.device,
    decoding: DecoderConfig,
    progress: bool,
    force: bool,
) -> None:
    """Takes the steps that are left.

    ClickException where pretrained weights can't be had; nothing is replaced then.
    """
    config = begun.config
    options = DetectorOptions(**config["options"])

    def start() -> tuple[DetectorTrainer, int, list[dict], Iterator]:
        trainer = DetectorTrainer(options, config["groups"], device, config["per_epoch"], part, bool(begun.saved))
        check_frozen_weights(trainer.net, config)
        done, rows = restore(trainer, begun.saved)
        local, size = trainer.batch // part.world, options.image_size
        feed = FEEDS[options.feed](faces.shards, order, size, local, device, how=decoding, progress=progress)
        return trainer, done, rows, zip(feed(done), labels(faces, order, local, done, device), strict=False)

    trainer, done, rows, batches = distributed.run_on_all_ranks(start)
    config |= {"parameters": sum(weight.numel() for weight in trainer.net.parameters())}
    config |= {"frozen": config.get("frozen") or frozen_hash(trainer.net)}
    distributed.run_on_rank0(lambda: ready(begun.folder, config, force))
    if part.rank == 0:
        data, how = config["data"], "compiled" if options.compile else "eager"
        print(
            f"{begun.folder.name}: {options.kind.title}, {data['train_real']:,} real faces and {data['train_fake']:,} "
            f"fakes, {config['steps']:,} steps of {options.images} at {options.image_size} pixels on "
            f"{config['device']}; {options.precision}, {how}, {options.feed} feed",
            flush=True,
        )
    often = 20 if device.type == "cuda" else 1
    loop = TrainingLoop(
        trainer,
        begun.folder,
        config,
        rows,
        config["per_epoch"],
        None,
        None,
        1,
        progress,
        save_every=300,
        log_every=often,
    )
    try:
        with StopSignals() as signals:
            loop.run(batches, done, config["steps"], signals)
    except BaseException:
        finalize_interrupted(begun.folder, config, part)
        raise
    distributed.run_on_rank0(
        lambda: write_json(begun.folder / "config.json", config | {"status": "finished", "finished": utc_now()})
    )


def restore(trainer: DetectorTrainer, saved: list[Path]) -> tuple[int, list[dict]]:
    """Loads the newest checkpoint, if any; returns the steps done and the rows logged until then."""
    if not saved:
        return 0, []
    state = checkpoint.load(saved[-1], trainer.device)
    trainer.load(state["nets"])
    rows = read_parquet(saved[-1].parent.parent / "steps.parquet").filter(pl.col("step") <= state["step"])
    return state["step"], rows.to_dicts()


def labels(
    faces: FacePool, order: NaturalSampler | PairedSampler, batch: int, step: int, device: torch.device
) -> Iterator[Labels]:
    """What is known of the faces of `step` and of every later step."""
    known = [
        torch.from_numpy(faces.rows[column].cast(pl.Int64).fill_null(-1).to_numpy().copy()).to(device)
        for column in ("fake", "family", "group")
    ]
    for numbers in iterate_batches(order, batch, step):
        chosen = numbers.to(device)
        yield Labels(*(column[chosen] for column in known))
