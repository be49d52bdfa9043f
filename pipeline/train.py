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

from models.precision import bf16_pays
from pipeline import checkpoint, runs
from pipeline.feed import FEEDS, Decoding, Shards, choose
from pipeline.loop import Loop, Signals
from pipeline.machine import command_line, device_name, device_of, now, tune_allocator, versions
from pipeline.order import Balanced, Natural, Part, batches_from, groups_of, shares_of
from pipeline.step import Options, Trainer, flop
from shards import ranks
from shards.files import alone, fingerprint, read_json, read_parquet, write_json
from shards.verify import finished

SKETCH_STEPS, FACES_EPOCHS, FACES_STEPS = 3000, 10, 5000
WAYS = ("feed", "cuda_graphs")  # how the same steps are come by: a run may go on in another
COMPILE_PAYS = 5e14  # FLOP of a run on a CPU above which half a minute of compiling is small beside it


def preset_for(packed: dict, device: str) -> str:
    """`faces` for real images on a GPU; the small `sketch` for drawn ones, and wherever there is no GPU.

    In the minutes that a CPU has, width 64 shows noise where the small network shows faces.
    """
    return "faces" if device_of(device).type == "cuda" and not packed.get("drawn") else "sketch"


def default_steps(preset: str, per_epoch: int) -> int:
    """How long a run is when nobody says: 10 epochs as the original, but no fewer than a small set needs."""
    return SKETCH_STEPS if preset == "sketch" else max(FACES_EPOCHS * per_epoch, FACES_STEPS)


def resolve(options: Options, steps: int, shards: Shards, device: torch.device) -> tuple[Options, list[str]]:
    """Settles every `auto` for this machine; returns the options and a line on each choice."""
    said = []
    if options.precision == "auto":
        options = replace(options, precision="bf16" if bf16_pays(device) else "fp32")
        said.append("bf16" if bf16_pays(device) else "fp32 (bfloat16 is slow on this processor)")
    if options.feed == "auto":
        options = replace(options, feed=choose(shards, options.image_size, device))
        said.append(f"{options.feed} feed")
    if options.compile is None:
        pays = device.type == "cuda" or flop(options) * options.batch_size * steps > COMPILE_PAYS
        options = replace(options, compile=pays)
        said.append("compiled" if pays else "eager (a run this short on a CPU would not win back the compiling)")
    if device.type == "cpu" and flop(options) * options.batch_size > 1e11:  # a step of seconds
        said.append("a network of this size is for a GPU: --preset sketch learns faces in minutes")
    if options.compile and not compiler():
        options = replace(options, compile=False)
        said.append("eager: torch.compile needs a C++ compiler (apt install g++)")
    return options, said


