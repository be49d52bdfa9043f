"""The lifecycle of a training run: locked, found or created, resumed, trained, finished.

It is the same for the DCGAN and the detectors; a `TrainingJob` defines what differs. `prepare` decides, without writing
anything, whether the job creates, resumes or replaces a run; `train_to_end` takes the remaining steps. The same command
therefore starts a run, resumes it after an interruption, and does nothing once it is finished. Both need the run to be
`locked`. Only what the same call of `train_to_end` wrote is removed and, with --force, the run that it replaces.
"""

import re
import shutil
import time
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from copy import deepcopy
from dataclasses import asdict, dataclass, fields, replace
from itertools import chain
from pathlib import Path
from typing import Any, Generic, TypeVar

import polars as pl
import torch
from torch import Tensor

from pipeline.runtime import command_line, device_name, resolve_device, tune_allocator, utc_now, versions
from pipeline.threads import choose_threads, describe_threads, format_threads, max_threads, restored_threads
from pipeline.training import checkpoint
from pipeline.training.loop import Batches, LoopConfig, Trainer, TrainingLoop, steps_schema
from pipeline.training.signals import StopSignals
from shards import distributed
from shards.atomic_io import check_removable_tree, file_sha256, read_parquet, remove_tree
from shards.documents import RunDocument, ThreadsRecord, read_document, write_document
from shards.errors import FairfaceError
from shards.locks import exclusive_lock, shared_lock
from shards.workspace import FEATURE_FILE, ShardsFolder, TrainingFolder

Config = TypeVar("Config", bound=RunDocument)
OWN_FILES = {  # folder within a run's or a detector's -> the names of the files that are written into it
    "checkpoints": checkpoint.FILE_NAME,
    "grids": re.compile(r"step_\d{9}\.png"),
    "tensorboard": re.compile(r"events\.out\.tfevents\..*"),
    "samples": re.compile(r"samples-\d{6}\.(tar|idx)"),
    "features": FEATURE_FILE,
    "cached_predictions": re.compile(r"[0-9a-f]+-[0-9a-f]{64}\.parquet"),
}
Options = TypeVar("Options")  # a dataclass


@dataclass
class PreparedRun(Generic[Config]):
    """A run as rank 0 found it, before anything is written."""

    config: Config  # the config.json to write; of a finished run the one on disk
    checkpoints: list[Path]  # to resume from, oldest first; empty for a new run
    is_finished: bool  # whether it has as many steps already
    is_new: bool  # whether there is no run yet, or one that is being replaced


@dataclass
class Session(Generic[Config]):
    """A run that is ready for its next step."""

    config: Config  # completed with fields known only once the networks exist
    trainer: Trainer
    batches: Batches  # of first_step and of every later step
    first_step: int  # steps that are done
    rows: list[dict[str, Any]]  # rows of steps.parquet up to then
    loop: LoopConfig
    checkpoint_bytes: int  # of one checkpoint, estimated
    render_grid: Callable[[], Tensor] | None = None  # of a generator: images float32 [N, 3, S, S] in [0, 1]


class TrainingJob(ABC, Generic[Config]):
    """One training run: what differs between the DCGAN and the detectors."""

    document: type[Config]  # of config.json
    name_option: str  # that names another run: --run, --name
    execution_options: tuple[str, ...]  # change the speed, not the result: a run may be resumed with others

    def __init__(self, folder: TrainingFolder, *, steps: int, force: bool = False, threads: int | None = None):
        """`steps` are those of the whole run; `force` replaces a run of the same name.

        `threads` is the number of torch's threads; None: that of the existing run, or the fastest on a CPU.
        """
        self.folder, self.steps, self.force, self.threads = folder, steps, force, threads

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

    def complete(self, session: Session[Config]) -> None:
        """Work that all ranks do together before the run is written and the first step is taken; by default nothing."""

    def check_same_options(self, config: Config, options: Any, *, ignored: tuple[str, ...] = ()) -> None:
        """Raise FairfaceError if options that affect the weights differ from those of an existing run.

        `options` is a dataclass. An option that the run's version did not have yet counts as its default.
        """
        defaults = {field.name: field.default for field in fields(options)}
        requested, ignored = defaults | (config.requested_options or {}), (*self.execution_options, *ignored)
        differing = [
            name for name, value in asdict(options).items() if name not in ignored and requested[name] != value
        ]
        if differing:
            raise FairfaceError(f"{self.folder.folder} was trained with another {', '.join(differing)}: {self.remedy}")

    def load_options(self, kind: type[Options], values: dict[str, Any] | None) -> Options:
        """The options in the config.json of the run. Raises FairfaceError for fields or types of other options."""
        return load_options(kind, values, source=self.folder.config)

    @property
    def remedy(self) -> str:
        """Advice on a run that can't be resumed, as the end of a message."""
        return f"choose another {self.name_option}, or replace it with --force"


