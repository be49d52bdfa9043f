"""Trains the DCGAN on packed shards: two losses, compiled where that pays, resumed by the same command."""

import math
import os
import shutil
import signal
import time
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass, fields, replace
from itertools import repeat
from pathlib import Path

import polars as pl
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from torchvision.utils import save_image
from tqdm import tqdm

from models.dcgan import Discriminator, Generator, discriminator_loss, generator_loss
from models.precision import bf16_pays
from pipeline import checkpoint, runs
from pipeline.feed import FEEDS, Shards, choose, to_unit
from pipeline.machine import command_line, device_name, device_of, now, tune_allocator, versions
from pipeline.order import FLIPS, LATENTS, WHOLE, Balanced, Natural, Part, batches_from, generator, groups_of, shares_of
from shards import ranks
from shards.files import fingerprint, read_json, read_parquet, replacing, write_json, write_parquet
from shards.verify import finished

TELL_EVERY = 20  # seconds between lines where no progress bar is shown
GRID_SEED = 2**31  # the grid's latents lie outside every training step's


@dataclass(frozen=True)
class Options:
    """What decides a run's weights, beside the images and the number of steps."""

    image_size: int = 64  # pixels
    latent_dim: int = 128
    width_g: int = 64  # channels of the generator's last hidden layer
    width_d: int = 64  # channels of the discriminator's first
    batch_size: int = 128
    lr: float = 2e-4
    beta1: float = 0.5
    beta2: float = 0.999
    ema: float = 0.995  # decay a step
    ema_start: int = 100  # the step at which the average starts, as a copy
    flip: bool = True  # mirror half of the images
    balance: str | dict[str, float] = "natural"  # uniform | target shares by group
    balance_by: str = "intersection"  # the label column
    conditional: str | None = None  # the label column that G and D are told
    seed: int = 0
    precision: str = "auto"  # bf16 | fp32
    compile: bool | None = None  # None: where it pays
    feed: str = "auto"  # resident | streaming


# `faces` is the DCGAN as published, for real data and a GPU; `sketch` is what a laptop learns in minutes.
PRESETS = {"faces": Options(), "sketch": Options(width_g=24, width_d=16, batch_size=16)}
SKETCH_STEPS, FACES_EPOCHS, FACES_STEPS = 3000, 10, 5000
COMPILE_PAYS = 5e14  # FLOP of a run on a CPU above which half a minute of compiling is small beside it


class Stopped(Exception):
    """A signal asked for an end; `code` is the exit code that says so."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


@dataclass
class Networks:
    """Generator, discriminator, the generator's moving average and the two optimizers."""

    g: Generator
    d: Discriminator
    ema: Generator
    adam_g: torch.optim.Adam
    adam_d: torch.optim.Adam

    @classmethod
    def new(cls, options: Options, device: torch.device, classes: int = 0) -> "Networks":
        """Fresh networks, a function of the seed alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)
            g = Generator(options.latent_dim, options.width_g, options.image_size, classes)
            d = Discriminator(options.width_d, options.image_size, classes)
        g, d = (net.to(device, memory_format=torch.channels_last) for net in (g, d))
        adams = [
            torch.optim.Adam(net.parameters(), options.lr, (options.beta1, options.beta2), fused=True) for net in (g, d)
        ]
        return cls(g, d, deepcopy(g).requires_grad_(False), *adams)

    def state(self) -> dict:
        """All that continuing needs."""
        return {name: getattr(self, name).state_dict() for name in ("g", "d", "ema", "adam_g", "adam_d")}

    def sizes(self) -> dict[str, int]:
        """Parameters of the generator and of the discriminator."""
        nets = {"generator": self.g, "discriminator": self.d}
        return {name: sum(p.numel() for p in net.parameters()) for name, net in nets.items()}

    def load(self, state: dict) -> None:
        """Takes a checkpoint's state."""
        for name in ("g", "d", "ema", "adam_g", "adam_d"):
            getattr(self, name).load_state_dict(state[name])