def compiler() -> bool:
    """Whether there is the C++ compiler that torch.compile needs."""
    return bool(shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++"))


def name_of(options: Options, manifest: str) -> str:
    """A run's default name, a function of what decides its weights: the same command finds the same run."""
    # an option that is as it always was leaves the name as it was
    deciding = {f.name: value for f in fields(options) if (value := getattr(options, f.name)) != f.default}
    deciding = {name: value for name, value in deciding.items() if name not in WAYS}
    return f"dcgan{options.image_size}-{fingerprint([deciding, manifest])[:8]}"


def train(
    out: Path,
    options: Options,
    preset: str,
    steps: int | None = None,
    epochs: int | None = None,
    run: str | None = None,
    device: str = "auto",
    decoding: Decoding | None = None,
    sample_every: int = 500,
    save_every_epoch: int | None = None,
    keep: int = 3,
    force: bool = False,
    progress: bool = True,
    other_data: bool = False,
) -> dict:
    """Trains, or continues, the run that these options name; returns its config.json with `unchanged` set.

    A run continues on the images it began with, unless `other_data` says that those in the shards now are meant.

    Raises ValueError for input that can't be trained on, FloatingPointError for a loss that is not finite,
    Stopped on SIGTERM or SIGINT, after saving.
    """
    with ranks.group(), ExitStack() as stack:
        target = device_of(device)
        if target.index:
            torch.cuda.set_device(target)
        tune_allocator()
        torch.backends.cudnn.benchmark = True  # a step's shapes never change
        data = Data.of(out, options)
        if not steps:
            steps = epochs * data.per_epoch if epochs else default_steps(preset, data.per_epoch)
        begun = ranks.from_first(lambda: begin(out, run, options, preset, steps, data, target, force, other_data))
        if begun.finished:
            return begun.config | {"unchanged": True}
        ranks.from_first(lambda: stack.enter_context(alone(begun.folder, "training")), lambda _: None)
        # each rank may find its part of the images damaged: no run is replaced before all are ready
        trainer, done, rows, batches = ranks.together(lambda: start(begun, data, target, decoding, progress))
        config = begun.config | {"parameters": trainer.nets.sizes(), **data.about()}
        ranks.from_first(lambda: ready(begun.folder, config, force))
        shown = progress and data.part.rank == 0
        loop = Loop(trainer, begun.folder, config, rows, data.per_epoch, sample_every, save_every_epoch, keep, shown)
        try:
            with Signals() as signals:
                loop.run(batches, done, steps, signals)
        except BaseException:
            ended(begun.folder, config, data.part)
            raise
        config |= {"status": "finished", "finished": now()}
        ranks.from_first(lambda: write_json(begun.folder / "config.json", config))
        return config | {"unchanged": False}


@dataclass
class Data:
    """What a run trains on, and this rank's part of it."""

    shards: Shards
    packed: dict  # what shards.json says
    part: Part
    order: Natural | Balanced
    classes: "Classes | None"
    local: int  # images of a batch that are this rank's

    @classmethod
    def of(cls, out: Path, options: Options) -> "Data":
        """ValueError for shards that are not there, and for a choice of images that can't be trained on."""
        shards, part = Shards.open(out / "shards"), Part(ranks.rank(), ranks.world())
        images = read_parquet(shards.table).filter(status="packed")
        classes = Classes.of(images, options) if options.conditional else None
        order = order_of(options, shards, images, classes, part)
        return cls(shards, finished(out / "shards"), part, order, classes, options.batch_size // part.world)

    @property
    def per_epoch(self) -> int:
        """Steps."""
        return self.order.length // self.local

    def about(self) -> dict:
        """What config.json says of it."""
        return {"classes": self.classes and self.classes.shares, "left_out": self.order.left_out}


def start(
    begun: "Begun", data: Data, device: torch.device, decoding: Decoding | None, progress: bool
) -> tuple[Trainer, int, list[dict], Iterator]:
    """The trainer where the run left off, the steps done and the rows logged until then, and the batches to come."""
    options, classes, part = Options(**begun.config["options"]), data.classes, data.part
    if data.order.left_out and part.rank == 0:
        print(f"{data.order.left_out:,} images without {options.conditional or options.balance_by} are left out")
    trainer = Trainer(options, device, part, len(classes.shares) if classes else 0)
    done, rows = restore(trainer, begun.saved)
    feed = FEEDS[options.feed]
    batches = feed(data.shards, data.order, options.image_size, data.local, device, part, decoding, progress)
    labels = classes.batches(data.order, data.local, done, device) if classes else repeat(None)
    return trainer, done, rows, zip(batches(done), labels, strict=False)


def resumed(out: Path, run: str | None) -> tuple[str, str, Options, int]:
    """A run's name, preset, options as they were asked for, and length in steps: the newest run's without a name.

    ValueError where there is no run, or none of its checkpoints.
    """
    folder = runs.folder_of(out, run)
    config = read_json(folder / "config.json")
    if "asked" not in config:
        raise ValueError(f"{origin(folder, config)}: it can't be resumed")
    runs.newest_checkpoint(folder)
    return folder.name, config["preset"], Options(**config["asked"]), config["steps"]


@dataclass
class Begun:
    """What rank 0 found out about a run before it goes on."""

    folder: Path
    config: dict
    saved: list[Path]  # checkpoints to go on from
    finished: bool


def begin(
    out: Path,
    run: str | None,
    options: Options,
    preset: str,
    steps: int,
    data: Data,
    device: torch.device,
    force: bool,
    other_data: bool,
) -> Begun:
    """Finds the run that the options name, or settles what a new one is; nothing is written yet."""
    if run and (run != Path(run).name or run.startswith(".")):
        raise ValueError(f"--run {run}: a run's name is the name of one folder")
    folder = out / "runs" / (run or name_of(options, data.packed["manifest"]))
    if folder.exists() and not (folder / "config.json").exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} holds files that are no run's: choose another --run")
    old = None if force else read_json(folder / "config.json")
    config, said = open_run(old, folder, options, steps, data, device, other_data)
    saved = checkpoint.saved(folder / "checkpoints") if old else []
    if saved and checkpoint.step_of(saved[-1]) >= steps:
        return Begun(folder, config, saved, True)
    config |= {"status": "running", "preset": preset, "steps": steps}
    length = f"{steps:,} steps of {options.batch_size}"
    print(f"{folder.name}: {data.shards.images:,} images, {length} on {config['device']}; {said}")
    return Begun(folder, config, saved, False)


def ready(folder: Path, config: dict, force: bool) -> None:
    """Writes config.json; only now that all is ready does the run go that is replaced."""
    if force and folder.exists():
        remove_run(folder)
    write_json(folder / "config.json", config)


def ended(folder: Path, config: dict, part: Part) -> None:
    """What is left of a run that was stopped: where it can go on its state, otherwise nothing."""
    if part.rank:
        return
    if checkpoint.saved(folder / "checkpoints"):
        write_json(folder / "config.json", config | {"status": "stopped", "finished": now()})
    else:  # nothing to go on with, and no run that later commands should take for the newest
        shutil.rmtree(folder, ignore_errors=True)


@dataclass
class Classes:
    """The groups of the label that conditional networks are told."""

    shares: dict[str, float]  # of each class, among the images that are trained on; its place is its number
    numbers: Tensor  # int64 [images], the class of each in tar order; -1 where it has none

    @classmethod
    def of(cls, images: pl.DataFrame, options: Options) -> "Classes":
        """The classes of `options.conditional`; ValueError where no image has that label."""
        groups = groups_of(images, options.conditional)
        shares = shares_of("uniform", groups, options.conditional)
        counts = dict(groups.drop_nulls().value_counts().iter_rows())
        if options.balance != "natural":
            if options.balance_by != options.conditional:
                raise ValueError("--balance with --conditional needs the same label: give --balance-by the same column")
            counts = shares_of(options.balance, groups, options.balance_by)
        total = sum(counts.values())
        shares = {group: counts[group] / total for group in shares if counts.get(group)}  # none that it is never shown
        numbers = groups.replace_strict({group: i for i, group in enumerate(shares)}, default=-1, return_dtype=pl.Int64)
        return cls(shares, torch.from_numpy(numbers.fill_null(-1).to_numpy().copy()))

    def batches(self, order: Natural | Balanced, batch: int, step: int, device: torch.device) -> Iterator[Tensor]:
        """The labels of `step`'s images and of every later step's, int64 [batch] on `device`."""
        numbers = self.numbers.to(device)
        return (numbers[chosen.to(device)] for chosen in batches_from(order, batch, step))


def order_of(
    options: Options, shards: Shards, images: pl.DataFrame, classes: Classes | None, part: Part
) -> Natural | Balanced:
    """The order in which this rank's part of the packed `images` is trained on.

    ValueError where that does not fill a batch, where the ranks can't share one, or where the balance can't be had.
    """
    if options.batch_size % part.world:
        raise ValueError(
            f"a batch of {options.batch_size} can't be shared by {part.world} processes: give another --batch-size"
        )
    if options.balance == "natural":
        kept = classes.numbers >= 0 if classes else None
        order = Natural([shard["images"] for shard in shards.shards], options.seed, part, kept)
    else:
        groups = groups_of(images, options.balance_by)
        order = Balanced(groups, shares_of(options.balance, groups, options.balance_by), options.seed, part)
    if order.length < options.batch_size // part.world:
        raise ValueError(
            f"{order.length * part.world} images are fewer than a batch of {options.batch_size}: give a smaller "
            "--batch-size"
        )
    return order


def open_run(
    old: dict | None,
    folder: Path,
    options: Options,
    steps: int,
    data: Data,
    device: torch.device,
    other_data: bool,
) -> tuple[dict, str]:
    """The config.json of the run in `folder`, a new one where there is no `old` one, and a word on what was chosen."""
    about = {key: data.packed[key] for key in ("manifest", "images", "drawn", "root", "annotated")}
    if old:
        refuse_another(old, options, data, folder, other_data)
        feed = choose(data.shards, options.image_size, device) if options.feed == "auto" else options.feed
        config = old | {"options": old["options"] | {"feed": feed, "cuda_graphs": options.cuda_graphs}}
        if about["manifest"] == old["data"]["manifest"]:
            return config, f"continuing, {feed} feed"
        before = [*old.get("data_before", []), old["data"]]
        return config | {"data": about, "data_before": before}, f"continuing on other images, {feed} feed"
    settled, said = resolve(options, steps, data.shards, device)
    config = {
        "run": folder.name,
        "status": "running",
        "started": now(),
        "finished": None,
        "command": command_line(),
        "asked": asdict(options),
        "options": asdict(settled),
        "data": about,
        "versions": versions(),
        "device": device_name(device),
    }
    return config, ", ".join(said)


def remove_run(folder: Path) -> None:
    """Empties a run's folder, config.json last: what a kill leaves is still a run that can be replaced.

    The folder itself stays, for it is locked.
    """
    for path in folder.iterdir():
        if path.name != "config.json":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    (folder / "config.json").unlink(missing_ok=True)


def restore(trainer: Trainer, saved: list[Path]) -> tuple[int, list[dict]]:
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


def refuse_another(config: dict, options: Options, data: Data, folder: Path, other_data: bool) -> None:
    """A run's folder takes no other options, and other images only when that is what was asked for."""
    if "asked" not in config:
        raise ValueError(f"{origin(folder, config)}: choose another --run")
    if config["data"]["manifest"] != data.packed["manifest"] and not other_data:
        raise ValueError(
            f"{folder} was trained on other images than the shards hold now: choose another --run, replace it with "
            "--force, or go on with these with --other-data"
        )
    asked = {f.name: config["asked"].get(f.name, f.default) for f in fields(Options)}
    differing = [name for name, value in asked.items() if name not in WAYS and value != getattr(options, name)]
    if differing:
        raise ValueError(
            f"{folder} was trained with another {', '.join(differing)}: choose another --run, or replace it with "
            "--force"
        )
    known, now_there = config.get("classes"), data.classes and data.classes.shares
    if known and list(known) != list(now_there or ()):
        raise ValueError(
            f"{folder} was told of the {options.conditional}s {', '.join(known)}, and these images have "
            f"{', '.join(now_there or ['none'])}: choose another --run"
        )
