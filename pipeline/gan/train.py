"""Trains the DCGAN on packed shards; rerunning the same command resumes an interrupted run."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import repeat

import torch
from torch import Tensor

from pipeline.data.decoder import DecoderConfig
from pipeline.data.loader import FEEDS, FeedConfig, choose_feed
from pipeline.gan.data import TrainingData
from pipeline.gan.defaults import default_run_name, default_steps, resolve_auto
from pipeline.gan.networks import step_memory
from pipeline.gan.options import GAN_EXECUTION_OPTIONS, GanOptions
from pipeline.gan.trainer import GanTrainer
from pipeline.runtime import check_memory
from pipeline.training import checkpoint, lifecycle, run_directory
from pipeline.training.lifecycle import PreparedRun, Session, TrainingJob
from pipeline.training.loop import LoopConfig
from shards import distributed
from shards.documents import RunConfig
from shards.errors import FairfaceError
from shards.workspace import RunFolder, Workspace


@dataclass(frozen=True)
class TrainConfig:
    """The options of a DCGAN training run."""

    options: GanOptions
    preset: str  # a key of PRESETS: decides the length where neither steps nor epochs do
    steps: int | None = None  # of the whole run
    epochs: int | None = None  # instead of steps
    run: str | None = None  # name; None: derived from options and images
    device: str = "auto"  # auto | cpu | cuda | cuda:N
    threads: int | None = None  # of torch on a CPU; None: as many as the existing run had, or the fastest number
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    sample_every: int = 500  # steps between two grids of samples
    save_every_epoch: int | None = None  # epochs between two checkpoints; None: every half minute
    keep: int = 3  # checkpoints
    force: bool = False  # replace a run of the same name
    other_data: bool = False  # continue the run on the current shards, whose images have changed
    progress: bool = True  # show a progress bar


@dataclass(frozen=True)
class TrainResult:
    """A finished run."""

    config: RunConfig
    unchanged: bool  # whether it already had all its steps


@dataclass(frozen=True)
class ResumableRun:
    """The settings that `--resume` takes from an existing run."""

    name: str
    preset: str
    options: GanOptions  # as requested
    steps: int


def train(workspace: Workspace, config: TrainConfig) -> TrainResult:
    """Train, or resume, the run that a config names.

    Raises FairfaceError for unsuitable images or options, for an existing run with other options or images, and for a
    loss that is not finite; TrainingInterrupted on SIGTERM or SIGINT, after saving a checkpoint.
    """
    with distributed.process_group():
        device = lifecycle.select_device(config.device)
        with lifecycle.shards_locked(workspace.shards):
            data = distributed.run_on_rank0_first(lambda: TrainingData.open(workspace, config.options))
            job = distributed.run_on_rank0_first(lambda: GanJob(workspace, config, data=data, device=device))
            with lifecycle.locked(job.folder):
                prepared = lifecycle.prepare(job)
                if prepared.is_finished:
                    return TrainResult(prepared.config, unchanged=True)
                return TrainResult(lifecycle.train_to_end(job, prepared), unchanged=False)


def load_resumable(workspace: Workspace, run: str | None) -> ResumableRun:
    """Load the settings of the run `run`, or of the newest one if it is None, to resume it.

    Raises FairfaceError if there is no such run, if it was not trained here, or if it has no checkpoint.
    """
    folder = run_directory.find_run(workspace, run, with_generator=True)
    config = run_directory.read_run(folder)
    if config.requested_options is None or config.preset is None or config.steps is None:
        raise FairfaceError(f"{origin(folder, config)}: it can't be resumed")
    run_directory.newest_checkpoint(folder)
    options = lifecycle.load_options(GanOptions, config.requested_options, source=folder.config)
    return ResumableRun(folder.name, config.preset, options, config.steps)


def origin(folder: RunFolder, config: RunConfig) -> str:
    """The origin of a run that was not trained here, as a clause."""
    if config.imported is not None:
        return f"{folder.folder} holds labels imported from {config.imported}, not a training run"
    if config.source is not None:
        return f"{folder.folder} holds samples imported from {config.source}, not a training run"
    return f"{folder.folder} was sampled from {config.checkpoint}, not trained here"


class GanJob(TrainingJob[RunConfig]):
    """A DCGAN training run."""

    document = RunConfig
    name_option = "--run"
    execution_options = GAN_EXECUTION_OPTIONS

    def __init__(self, workspace: Workspace, config: TrainConfig, *, data: TrainingData, device: torch.device):
        steps = config.steps or (
            config.epochs * data.steps_per_epoch
            if config.epochs
            else default_steps(config.preset, data.steps_per_epoch)
        )
        if steps > checkpoint.MAX_STEP:
            raise FairfaceError(f"{steps:,} steps are more than {checkpoint.MAX_STEP:,}: choose fewer --epochs")
        folder = workspace.run(config.run or default_run_name(config.options, data.packed.manifest))
        super().__init__(folder, steps=steps, force=config.force, threads=config.threads)
        self.config, self.data, self.device = config, data, device
        self.progress = config.progress and data.rank_slice.rank == 0
        self.notes: list[str] = []  # on resolved options, for `announce`

    def check(self) -> None:
        """Raise FairfaceError if the folder contains files that don't belong to a run, or for lack of memory."""
        folder, options, data = self.folder.folder, self.config.options, self.data
        if not self.folder.config.exists() and any(not path.name.startswith(".") for path in folder.iterdir()):
            raise FairfaceError(f"{folder} holds files that don't belong to a run: choose another --run")
        needed = step_memory(options, images=data.batch_size, classes=len(data.shares or ()))
        remedy = "choose smaller networks with --width-g, --width-d and --latent-dim, or a smaller --batch-size"
        check_memory(needed, self.device, purpose="the networks and a batch", remedy=remedy)

    def create(self) -> RunConfig:
        """The config.json of a new run."""
        options, self.notes = resolve_auto(self.config.options, self.steps, shards=self.data.shards, device=self.device)
        return RunConfig(
            name=self.folder.name,
            preset=self.config.preset,
            requested_options=asdict(self.config.options),
            options=asdict(options),
            data=self.data.source,
            **lifecycle.provenance(self.device),
        )

    def resume(self, config: RunConfig) -> RunConfig:
        """Build the config.json with which an existing run continues, perhaps with another feed or other images."""
        self._check_resumable(config)
        options, source = self.config.options, self.data.source
        feed = options.feed
        if feed == "auto":
            feed = choose_feed(self.data.shards, options.image_size, device=self.device)
        execution = {"feed": feed, "cuda_graphs": options.cuda_graphs}
        config = replace(config, preset=self.config.preset, options=(config.options or {}) | execution)
        if config.data is None or source.manifest == config.data.manifest:
            self.notes = ["resuming", f"{feed} feed"]
            return config
        self.notes = ["resuming on other images", f"{feed} feed"]
        return replace(config, data=source, previous_data=[*config.previous_data, config.data])

    def announce(self, config: RunConfig) -> None:
        """Print the run's name, images, length and resolved options."""
        notes = f"; {', '.join(self.notes)}" if self.notes else ""
        print(
            f"{config.name}: {self.data.shards.images:,} images, {self.steps:,} steps of "
            f"{self.config.options.batch_size} on {config.device}{notes}"
        )

    def start(self, prepared: PreparedRun[RunConfig]) -> Session[RunConfig]:
        """Load the newest checkpoint, if any, and prepare the remaining batches."""
        config, data = prepared.config, self.data
        options = self.load_options(GanOptions, config.options)
        excluded = data.sampler.excluded
        if excluded and data.rank_slice.rank == 0:
            print(f"{excluded:,} images without {options.conditional or options.balance_by} are left out")
        trainer = GanTrainer(options, self.device, rank_slice=data.rank_slice, classes=len(data.shares or ()))
        first_step, rows = lifecycle.restore(trainer, self.folder, prepared.checkpoints)
        return Session(
            config=replace(config, parameters=trainer.networks.parameters(), classes=data.shares, excluded=excluded),
            trainer=trainer,
            batches=self._batches(options, first_step),
            first_step=first_step,
            rows=rows,
            loop=LoopConfig(
                steps_per_epoch=data.steps_per_epoch,
                sample_every=self.config.sample_every,
                save_every_epoch=self.config.save_every_epoch,
                keep=self.config.keep,
                progress=self.progress,
            ),
            checkpoint_bytes=trainer.networks.checkpoint_bytes(),
            render_grid=trainer.grid,
        )

    def _batches(self, options: GanOptions, first_step: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield the images and labels of `first_step` and of every later step."""
        data = self.data
        feed = FeedConfig(
            image_size=options.image_size,
            batch_size=data.batch_size,
            device=self.device,
            rank_slice=data.rank_slice,
            decoder=self.config.decoder,
            progress=self.progress,
        )
        images = FEEDS[options.feed](data.shards, data.sampler, feed)(first_step)
        labels: Iterator[Tensor | None] = repeat(None)
        if data.classes:
            labels = data.classes.batches(data.sampler, data.batch_size, first_step=first_step, device=self.device)
        return zip(images, labels, strict=False)

    def _check_resumable(self, config: RunConfig) -> None:
        """Raise FairfaceError if the run has other options or classes, or other images without --other-data."""
        folder = self.folder.folder
        if config.requested_options is None or config.data is None:
            raise FairfaceError(f"{origin(RunFolder(folder), config)}: choose another --run")
        if config.data.manifest != self.data.packed.manifest and not self.config.other_data:
            raise FairfaceError(
                f"{folder} was trained on other images than the current shards: choose another --run, replace it with "
                "--force, or continue on these with --other-data"
            )
        self.check_same_options(config, self.config.options)
        options = self.load_options(GanOptions, config.options)
        automatic = ("precision", "compile", *self.execution_options)
        resolved = {name: getattr(options, name) for name in automatic}
        if (
            options != replace(self.config.options, **resolved)
            or "auto" in resolved.values()
            or options.compile is None
        ):
            raise FairfaceError(f"{self.folder.config} is damaged (its options contradict each other): {self.remedy}")
        classes = self.data.shares or {}
        if config.classes and list(config.classes) != list(classes):
            raise FairfaceError(
                f"{folder} is conditioned on the {self.config.options.conditional}s {', '.join(config.classes)}, and "
                f"these images have {', '.join(classes) or 'none'}: choose another --run"
            )
