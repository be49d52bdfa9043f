"""The lifecycle of a training run: found or created, locked, resumed, trained, finished.

It is the same for the DCGAN and the detectors; a `TrainingJob` defines what differs. `prepare` decides, without writing
anything, whether the job creates, resumes or replaces a run; `train_to_end` takes the remaining steps. The same command
therefore starts a run, resumes it after an interruption, and does nothing once it is finished.
"""

import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import polars as pl
import torch
from torch import Tensor

from pipeline.runtime import command_line, device_name, resolve_device, tune_allocator, utc_now, versions
from pipeline.training import checkpoint
from pipeline.training.loop import Batches, LoopConfig, Trainer, TrainingLoop
from pipeline.training.signals import StopSignals
from shards import distributed
from shards.atomic_io import exclusive_lock, read_parquet
from shards.documents import RunDocument, read_document, write_document
from shards.errors import FairfaceError
from shards.workspace import TrainingFolder

Config = TypeVar("Config", bound=RunDocument)


@dataclass
class PreparedRun(Generic[Config]):
    """A run as rank 0 found it, before anything is written."""

    config: Config  # the config.json to write; of a finished run the one on disk
    checkpoints: list[Path]  # to resume from, oldest first; empty for a new run
    is_finished: bool  # whether it has as many steps already


@dataclass
class Session(Generic[Config]):
    """A run that is ready for its next step."""

    config: Config  # completed with fields known only once the networks exist
    trainer: Trainer
    batches: Batches  # of first_step and of every later step
    first_step: int  # steps that are done
    rows: list[dict[str, Any]]  # rows of steps.parquet up to then
    loop: LoopConfig
    render_grid: Callable[[], Tensor] | None = None  # of a generator: images float32 [N, 3, S, S] in [0, 1]


class TrainingJob(ABC, Generic[Config]):
    """One training run: what differs between the DCGAN and the detectors."""

    document: type[Config]  # of config.json
    name_option: str  # that names another run: --run, --name
    execution_options: tuple[str, ...]  # change the speed, not the result: a run may be resumed with others

    def __init__(self, folder: TrainingFolder, *, steps: int, force: bool = False):
        """`steps` are those of the whole run; `force` replaces a run of the same name."""
        self.folder, self.steps, self.force = folder, steps, force

    @abstractmethod
    def check(self) -> None:
        """Raise FairfaceError if neither a new run nor an existing one can be trained in this folder."""

    @abstractmethod
    def create(self) -> Config:
        """Build the config.json of a new run, with every `auto` resolved."""

    @abstractmethod
    def resume(self, config: Config) -> Config:
        """Build the config.json with which an existing run continues. Raises FairfaceError if it can't be resumed."""

    @abstractmethod
    def announce(self, config: Config) -> None:
        """Print a description of the training that is about to start."""

    @abstractmethod
    def start(self, prepared: PreparedRun[Config]) -> Session[Config]:
        """Load the newest checkpoint, if any, and prepare the remaining batches."""

    def check_same_options(self, config: Config, options: dict[str, Any], *, ignored: tuple[str, ...] = ()) -> None:
        """Raise FairfaceError if options that affect the weights differ from those of an existing run."""
        requested, ignored = config.requested_options or {}, (*self.execution_options, *ignored)
        differing = [name for name, value in options.items() if name not in ignored and requested.get(name) != value]
        if differing:
            raise FairfaceError(f"{self.folder.folder} was trained with another {', '.join(differing)}: {self.remedy}")

    @property
    def remedy(self) -> str:
        """Advice on a run that can't be resumed, as the end of a message."""
        return f"choose another {self.name_option}, or replace it with --force"


def select_device(name: str) -> torch.device:
    """Select the device of a training run, and set it up for steps with constant shapes."""
    device = resolve_device(name)
    if device.index:
        torch.cuda.set_device(device)
    tune_allocator()
    torch.backends.cudnn.benchmark = True
    return device