class Trainer:
    """One training step after another on `device`; a step's randomness is a function of (seed, step)."""

    def __init__(self, options: Options, device: torch.device, part: Part = WHOLE, classes: int = 0):
        self.options, self.device, self.part = options, device, part
        self.nets = Networks.new(options, device, classes)
        wrap = (lambda f: torch.compile(f, fullgraph=True)) if options.compile else (lambda f: f)
        self.generate, self.d_loss, self.g_loss = wrap(self._generate), wrap(self._d_loss), wrap(self._g_loss)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.precision == "bf16")

    def _generate(self, z: Tensor, labels: Tensor | None) -> Tensor:
        with self.autocast():
            return self.nets.g(z, labels)

    def _d_loss(self, real: Tensor, fake: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        with self.autocast():
            real, fake = self.nets.d(real, labels), self.nets.d(fake, labels)
        means = torch.stack([real.float().sigmoid().mean(), fake.float().sigmoid().mean()]).detach()
        return discriminator_loss(real, fake), means

    def _g_loss(self, fake: Tensor, labels: Tensor | None) -> Tensor:
        with self.autocast():
            return generator_loss(self.nets.d(fake, labels))

    def step(self, step: int, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """One update of D, then of G, on uint8 [B, S, S, 3]; returns [loss_d, loss_g, d_real, d_fake] on the device.

        B is this rank's share of the batch. Conditional networks take the labels int64 [B] of the images, and the
        fakes are asked for the same. G's step takes the fakes that D's step judged, as the original does: G
        runs forward once.
        """
        nets, batch = self.nets, len(images) * self.part.world
        mine = slice(len(images) * self.part.rank, len(images) * (self.part.rank + 1))
        mirrored = self.mirrored(step, batch)[mine] if self.options.flip else None
        fake = self.generate(self.latents(step, batch)[mine], labels)
        loss_d, means = self.d_loss(to_unit(images, mirrored), fake.detach(), labels)
        nets.adam_d.zero_grad(set_to_none=True)
        loss_d.backward()
        self.mean_over_ranks([p.grad for p in nets.d.parameters()])
        nets.adam_d.step()
        nets.d.requires_grad_(False)  # D's weights take no gradient from G's loss
        loss_g = self.g_loss(fake, labels)
        nets.adam_g.zero_grad(set_to_none=True)
        loss_g.backward()
        self.mean_over_ranks([p.grad for p in nets.g.parameters()])
        nets.adam_g.step()
        nets.d.requires_grad_(True)
        told = torch.cat([torch.stack([loss_d.detach(), loss_g.detach()]), means])
        # BatchNorm's statistics too: every rank has the same state after every step, and any one can save it
        self.mean_over_ranks([told, *(b for net in (nets.g, nets.d) for b in net.buffers() if b.is_floating_point())])
        self.average(step)
        return told

    def mirrored(self, step: int, count: int) -> Tensor:
        """Which half of a step's images is flipped, bool [count]."""
        chance = generator(self.device, self.options.seed, FLIPS, step)
        return torch.rand(count, generator=chance, device=self.device) < 0.5

    @torch.no_grad()
    def mean_over_ranks(self, tensors: list[Tensor]) -> None:
        """Replaces each tensor by its mean over all ranks, in one exchange."""
        if self.part.world == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        torch.distributed.all_reduce(flat)
        flat /= self.part.world
        for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))

    def latents(self, step: int, count: int) -> Tensor:
        """z ~ N(0, 1), [count, latent_dim], of one step."""
        chance = generator(self.device, self.options.seed, LATENTS, step)
        return torch.randn(count, self.options.latent_dim, generator=chance, device=self.device)

    @torch.no_grad()
    def average(self, step: int) -> None:
        """Moves the average towards G: weights and BatchNorm's statistics alike; before `ema_start` it is a copy."""
        weight = 1 - self.options.ema if step >= self.options.ema_start else 1.0
        ours, theirs = (
            [t for t in net.state_dict().values() if t.is_floating_point()] for net in (self.nets.ema, self.nets.g)
        )
        torch._foreach_lerp_(ours, theirs, weight)

    @torch.no_grad()
    def grid(self) -> Tensor:
        """64 images of the average from latents that stay the same all the run: float32 [64, 3, S, S] in [0, 1].

        Of a conditional one, each row of 8 is of one class.
        """
        net = self.nets.ema.eval()
        labels = torch.arange(64, device=self.device) // 8 % net.classes if net.classes else None
        return (net(self.latents(GRID_SEED, 64), labels).float() + 1) / 2


def preset_for(packed: dict, device: str) -> str:
    """`faces` for real images on a GPU; the small `sketch` for drawn ones, and wherever there is no GPU.

    In the minutes that a CPU has, width 64 shows noise where the small network shows faces.
    """
    return "faces" if device_of(device).type == "cuda" and not packed.get("drawn") else "sketch"


def default_steps(preset: str, per_epoch: int) -> int:
    """How long a run is when nobody says: 10 epochs as the original, but no fewer than a small set needs."""
    return SKETCH_STEPS if preset == "sketch" else max(FACES_EPOCHS * per_epoch, FACES_STEPS)