def load_options(kind: type[Options], values: dict[str, Any] | None, *, source: Path) -> Options:
    """The dataclass `kind` with the options in the file `source`. Raises FairfaceError for other fields or types."""
    hints = typing.get_type_hints(kind)
    for name, value in (values or {}).items():
        hint = hints.get(name, types.NoneType)
        kinds = [
            typing.get_origin(one) or one for one in (hint.__args__ if isinstance(hint, types.UnionType) else [hint])
        ]
        fits = type(value) in kinds or (type(value) is int and float in kinds)
        if name not in hints or not fits:
            raise FairfaceError(f"{source} is damaged (option {name}: {value!r:.40}): {RunDocument.REDO}")
    return kind(**(values or {}))


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


@contextmanager
def held_by_rank0(lock: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """Hold a lock on rank 0 for all ranks for the duration of a block."""
    with ExitStack() as stack:
        distributed.run_on_rank0(lambda: stack.enter_context(lock()), share=lambda _: None)
        yield


def locked(folder: TrainingFolder) -> AbstractContextManager[None]:
    """Lock a run's folder against other training processes. Raises FairfaceError if one is at work there."""
    return held_by_rank0(lambda: exclusive_lock(folder.lock, "training"))


def shards_locked(shards: ShardsFolder) -> AbstractContextManager[None]:
    """Lock packed images against being replaced. Raises FairfaceError while they are being packed."""
    return held_by_rank0(lambda: shared_lock(shards.lock, "training"))


@contextmanager
def results_locked(folder: TrainingFolder) -> Iterator[None]:
    """Lock the samples and labels of a run that is to be replaced, if there is one. Raises FairfaceError if in use."""
    with ExitStack() as stack:
        for lock in folder.result_locks() if folder.config.exists() else ():
            stack.enter_context(exclusive_lock(lock, "replacing the run"))
        yield


def prepare(job: TrainingJob[Config]) -> PreparedRun[Config]:
    """Find the run of a job, or describe a new one. Only the end of a finished run may still be written.

    The folder must be `locked`. Every rank gets rank 0's result. Raises FairfaceError if the run can't be trained, for
    example if its checkpoints were removed but the samples and labels that were made with them are still there.
    """
    return distributed.run_on_rank0(lambda: _prepare(job))


def _prepare(job: TrainingJob[Config]) -> PreparedRun[Config]:
    job.check()
    folder, existing = job.folder, None if job.force else read_document(job.folder.config, job.document)
    if existing is None:
        with results_locked(folder):  # fails now rather than after the start of training
            return _describe(job, job.create(), [], is_new=True)
    config, checkpoints = job.resume(existing), checkpoint.list_checkpoints(folder.checkpoints)
    if checkpoints:
        step = checkpoint.checkpoint_step(checkpoints[-1])
        if existing.status != "finished" and step >= (existing.steps or 0):  # stopped after the last checkpoint
            existing = finish(folder, existing)
        if step >= job.steps:
            return PreparedRun(existing, checkpoints, is_finished=True, is_new=False)
    elif orphans := [path for path in folder.results() if path.exists() and not path.name.startswith(".")]:
        raise FairfaceError(
            f"{folder.folder} no longer has a checkpoint, but has {orphans[0].name}, made with one: {job.remedy}"
        )
    return _describe(job, config, checkpoints, is_new=False)


def _describe(
    job: TrainingJob[Config], config: Config, checkpoints: list[Path], *, is_new: bool
) -> PreparedRun[Config]:
    """The run with the config.json that is written when training starts."""
    config = replace(config, status="running", steps=job.steps, finished=None, files={})
    job.announce(config)
    return PreparedRun(config, checkpoints, is_finished=False, is_new=is_new)


def train_to_end(job: TrainingJob[Config], prepared: PreparedRun[Config]) -> Config:
    """Take the steps that are left and return the config.json of the finished run; the folder must be `locked`.

    Raises TrainingInterrupted after SIGTERM or SIGINT, with a checkpoint saved.
    """
    # any rank may find damaged images: no run is replaced before all ranks are ready
    session = distributed.run_on_all_ranks(lambda: job.start(prepared))
    job.complete(session)
    with restored_threads():
        set_threads(job, session)
        return _train(job, session, is_new=prepared.is_new)


def _train(job: TrainingJob[Config], session: Session[Config], *, is_new: bool) -> Config:
    """Take the remaining steps of a session; returns the config.json of the finished run."""
    config = session.config
    distributed.run_on_rank0(lambda: _begin(job, session))
    try:
        loop = TrainingLoop(
            session.trainer,
            job.folder,
            session.loop,
            rows=session.rows,
            header=config.checkpoint_header(),
            render_grid=session.render_grid,
        )
        with StopSignals() as signals:
            loop.run(session.batches, first=session.first_step, last=job.steps, signals=signals)
    except BaseException:
        if distributed.rank() == 0:
            finalize_interrupted(job.folder, config, is_new=is_new)
        raise
    return distributed.run_on_rank0(lambda: finish(job.folder, config))


def set_threads(job: TrainingJob[Config], session: Session[Config]) -> None:
    """Set the number of torch's threads, and record it in the session's config.

    A resumed run keeps its number of threads, because the last bits of its weights depend on it.
    """
    recorded, trainer = session.config.threads, session.trainer
    if job.threads:
        is_same = recorded is not None and recorded.count == job.threads
        threads = recorded if recorded and is_same else ThreadsRecord(count=job.threads)
    elif trainer.device.type != "cpu":
        return
    elif session.first_step or recorded:
        most = distributed.run_on_rank0(max_threads)  # runs of older versions used all cores
        threads = recorded if recorded and recorded.count <= most else ThreadsRecord(count=most)
        if recorded and recorded != threads and distributed.rank() == 0:
            print(f"{session.config.name}: {format_threads(most)} instead of {recorded.count}, for lack of cores")
    else:
        threads = measure_threads(session, steps=job.steps)
        if distributed.rank() == 0 and threads.images_per_s:
            print(f"{session.config.name}: {describe_threads(threads)}", flush=True)
    torch.set_num_threads(threads.count)
    device = session.config.device
    if trainer.device.type == "cpu" and (recorded is None or recorded.count != threads.count):
        device = f"{device_name(trainer.device)}, {format_threads(threads.count)}"
    session.config = replace(session.config, threads=threads, device=device)
    session.loop = replace(session.loop, threads=threads if trainer.device.type == "cpu" else None)


def measure_threads(session: Session[Config], *, steps: int) -> ThreadsRecord:
    """Choose the number of threads by taking the second of `steps` steps several times, and undoing them.

    The first has the gradient penalty that few steps of a DCGAN have, and would be slower than most. Neither the
    trainer's state nor torch's random state nor the batches differ afterwards. Steps are eager: compiled ones are
    compiled for one number of threads.
    """
    trainer, batches, used, state = session.trainer, session.batches, [], deepcopy(session.trainer.state())

    def time_step(count: int) -> float:
        images, labels = next(batches)
        used.append((images.clone(), labels))  # the decoder reuses the memory of its batches
        torch.set_num_threads(count)
        start = time.perf_counter()
        trainer.step(session.first_step + 1, images, labels).sum().item()
        return time.perf_counter() - start

    with torch.random.fork_rng(devices=[]), torch.compiler.set_stance("force_eager"):
        threads = choose_threads(time_step, steps=steps, step_images=trainer.batch_size, on_all_ranks=True)
    trainer.load(state)
    session.batches = chain(used, batches)
    return threads


def _begin(job: TrainingJob[Config], session: Session[Config]) -> None:
    """Remove the run that is being replaced, and write config.json."""
    check_disk(job.folder, session.checkpoint_bytes, keep=session.loop.keep)
    with ExitStack() as stack:
        if job.force:
            stack.enter_context(results_locked(job.folder))
            clear_run(job.folder)
        write_document(job.folder.config, session.config)


def check_disk(folder: TrainingFolder, checkpoint_bytes: int, *, keep: int) -> None:
    """Raise FairfaceError if the disk has no room for `keep` checkpoints and the next one."""
    existing = sum(path.stat().st_size for path in checkpoint.list_checkpoints(folder.checkpoints))
    needed, free = (keep + 1) * checkpoint_bytes, shutil.disk_usage(folder.folder).free + existing
    if needed > free:
        raise FairfaceError(
            f"{keep + 1} checkpoints need {needed / 1e6:,.1f} MB, and the disk of {folder.folder} has "
            f"{free / 1e6:,.1f} MB left: free some space, or choose another --out or smaller networks"
        )


def restore(trainer: Trainer, folder: TrainingFolder, checkpoints: list[Path]) -> tuple[int, list[dict[str, Any]]]:
    """Load the newest checkpoint, if any; return the completed steps and the rows of steps.parquet up to them.

    Raises FairfaceError for a checkpoint of another network, and for a table without these rows.
    """
    if not checkpoints:
        return 0, []
    path = checkpoints[-1]
    state = checkpoint.load(path, trainer.device)
    step = state["step"]
    if step != checkpoint.checkpoint_step(path):
        raise FairfaceError(f"{path} is the checkpoint of step {step:,}: rename it, or remove it")
    try:
        trainer.load(state["networks"])
    except torch.OutOfMemoryError:
        raise
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise FairfaceError(f"{path} is not a checkpoint of this network ({_reason(error)}): remove it") from error
    return step, _read_rows(trainer, folder, step)


def _reason(error: Exception) -> str:
    """The last line of an exception's message, which names what does not fit in torch's messages."""
    return (str(error).splitlines() or [type(error).__name__])[-1].strip()[:200]


def _read_rows(trainer: Trainer, folder: TrainingFolder, step: int) -> list[dict[str, Any]]:
    """The rows of steps.parquet up to a step; none, with a warning, if the file was removed."""
    if not folder.steps.exists():
        if distributed.rank() == 0:
            print(f"{folder.steps} is missing: the losses up to step {step:,} are lost")
        return []
    if not step:
        return []
    table = read_parquet(folder.steps, steps_schema(trainer.metric_names)).filter(pl.col("step") <= step)
    rows = table.to_dicts()
    if not rows or rows[-1]["step"] != step or any(table.null_count().row(0)):
        raise FairfaceError(
            f"{folder.steps} does not end with the checkpoint's step {step:,}, or lacks values: restore it, or remove "
            "it to train on without the losses up to there"
        )
    return rows


def finish(folder: TrainingFolder, config: Config) -> Config:
    """Write config.json of a run that has all its steps."""
    return _write_end(folder, config, status="finished")


def finalize_interrupted(folder: TrainingFolder, config: RunDocument, *, is_new: bool) -> None:
    """Mark a run that ended early as stopped, as far as the disk allows.

    A new run without a checkpoint is removed, so that it is not the newest run: the files that this training wrote.
    """
    with suppress(OSError):
        if is_new and not checkpoint.list_checkpoints(folder.checkpoints):
            for path in folder.training_files():
                _remove(path)
        else:
            _write_end(folder, config, status="stopped")


def _write_end(folder: TrainingFolder, config: Config, *, status: str) -> Config:
    """Write config.json of a run whose training has ended, with the hashes of its files."""
    paths = [folder.steps] * folder.steps.exists() + checkpoint.list_checkpoints(folder.checkpoints)
    files = {str(path.relative_to(folder.folder)): file_sha256(path) for path in paths}
    config = replace(config, status=status, finished=utc_now(), files=files)
    write_document(folder.config, config)
    return config


def clear_run(folder: TrainingFolder) -> None:
    """Remove a run's files, and what was made of them. The folder, which is locked, and other files in it are kept.

    config.json stays until the next one replaces it, so that an interruption leaves a run that can still be replaced.
    Raises FairfaceError, and removes nothing, if one of its folders holds a file of the user's.
    """
    check_own_files(folder)
    for path in [*folder.results(), *folder.training_files()]:
        if path != folder.config:
            _remove(path)


def check_own_files(folder: TrainingFolder) -> None:
    """Raise FairfaceError if a folder within a run's is a link, or holds a visible file that fairface did not write."""
    for path in [*folder.results(), *folder.training_files()]:
        if path.is_dir() or path.name in OWN_FILES:
            check_removable_tree(path)
    for path in folder.folder.glob("*/*"):
        pattern = OWN_FILES.get(path.parent.name)
        if pattern and not path.name.startswith(".") and not pattern.fullmatch(path.name):
            raise FairfaceError(f"{path} is not a file of fairface, and its folder would be removed: move it away")


def _remove(path: Path) -> None:
    if path.is_dir():
        remove_tree(path)
    else:
        path.unlink(missing_ok=True)