def provenance(device: torch.device) -> dict[str, Any]:
    """The fields of a new config.json that record when, where and by what command it was created."""
    return {
        "status": "running",
        "started": utc_now(),
        "command": command_line(),
        "versions": versions(),
        "device": device_name(device),
    }


def prepare(job: TrainingJob[Config]) -> PreparedRun[Config]:
    """Find the run of a job, or describe a new one, without writing anything. Every rank gets rank 0's result."""
    return distributed.run_on_rank0(lambda: _prepare(job))


def _prepare(job: TrainingJob[Config]) -> PreparedRun[Config]:
    job.check()
    existing = None if job.force else read_document(job.folder.config, job.document)
    config = job.resume(existing) if existing else job.create()
    checkpoints = checkpoint.list_checkpoints(job.folder.checkpoints) if existing else []
    if existing and checkpoints and checkpoint.checkpoint_step(checkpoints[-1]) >= job.steps:
        return PreparedRun(existing, checkpoints, is_finished=True)
    config = replace(config, status="running", steps=job.steps)
    job.announce(config)
    return PreparedRun(config, checkpoints, is_finished=False)


@contextmanager
def locked(folder: TrainingFolder) -> Iterator[None]:
    """Lock a run's folder against other training processes. Raises FairfaceError if one is at work there."""
    with ExitStack() as stack:
        distributed.run_on_rank0(
            lambda: stack.enter_context(exclusive_lock(folder.folder, "training")), share=lambda _: None
        )
        yield


def train_to_end(job: TrainingJob[Config], prepared: PreparedRun[Config]) -> Config:
    """Take the steps that are left and return the config.json of the finished run; the folder must be `locked`.

    Raises TrainingInterrupted after SIGTERM or SIGINT, with a checkpoint saved.
    """
    # any rank may find damaged images: no run is replaced before all ranks are ready
    session = distributed.run_on_all_ranks(lambda: job.start(prepared))
    config = session.config
    distributed.run_on_rank0(lambda: _begin(job, config))
    loop = TrainingLoop(
        session.trainer,
        job.folder,
        session.loop,
        rows=session.rows,
        header=config.checkpoint_header(),
        render_grid=session.render_grid,
    )
    try:
        with StopSignals() as signals:
            loop.run(session.batches, first=session.first_step, last=job.steps, signals=signals)
    except BaseException:
        if distributed.rank() == 0:
            finalize_interrupted(job.folder, config)
        raise
    config = replace(config, status="finished", finished=utc_now())
    distributed.run_on_rank0(lambda: write_document(job.folder.config, config))
    return config


def _begin(job: TrainingJob[Config], config: Config) -> None:
    """Remove the run that is being replaced, and write config.json."""
    if job.force and job.folder.folder.exists():
        clear_run(job.folder)
    write_document(job.folder.config, config)


def restore(trainer: Trainer, folder: TrainingFolder, checkpoints: list[Path]) -> tuple[int, list[dict[str, Any]]]:
    """Load the newest checkpoint, if any; return the completed steps and the rows of steps.parquet up to them."""
    if not checkpoints:
        return 0, []
    state = checkpoint.load(checkpoints[-1], trainer.device)
    trainer.load(state["networks"])
    rows = read_parquet(folder.steps).filter(pl.col("step") <= state["step"])
    return state["step"], rows.to_dicts()


def finalize_interrupted(folder: TrainingFolder, config: RunDocument) -> None:
    """Mark a run that ended early as stopped; remove it if it has no checkpoint, so that it is not the newest run."""
    if checkpoint.list_checkpoints(folder.checkpoints):
        write_document(folder.config, replace(config, status="stopped", finished=utc_now()))
    else:
        shutil.rmtree(folder.folder, ignore_errors=True)


def clear_run(folder: TrainingFolder) -> None:
    """Empty a run's folder, config.json last, so that an interruption leaves a run that can still be replaced.

    The folder itself is kept, because it is locked.
    """
    for path in folder.folder.iterdir():
        if path != folder.config:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    folder.config.unlink(missing_ok=True)
