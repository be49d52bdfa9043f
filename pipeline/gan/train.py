"""Trains the DCGAN on packed shards: a run begins, continues and ends here; the same command resumes it."""

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields, replace
from itertools import repeat
from pathlib import Path

import polars as pl
import torch
from torch import Tensor

from models.precision import bf16_is_fast
from pipeline.data.loader import FEEDS, DecoderConfig, choose_feed
from pipeline.data.sampler import (
    BalancedSampler,
    NaturalSampler,
    RankSlice,
    image_groups,
    iterate_batches,
    target_shares,
)
from pipeline.data.shard_set import ShardSet
from pipeline.gan.trainer import GanOptions, GanTrainer, step_flop
from pipeline.runtime import command_line, device_name, resolve_device, tune_allocator, utc_now, versions
from pipeline.training import checkpoint, run_directory
from pipeline.training.loop import StopSignals, TrainingLoop
from shards import distributed
from shards.atomic_io import exclusive_lock, fingerprint, read_json, read_parquet, write_json
from shards.errors import FairfaceError
from shards.verify import load_shards_json

SKETCH_STEPS, FACES_EPOCHS, FACES_STEPS = 3000, 10, 5000
EXECUTION_OPTIONS = ("feed", "cuda_graphs")  # how the same steps are come by: a run may go on in another
COMPILE_PAYS = 5e14  # FLOP of a run on a CPU above which half a minute of compiling is small beside it


def preset_for(packed: dict, device: str) -> str:
    """`faces` for real images on a GPU; the small `sketch` for drawn ones, and wherever there is no GPU.

    In the minutes that a CPU has, width 64 shows noise where the small network shows faces.
    """
    return "faces" if resolve_device(device).type == "cuda" and not packed.get("drawn") else "sketch"


def default_steps(preset: str, per_epoch: int) -> int:
    """How long a run is when nobody says: 10 epochs as the original, but no fewer than a small set needs."""
    return SKETCH_STEPS if preset == "sketch" else max(FACES_EPOCHS * per_epoch, FACES_STEPS)


def resolve_auto(
    options: GanOptions, steps: int, shards: ShardSet, device: torch.device
) -> tuple[GanOptions, list[str]]:
    """Settles every `auto` for this machine; returns the options and a line on each choice."""
    said = []
    if options.precision == "auto":
        options = replace(options, precision="bf16" if bf16_is_fast(device) else "fp32")
        said.append("bf16" if bf16_is_fast(device) else "fp32 (bfloat16 is slow on this processor)")
    if options.feed == "auto":
        options = replace(options, feed=choose_feed(shards, options.image_size, device))
        said.append(f"{options.feed} feed")
    if options.compile is None:
        pays = device.type == "cuda" or step_flop(options) * options.batch_size * steps > COMPILE_PAYS
        options = replace(options, compile=pays)
        said.append("compiled" if pays else "eager (a run this short on a CPU would not win back the compiling)")
    if device.type == "cpu" and step_flop(options) * options.batch_size > 1e11:  # a step of seconds
        said.append("a network of this size is for a GPU: --preset sketch learns faces in minutes")
    if options.compile and not has_compiler():
        options = replace(options, compile=False)
        said.append("eager: torch.compile needs a C++ compiler (apt install g++)")
    return options, said