def flop(options: Options) -> float:
    """Floating-point operations an image of one training step, as torch counts them."""
    trainer = Trainer(replace(options, compile=False, precision="fp32", conditional=None), torch.device("cpu"))
    with FlopCounterMode(display=False) as counter:
        trainer.step(0, torch.zeros(2, options.image_size, options.image_size, 3, dtype=torch.uint8))
    return counter.get_total_flops() / 2


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
    if options.compile and not (shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")):
        options = replace(options, compile=False)
        said.append("eager: torch.compile needs a C++ compiler (apt install g++)")
    return options, said


def name_of(options: Options, manifest: str) -> str:
    """A run's default name, a function of what decides its weights: the same command finds the same run."""
    deciding = asdict(options) | {"feed": None}  # both feeds hand over the same batches
    return f"dcgan{options.image_size}-{fingerprint([deciding, manifest])[:8]}"


def train(
    out: Path,
    options: Options,
    preset: str,
    steps: int | None = None,
    epochs: int | None = None,
    run: str | None = None,
    device: str = "auto",
    workers: int | None = None,
    sample_every: int = 500,
    save_every_epoch: int | None = None,
    keep: int = 3,
    force: bool = False,
    progress: bool = True,
) -> dict:
    """Trains, or continues, the run that these options name; returns its config.json with `unchanged` set.

    Raises ValueError for input that can't be trained on, FloatingPointError for a loss that is not finite,
    Stopped on SIGTERM or SIGINT, after saving.
    """
    with ranks.group():
        target = device_of(device)
        if target.index:
            torch.cuda.set_device(target)
        tune_allocator()
        data = Data.of(out, options)
        if not steps:
            steps = epochs * data.per_epoch if epochs else default_steps(preset, data.per_epoch)
        begun = ranks.from_first(lambda: begin(out, run, options, preset, steps, data, target, force))
        if begun.finished:
            return begun.config | {"unchanged": True}
        # each rank may find its part of the images damaged: no run is replaced before all are ready
        trainer, done, rows, batches = ranks.together(lambda: start(begun, data, target, workers, progress))
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
    begun: "Begun", data: Data, device: torch.device, workers: int | None, progress: bool
) -> tuple[Trainer, int, list[dict], Iterator]:
    """The trainer where the run left off, the steps done and the rows logged until then, and the batches to come."""
    options, classes, part = Options(**begun.config["options"]), data.classes, data.part
    if data.order.left_out and part.rank == 0:
        print(f"{data.order.left_out:,} images without {options.conditional or options.balance_by} are left out")
    trainer = Trainer(options, device, part, len(classes.shares) if classes else 0)
    done, rows = restore(trainer, begun.saved)
    feed = FEEDS[options.feed]
    batches = feed(data.shards, data.order, options.image_size, data.local, device, part, workers, progress)
    labels = classes.batches(data.order, data.local, done, device) if classes else repeat(None)
    return trainer, done, rows, zip(batches(done), labels, strict=False)


def resumed(out: Path, run: str | None) -> tuple[str, str, Options, int]:
    """A run's name, preset, options as they were asked for, and length in steps: the newest run's without a name.

    ValueError where there is no run, or none of its checkpoints.
    """
    folder = runs.folder_of(out, run)
    runs.newest_checkpoint(folder)
    config = read_json(folder / "config.json")
    if "asked" not in config:
        raise ValueError(f"{folder} was sampled from {config.get('checkpoint')}, not trained here: it can't be resumed")
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
) -> Begun:
    """Finds the run that the options name, or settles what a new one is; nothing is written yet."""
    if run and (run != Path(run).name or run.startswith(".")):
        raise ValueError(f"--run {run}: a run's name is the name of one folder")
    folder = out / "runs" / (run or name_of(options, data.packed["manifest"]))
    if folder.exists() and not (folder / "config.json").exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} holds files that are no run's: choose another --run")
    old = None if force else read_json(folder / "config.json")
    config, said = open_run(old, folder, options, steps, data.shards, data.packed, device)
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
    old: dict | None, folder: Path, options: Options, steps: int, shards: Shards, packed: dict, device: torch.device
) -> tuple[dict, str]:
    """The config.json of the run in `folder`, a new one where there is no `old` one, and a word on what was chosen."""
    if old:
        refuse_another(old, options, packed, folder)
        feed = choose(shards, options.image_size, device) if options.feed == "auto" else options.feed
        return old | {"options": old["options"] | {"feed": feed}}, f"continuing, {feed} feed"
    settled, said = resolve(options, steps, shards, device)
    config = {
        "run": folder.name,
        "status": "running",
        "started": now(),
        "finished": None,
        "command": command_line(),
        "asked": asdict(options),
        "options": asdict(settled),
        "data": {key: packed[key] for key in ("manifest", "images", "drawn", "root", "annotated")},
        "versions": versions(),
        "device": device_name(device),
    }
    return config, ", ".join(said)


