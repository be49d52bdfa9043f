"""Runs what a study lacks: train, sample and label for each run, every command in a process of its own.

A command that fails, crashes or is killed ends its run and no other. The processes are forked from a server that has
imported torch once, so a study costs hardly more time than its commands.
"""

import os
import shlex
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from contextlib import AbstractContextManager, nullcontext, suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from queue import SimpleQueue
from threading import Lock

from pipeline.study.options import StudyOptions
from pipeline.study.plan import Task
from pipeline.study.progress import find_arm, labels_fingerprint, run_folder, write_run
from shards.documents import RunConfig, read_document
from shards.errors import FairfaceError
from shards.locks import awaited_lock, exclusive_lock
from shards.processes import start_command
from shards.study import DONE, STAGES, StudyDocument, StudyRun
from shards.workspace import RunFolder, Workspace

PRELOADED = ("pipeline.gan.train", "pipeline.gan.sample", "pipeline.labelling.label")
INTERRUPTED = (75, 130)  # exit codes of commands that were asked to end
SIGNAL_AGAIN = 5.0  # seconds after which a process that has not ended is asked again: it may have been starting


class RunFailed(Exception):
    """A command of a run failed, for a reason of one line."""


class StudyInterrupted(FairfaceError):
    """A command was asked to end, and so was the study; `exit_code` is the command's."""

    def __init__(self, exit_code: int):
        super().__init__("interrupted. Progress is saved; rerun the same command to resume.")
        self.exit_code = exit_code