def has_compiler() -> bool:
    """Whether there is the C++ compiler that torch.compile needs."""
    return bool(shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++"))


def default_run_name(options: GanOptions, manifest: str) -> str:
    """A run's default name, a function of what decides its weights: the same command finds the same run."""
    # an option that is as it always was leaves the name as it was
    deciding = {f.name: value for f in fields(options) if (value := getattr(options, f.name)) != f.default}
    deciding = {name: value for name, value in deciding.items() if name not in EXECUTION_OPTIONS}
    return f"dcgan{options.image_size}-{fingerprint([deciding, manifest])[:8]}"


def train(
    out: Path,
    options: GanOptions,
    preset: str,
    steps: int | None = None,
    epochs: int | None = None,
    run: str | None = None,
    device: str = "auto",
    decoding: DecoderConfig | None = None,
    sample_every: int = 500,
    save_every_epoch: int | None = None,
    keep: int = 3,
    force: bool = False,
    progress: bool = True,
    other_data: bool = False,
) -> dict:
    """Trains, or continues, the run that these options name; returns its config.json with `unchanged` set.

    A run continues on the images it began with, unless `other_data` says that those in the shards now are meant.

    Raises FairfaceError for input that can't be trained on, FloatingPointError for a loss that is not finite,
    Stopped on SIGTERM or SIGINT, after saving.
    """
    with distributed.process_group(), ExitStack() as stack:
        target = resolve_device(device)
        if target.index:
            torch.cuda.set_device(target)
        tune_allocator()
        torch.backends.cudnn.benchmark = True  # a step's shapes never change
        data = TrainingData.of(out, options)
        if not steps:
            steps = epochs * data.per_epoch if epochs else default_steps(preset, data.per_epoch)
        begun = distributed.run_on_rank0(
            lambda: prepare_run(out, run, options, preset, steps, data, target, force, other_data)
        )
        if begun.finished:
            return begun.config | {"unchanged": True}
        distributed.run_on_rank0(lambda: stack.enter_context(exclusive_lock(begun.folder, "training")), lambda _: None)
        # each rank may find its part of the images damaged: no run is replaced before all are ready
        trainer, done, rows, batches = distributed.run_on_all_ranks(
            lambda: start(begun, data, target, decoding, progress)
        )
        config = begun.config | {"parameters": trainer.nets.sizes(), **data.about()}
        distributed.run_on_rank0(lambda: ready(begun.folder, config, force))
        shown = progress and data.part.rank == 0
        loop = TrainingLoop(
            trainer, begun.folder, config, rows, data.per_epoch, sample_every, save_every_epoch, keep, shown
        )
        try:
            with StopSignals() as signals:
                loop.run(batches, done, steps, signals)
        except BaseException:
            finalize_interrupted(begun.folder, config, data.part)
            raise
        config |= {"status": "finished", "finished": utc_now()}
        distributed.run_on_rank0(lambda: write_json(begun.folder / "config.json", config))
        return config | {"unchanged": False}


@dataclass
class TrainingData:
    """What a run trains on, and this rank's part of it."""

    shards: ShardSet
    packed: dict  # what shards.json says
    part: RankSlice
    order: NaturalSampler | BalancedSampler
    classes: "ConditionClasses | None"
    local: int  # images of a batch that are this rank's

    @classmethod
    def of(cls, out: Path, options: GanOptions) -> "TrainingData":
        """FairfaceError for shards that are not there, and for a choice of images that can't be trained on."""
        shards, part = ShardSet.open(out / "shards"), RankSlice(distributed.rank(), distributed.world_size())
        images = read_parquet(shards.table).filter(status="packed")
        classes = ConditionClasses.of(images, options) if options.conditional else None
        order = order_of(options, shards, images, classes, part)
        return cls(shards, load_shards_json(out / "shards"), part, order, classes, options.batch_size // part.world)

    @property
    def per_epoch(self) -> int:
        """Steps."""
        return self.order.length // self.local

    def about(self) -> dict:
        """What config.json says of it."""
        return {"classes": self.classes and self.classes.shares, "left_out": self.order.left_out}


def start(
    begun: "PreparedRun", data: TrainingData, device: torch.device, decoding: DecoderConfig | None, progress: bool
) -> tuple[GanTrainer, int, list[dict], Iterator]:
    """The trainer where the run left off, the steps done and the rows logged until then, and the batches to come."""
    options, classes, part = GanOptions(**begun.config["options"]), data.classes, data.part
    if data.order.left_out and part.rank == 0:
        print(f"{data.order.left_out:,} images without {options.conditional or options.balance_by} are left out")
    trainer = GanTrainer(options, device, part, len(classes.shares) if classes else 0)
    done, rows = restore(trainer, begun.saved)
    feed = FEEDS[options.feed]
    batches = feed(data.shards, data.order, options.image_size, data.local, device, part, decoding, progress)
    labels = classes.batches(data.order, data.local, done, device) if classes else repeat(None)
    return trainer, done, rows, zip(batches(done), labels, strict=False)


def resumed(out: Path, run: str | None) -> tuple[str, str, GanOptions, int]:
    """A run's name, preset, options as they were asked for, and length in steps: the newest run's without a name.

    FairfaceError where there is no run, or none of its checkpoints.
    """
    folder = run_directory.folder_of(out, run)
    config = read_json(folder / "config.json")
    if "asked" not in config:
        raise FairfaceError(f"{origin(folder, config)}: it can't be resumed")
    run_directory.newest_checkpoint(folder)
    return folder.name, config["preset"], GanOptions(**config["asked"]), config["steps"]


@dataclass
class PreparedRun:
    """What rank 0 found out about a run before it goes on."""

    folder: Path
    config: dict
    saved: list[Path]  # checkpoints to go on from
    finished: bool


def prepare_run(
    out: Path,
    run: str | None,
    options: GanOptions,
    preset: str,
    steps: int,
    data: TrainingData,
    device: torch.device,
    force: bool,
    other_data: bool,
) -> PreparedRun:
    """Finds the run that the options name, or settles what a new one is; nothing is written yet."""
    if run and (run != Path(run).name or run.startswith(".")):
        raise FairfaceError(f"--run {run}: a run's name is the name of one folder")
    folder = out / "runs" / (run or default_run_name(options, data.packed["manifest"]))
    if folder.exists() and not (folder / "config.json").exists() and any(folder.iterdir()):
        raise FairfaceError(f"{folder} holds files that are no run's: choose another --run")
    old = None if force else read_json(folder / "config.json")
    config, said = open_run(old, folder, options, steps, data, device, other_data)
    saved = checkpoint.list_checkpoints(folder / "checkpoints") if old else []
    if saved and checkpoint.checkpoint_step(saved[-1]) >= steps:
        return PreparedRun(folder, config, saved, True)
    config |= {"status": "running", "preset": preset, "steps": steps}
    length = f"{steps:,} steps of {options.batch_size}"
    print(f"{folder.name}: {data.shards.images:,} images, {length} on {config['device']}; {said}")
    return PreparedRun(folder, config, saved, False)


def ready(folder: Path, config: dict, force: bool) -> None:
    """Writes config.json; only now that all is ready does the run go that is replaced."""
    if force and folder.exists():
        clear_run(folder)
    write_json(folder / "config.json", config)


def finalize_interrupted(folder: Path, config: dict, part: RankSlice) -> None:
    """What is left of a run that was stopped: where it can go on its state, otherwise nothing."""
    if part.rank:
        return
    if checkpoint.list_checkpoints(folder / "checkpoints"):
        write_json(folder / "config.json", config | {"status": "stopped", "finished": utc_now()})
    else:  # nothing to go on with, and no run that later commands should take for the newest
        shutil.rmtree(folder, ignore_errors=True)


@dataclass
class ConditionClasses:
    """The groups of the label that conditional networks are told."""

    shares: dict[str, float]  # of each class, among the images that are trained on; its place is its number
    numbers: Tensor  # int64 [images], the class of each in tar order; -1 where it has none

    @classmethod
    def of(cls, images: pl.DataFrame, options: GanOptions) -> "ConditionClasses":
        """The classes of `options.conditional`; FairfaceError where no image has that label."""
        groups = image_groups(images, options.conditional)
        shares = target_shares("uniform", groups, options.conditional)
        counts = dict(groups.drop_nulls().value_counts().iter_rows())
        if options.balance != "natural":
            if options.balance_by != options.conditional:
                raise FairfaceError(
                    "--balance with --conditional needs the same label: give --balance-by the same column"
                )
            counts = target_shares(options.balance, groups, options.balance_by)
        total = sum(counts.values())
        shares = {group: counts[group] / total for group in shares if counts.get(group)}  # none that it is never shown
        numbers = groups.replace_strict({group: i for i, group in enumerate(shares)}, default=-1, return_dtype=pl.Int64)
        return cls(shares, torch.from_numpy(numbers.fill_null(-1).to_numpy().copy()))

    def batches(
        self, order: NaturalSampler | BalancedSampler, batch: int, step: int, device: torch.device
    ) -> Iterator[Tensor]:
        """The labels of `step`'s images and of every later step's, int64 [batch] on `device`."""
        numbers = self.numbers.to(device)
        return (numbers[chosen.to(device)] for chosen in iterate_batches(order, batch, step))


def order_of(
    options: GanOptions, shards: ShardSet, images: pl.DataFrame, classes: ConditionClasses | None, part: RankSlice
) -> NaturalSampler | BalancedSampler:
    """The order in which this rank's part of the packed `images` is trained on.

    FairfaceError where that does not fill a batch, where the ranks can't share one, or where the balance can't be had.
    """
    if options.batch_size % part.world:
        raise FairfaceError(
            f"a batch of {options.batch_size} can't be shared by {part.world} processes: give another --batch-size"
        )
    if options.balance == "natural":
        kept = classes.numbers >= 0 if classes else None
        order = NaturalSampler([shard["images"] for shard in shards.shards], options.seed, part, kept)
    else:
        groups = image_groups(images, options.balance_by)
        order = BalancedSampler(groups, target_shares(options.balance, groups, options.balance_by), options.seed, part)
    if order.length < options.batch_size // part.world:
        raise FairfaceError(
            f"{order.length * part.world} images are fewer than a batch of {options.batch_size}: give a smaller "
            "--batch-size"
        )
    return order


def open_run(
    old: dict | None,
    folder: Path,
    options: GanOptions,
    steps: int,
    data: TrainingData,
    device: torch.device,
    other_data: bool,
) -> tuple[dict, str]:
    """The config.json of the run in `folder`, a new one where there is no `old` one, and a word on what was chosen."""
    about = {key: data.packed[key] for key in ("manifest", "images", "drawn", "root", "annotated")}
    if old:
        check_resumable(old, options, data, folder, other_data)
        feed = choose_feed(data.shards, options.image_size, device) if options.feed == "auto" else options.feed
        config = old | {"options": old["options"] | {"feed": feed, "cuda_graphs": options.cuda_graphs}}
        if about["manifest"] == old["data"]["manifest"]:
            return config, f"continuing, {feed} feed"
        before = [*old.get("data_before", []), old["data"]]
        return config | {"data": about, "data_before": before}, f"continuing on other images, {feed} feed"
    settled, said = resolve_auto(options, steps, data.shards, device)
    config = {
        "run": folder.name,
        "status": "running",
        "started": utc_now(),
        "finished": None,
        "command": command_line(),
        "asked": asdict(options),
        "options": asdict(settled),
        "data": about,
        "versions": versions(),
        "device": device_name(device),
    }
    return config, ", ".join(said)


def clear_run(folder: Path) -> None:
    """Empties a run's folder, config.json last: what a kill leaves is still a run that can be replaced.

    The folder itself stays, for it is locked.
    """
    for path in folder.iterdir():
        if path.name != "config.json":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    (folder / "config.json").unlink(missing_ok=True)


def restore(trainer: GanTrainer, saved: list[Path]) -> tuple[int, list[dict]]:
    """Loads the newest of a run's checkpoints, if any; returns the steps done and the rows logged until then."""
    if not saved:
        return 0, []
    state = checkpoint.load(saved[-1], trainer.device)
    trainer.nets.load(state["nets"])
    rows = read_parquet(saved[-1].parent.parent / "steps.parquet").filter(pl.col("step") <= state["step"])
    return state["step"], rows.to_dicts()


def origin(folder: Path, config: dict) -> str:
    """Where a run that was not trained here comes from."""
    if "imported" in config:
        return f"{folder} holds labels imported from {config['imported']}, not a training run"
    return f"{folder} was sampled from {config.get('checkpoint')}, not trained here"


def check_resumable(config: dict, options: GanOptions, data: TrainingData, folder: Path, other_data: bool) -> None:
    """A run's folder takes no other options, and other images only when that is what was asked for."""
    if "asked" not in config:
        raise FairfaceError(f"{origin(folder, config)}: choose another --run")
    if config["data"]["manifest"] != data.packed["manifest"] and not other_data:
        raise FairfaceError(
            f"{folder} was trained on other images than the shards hold now: choose another --run, replace it with "
            "--force, or go on with these with --other-data"
        )
    asked = {f.name: config["asked"].get(f.name, f.default) for f in fields(GanOptions)}
    differing = [
        name for name, value in asked.items() if name not in EXECUTION_OPTIONS and value != getattr(options, name)
    ]
    if differing:
        raise FairfaceError(
            f"{folder} was trained with another {', '.join(differing)}: choose another --run, or replace it with "
            "--force"
        )
    known, now_there = config.get("classes"), data.classes and data.classes.shares
    if known and list(known) != list(now_there or ()):
        raise FairfaceError(
            f"{folder} was told of the {options.conditional}s {', '.join(known)}, and these images have "
            f"{', '.join(now_there or ['none'])}: choose another --run"
        )