def remove_run(folder: Path) -> None:
    """Deletes a run, its config.json last: what a kill leaves is still a run that can be replaced."""
    for path in folder.iterdir():
        if path.name != "config.json":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(folder)


class Loop:
    """The loop around the steps: what is counted, shown, drawn and saved while a run goes on."""

    def __init__(
        self,
        trainer: Trainer,
        folder: Path,
        config: dict,
        rows: list[dict],
        per_epoch: int,
        sample_every: int,
        save_every_epoch: int | None,
        keep: int,
        progress: bool,
    ):
        from torch.utils.tensorboard import SummaryWriter

        self.trainer, self.folder, self.config, self.rows, self.per_epoch = trainer, folder, config, rows, per_epoch
        self.sample_every, self.save_every_epoch, self.keep, self.progress = (
            sample_every,
            save_every_epoch,
            keep,
            progress,
        )
        self.writes = trainer.part.rank == 0  # the others compute alike, and keep nothing
        self.log_every, self.told = 20, time.monotonic()
        self.batch = trainer.options.batch_size
        self.seconds = rows[-1]["seconds"] if rows else 0.0
        if self.writes:
            self.board = SummaryWriter(folder / "tensorboard", purge_step=rows[-1]["step"] + 1 if rows else None)

    def run(self, batches: Iterator[tuple[Tensor, Tensor | None]], first: int, last: int, signals: "Signals") -> None:
        """Steps `first` to `last`, counted from 0; saves at the end, at every signal, and in between."""
        losses, waited, saved_at, began = [], 0.0, time.monotonic(), time.monotonic()
        bar = tqdm(total=last, initial=first, unit="step", desc="training", disable=not self.progress)
        with bar:
            for step in range(first, last):
                asked = time.monotonic()
                images, labels = next(batches)
                waited += time.monotonic() - asked
                losses.append(self.trainer.step(step, images, labels))
                done = step + 1
                stopping = self.agreed(signals.seen, done)
                saving = done == last or stopping or self.due(done, saved_at)
                if saving or done % self.log_every == 0:  # a loss is looked at before it is saved
                    elapsed = time.monotonic() - began
                    self.log(done, losses, waited, elapsed, bar)
                    losses, waited, began = [], 0.0, time.monotonic()
                bar.update()
                if self.writes and (done % self.sample_every == 0 or done == last):
                    self.draw(done)
                if saving:
                    self.save(done)
                    saved_at = time.monotonic()
                if stopping and done < last:
                    raise Stopped(
                        f"stopped at step {done:,} of {last:,}, saved: the same command continues",
                        signals.code or EXIT_CODES[signal.SIGTERM],  # another rank's signal, perhaps
                    )
        if self.writes:
            self.board.close()

    def agreed(self, seen: bool, step: int) -> bool:
        """Whether a signal ends the run after this step; several ranks ask each other.

        After every step on CPUs, where a step is long and nothing waits; on GPUs that would stop them each time.
        """
        if self.trainer.part.world == 1:
            return seen
        if self.trainer.device.type == "cuda" and step % self.log_every:
            return False
        flag = torch.tensor(float(seen))
        torch.distributed.all_reduce(flag)
        return flag.item() > 0

    def log(self, step: int, losses: list[Tensor], waited: float, elapsed: float, bar: tqdm) -> None:
        """Reads the losses back from the device, once for many steps; a loss that is not finite ends the run."""
        values = torch.stack(losses).mean(0).tolist()  # also waits for the device, so `elapsed` is honest after it
        if not all(map(math.isfinite, values)):
            raise FloatingPointError(
                f"a loss became {values} near step {step:,}: no checkpoint was saved after it; try a lower --lr, "
                "or --precision fp32"
            )
        if not self.writes:
            return
        self.seconds += elapsed
        names = ("loss_d", "loss_g", "d_real", "d_fake")
        rate, wait = len(losses) * self.batch / elapsed, waited / elapsed
        self.rows.append(
            {
                "step": step,
                "epoch": (step - 1) // self.per_epoch + 1,
                "images": step * self.batch,
                "seconds": self.seconds,
                **dict(zip(names, values, strict=True)),
                "images_per_s": rate,
                "data_wait": wait,
            }
        )
        for name, value in [*zip(names, values, strict=True), ("images_per_s", rate), ("data_wait", wait)]:
            self.board.add_scalar(name, value, step)
        line = (
            f"epoch {self.rows[-1]['epoch']}, {rate:,.0f} img/s, waiting for data {wait:.1%}, "
            f"D {values[0]:.2f} G {values[1]:.2f}"
        )
        bar.set_postfix_str(line, refresh=False)
        if not self.progress and time.monotonic() - self.told > TELL_EVERY:  # a log file: a line now and then
            left = (self.config["steps"] - step) * self.batch / rate
            print(f"step {step:,} of {self.config['steps']:,}, {line}, {left:,.0f} s left", flush=True)
            self.told = time.monotonic()

    def draw(self, step: int) -> None:
        with replacing(self.folder / "grids" / f"step_{step:09d}.png") as file:
            save_image(self.trainer.grid(), file, format="png", nrow=8, padding=0)

    def due(self, step: int, saved_at: float) -> bool:
        """Whether to save now: every N epochs where asked for, else every half minute."""
        if self.save_every_epoch:
            return step % (self.save_every_epoch * self.per_epoch) == 0
        return step % self.log_every == 0 and time.monotonic() - saved_at > 30

    def save(self, step: int) -> None:
        """Writes steps.parquet before the checkpoint: a resume drops later rows, and can't make earlier ones again."""
        if not self.writes:
            return
        write_parquet(self.folder / "steps.parquet", steps_frame(self.rows))
        state = {
            "options": self.config["options"],
            "data": self.config["data"],
            "run": self.config["run"],
            "classes": self.config["classes"],
        }
        checkpoint.save(self.folder / "checkpoints", step, state | {"nets": self.trainer.nets.state()}, self.keep)