class StudyRunner:
    """Runs tasks of a study, one on each device at a time."""

    def __init__(
        self,
        workspace: Workspace,
        document: StudyDocument,
        *,
        options: StudyOptions,
        execute: Callable[[list[str]], None],
        finished: Callable[[StudyRun], None],
    ):
        """`execute` runs a command in the process that it is called in; `finished` is called after every run."""
        self.workspace, self.document, self.options = workspace, document, options
        self.execute, self.finished = execute, finished
        self.study = workspace.study(document.name)
        self._processes: set[BaseProcess] = set()
        self._lock, self._stopping = Lock(), False

    def run(self, tasks: Sequence[Task], devices: Sequence[str | None]) -> None:
        """Run tasks on devices; None stands for the device that the options name, or the commands choose.

        Failed runs are recorded, and the others go on. Raises StudyInterrupted if a command was asked to end. If this
        call is interrupted, its commands save their progress first.
        """
        free: SimpleQueue[str | None] = SimpleQueue()
        for device in devices:
            free.put(device)
        with ThreadPoolExecutor(len(devices)) as pool:
            futures = [pool.submit(self._run_on_free_device, task, free) for task in tasks]
            try:
                for future in as_completed(futures):
                    future.result()
            except BaseException:
                self._stopping = True
                pool.shutdown(wait=False, cancel_futures=True)
                self._terminate_processes()
                started = [future for future in futures if not future.cancelled()]  # a cancelled one never ends
                while wait(started, timeout=SIGNAL_AGAIN).not_done:
                    self._terminate_processes()
                raise

    def command(self, stage: str, run: StudyRun, device: str | None = None) -> list[str]:
        """The arguments of `fairface` for a stage of a run."""
        arm = find_arm(self.document, run)
        workspace = self.document.workspace_of(run.arm, self.workspace)
        arguments = [stage, "--out", str(workspace.root)]
        if stage == "train":
            options = arm.train
            arguments += ["--run", run.trained_run, "--seed", str(run.seed)]
        elif stage == "sample":
            options = arm.sample
            arguments += ["--run", run.run, "--seed", str(run.seed), "--num-samples", str(self.document.samples)]
            if run.run != run.trained_run:
                arguments += ["--checkpoint", str(self._checkpoint(workspace.run(run.trained_run)))]
        else:
            options = self.document.label
            arguments += ["--run", run.run]
        if device and "device" not in options:
            arguments += ["--device", device]
        return arguments + self.options[stage].arguments(options)

    def _checkpoint(self, trained: RunFolder) -> Path:
        """The newest checkpoint of a run whose training has ended."""
        config = read_document(trained.config, RunConfig)
        return trained.checkpoint(config.steps or 0 if config else 0)

    def _run_on_free_device(self, task: Task, free: "SimpleQueue[str | None]") -> None:
        device = free.get()
        try:
            self._run_task(task, device)
        finally:
            free.put(device)

    def _run_task(self, task: Task, device: str | None) -> None:
        """Train once, then sample and label each run that is not labelled."""
        runs = [run for run in task.runs if run.status != "labelled"]
        with exclusive_lock(self.study.task_lock(task.runs[0].run), "running it"):
            try:
                self._run_stage("train", runs[0], device)
            except RunFailed as failure:
                for run in runs:
                    self._fail(run, failure)
                return
            for run in runs:
                try:
                    for stage in STAGES[1:]:
                        self._run_stage(stage, run, device)
                except RunFailed as failure:
                    self._fail(run, failure)
                else:
                    self.finished(run)

    def _fail(self, run: StudyRun, failure: RunFailed) -> None:
        run.status, run.reason = "failed", str(failure)
        write_run(self.study, run)
        self.finished(run)

    def _run_stage(self, stage: str, run: StudyRun, device: str | None) -> None:
        """Run the command of a stage, and record its time and its end. Raises RunFailed or StudyInterrupted."""
        arguments, log = self.command(stage, run, device), self.study.log(run.run)
        with self._labelling(run) if stage == "label" else nullcontext():
            start = time.monotonic()
            code = self._execute(arguments, log)
            seconds = round(time.monotonic() - start, 3)
        if stage != "train" or run.run == run.trained_run:
            run.seconds[stage] = round(run.seconds.get(stage, 0) + seconds, 3)
        if code == 0:
            run.status, run.reason = DONE[stage], None
            if stage == "label":
                run.labels = labels_fingerprint(run_folder(self.workspace, self.document, run))
        write_run(self.study, run)
        if code in INTERRUPTED:
            raise StudyInterrupted(code)
        if code and self._stopping:  # it was starting when it was asked to end
            raise StudyInterrupted(INTERRUPTED[0])
        if code:
            raise RunFailed(f"{stage}: {_reason(code, log)}")

    def _labelling(self, run: StudyRun) -> AbstractContextManager[None]:
        """The lock of labelling: every run labels the training images, too, or finds that they are labelled."""
        workspace = self.document.workspace_of(run.arm, self.workspace)
        return awaited_lock(workspace.labelling_lock, "labelling")

    def _execute(self, arguments: list[str], log: Path) -> int:
        """Run a command in a process of its own; return its exit code, negative for a signal that ended it."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "a") as file:
            file.write(f"$ fairface {shlex.join(arguments)}\n")
        with self._lock:
            if self._stopping:
                raise StudyInterrupted(INTERRUPTED[0])
            process = start_command(self.execute, arguments, log=log)
            self._processes.add(process)
        process.join()
        with self._lock:
            self._processes.remove(process)
        return process.exitcode or 0

    def _terminate_processes(self) -> None:
        """Ask every command to save its progress and end."""
        with self._lock:
            for process in self._processes:
                with suppress(ProcessLookupError):
                    os.kill(process.pid or 0, signal.SIGTERM)


def _reason(code: int, log: Path) -> str:
    """Why the last command in a log failed, in one line: its error message, or the signal that ended it."""
    if code < 0:
        name = signal.Signals(-code).name
        return f"the process was ended by {name}{', perhaps for lack of memory' * (name == 'SIGKILL')}; see {log}"
    _, *lines = log.read_text(errors="replace").rpartition("$ fairface ")[2].splitlines()
    lines = [line.strip() for line in lines if line.strip()] or [f"it exited with code {code} and without a message"]
    return f"{lines[-1].removeprefix('Error: ')[:500]} (see {log})"