def steps_frame(rows: list[dict]) -> pl.DataFrame:
    """The rows of steps.parquet in their types."""
    whole = {"step", "epoch", "images"}
    names = ["step", "epoch", "images", "seconds", "loss_d", "loss_g", "d_real", "d_fake", "images_per_s", "data_wait"]
    kinds = {name: pl.Int64 if name in whole else pl.Float64 if name == "seconds" else pl.Float32 for name in names}
    return pl.DataFrame(rows, schema=kinds, orient="row")


def restore(trainer: Trainer, saved: list[Path]) -> tuple[int, list[dict]]:
    """Loads the newest of a run's checkpoints, if any; returns the steps done and the rows logged until then."""
    if not saved:
        return 0, []
    state = checkpoint.load(saved[-1], trainer.device)
    trainer.nets.load(state["nets"])
    rows = read_parquet(saved[-1].parent.parent / "steps.parquet").filter(pl.col("step") <= state["step"])
    return state["step"], rows.to_dicts()


def refuse_another(config: dict, options: Options, packed: dict, folder: Path) -> None:
    """A run's folder takes no other options and no other images."""
    if "asked" not in config:
        raise ValueError(
            f"{folder} was sampled from {config.get('checkpoint')}, not trained here: choose another --run"
        )
    if config["data"]["manifest"] != packed["manifest"]:
        raise ValueError(
            f"{folder} was trained on other images than the shards hold now: choose another --run, or replace it with "
            "--force"
        )
    asked = {f.name: config["asked"].get(f.name, f.default) for f in fields(Options)}
    differing = [name for name, value in asked.items() if name != "feed" and value != getattr(options, name)]
    if differing:
        raise ValueError(
            f"{folder} was trained with another {', '.join(differing)}: choose another --run, or replace it with "
            "--force"
        )


EXIT_CODES = {signal.SIGTERM: 75, signal.SIGINT: 130}  # 75: EX_TEMPFAIL of sysexits.h, "try again"


class Signals:
    """Within it, SIGTERM (a SLURM time limit) and SIGINT only ask for an end; a second Ctrl-C ends at once.

    A second SIGTERM does not: SLURM and torchrun may each send one.
    """

    def __enter__(self) -> "Signals":
        self.seen, self.code = False, 0
        self.before = {number: signal.signal(number, self.note) for number in EXIT_CODES}
        return self

    def note(self, number: int, _frame) -> None:
        self.seen, self.code = True, EXIT_CODES[number]
        if number == signal.SIGINT:
            signal.signal(number, self.before[number])

    def __exit__(self, *_) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
