"""Starts worker processes: they import nothing from the working folder, end with their parent, and never block it.

No other module creates a pool of processes.
"""

import faulthandler
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.process import BaseProcess
from pathlib import Path

from shards.errors import FairfaceError


class WorkerProcess(ForkServerProcess):
    """A process of a pool. It ignores SIGTERM, so a pool that has lost another one must end it by SIGKILL."""

    def terminate(self) -> None:
        self.kill()


class WorkerContext(ForkServerContext):
    """Forks processes from a server: a fork of this process could inherit a lock that a thread holds."""

    Process = WorkerProcess


def use_safe_path() -> None:
    """Keep the working folder off `sys.path` of every Python process that is started from now on.

    Multiprocessing and torch.compile start theirs by `python -c`, which would import a `csv.py` from that folder.
    """
    os.environ["PYTHONSAFEPATH"] = "1"


@contextmanager
def worker_pool(count: int, *, preload: str) -> Iterator[ProcessPoolExecutor]:
    """A `new_pool` for the duration of a block; the module `preload` is imported once for all processes.

    If the block fails, jobs that have not started are dropped, and running ones are finished. Raises FairfaceError if a
    process crashes or is killed.
    """
    multiprocessing.get_context("forkserver").set_forkserver_preload(["__main__", preload])
    with lost_process_errors(), new_pool(count) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def new_pool(count: int, *, report_crashes: bool = True) -> ProcessPoolExecutor:
    """A pool of `count` processes; with `report_crashes`, a process that crashes prints where.

    A job's result must be smaller than a pipe's atomic write, 4096 bytes: if a process is killed while it writes a
    longer one, the pool waits forever for the rest.
    """
    use_safe_path()
    return ProcessPoolExecutor(count, WorkerContext(), initializer=initialise_worker, initargs=(report_crashes,))


@contextmanager
def lost_process_errors() -> Iterator[None]:
    """Raise FairfaceError for a pool that lost a process in the block."""
    try:
        yield
    except BrokenProcessPool as error:
        raise FairfaceError(
            "a worker process crashed, or was killed for lack of memory: rerun the same command, where possible with "
            "fewer --workers"
        ) from error


def start_fork_server(*modules: str) -> None:
    """Start the fork server, and wait until it has imported `modules`, once for all processes that it will fork.

    The server ignores SIGTERM, which SLURM sends to every process of a job: it must outlive the processes that it
    forked, because it reports their exit codes. Processes of `start_command` do not ignore SIGTERM.
    """
    use_safe_path()
    multiprocessing.get_context("forkserver").set_forkserver_preload(["__main__", *modules])
    previous = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGTERM, previous)
    # if this process were interrupted while it waits for the first process of a pool, that process would print a
    # traceback, because the pool's semaphores would be gone; the process started here needs none
    process = WorkerProcess(target=os.getpid)
    process.start()
    process.join()


def start_command(run: Callable[[list[str]], None], arguments: list[str], *, log: Path) -> BaseProcess:
    """Start a process that calls `run(arguments)` and appends its output to a log; it exits when this process does."""
    process = WorkerProcess(target=_run_command, args=(run, arguments, log))
    process.start()
    return process


def _run_command(run: Callable[[list[str]], None], arguments: list[str], log: Path) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _end_with_parent()
    with open(log, "ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    faulthandler.enable(2)
    run(arguments)


def warm_up(pool: ProcessPoolExecutor, count: int) -> None:
    """Start `count` of the pool's processes now instead of with their first jobs."""
    for _ in range(count):
        pool.submit(os.getpid)


def initialise_worker(report_crashes: bool) -> None:
    """Leave signals to the parent, end when it dies, and keep the decoders' warnings off the terminal."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    _end_with_parent()
    if sys.stderr is not None:  # if stderr is closed, its descriptor may belong to another file
        silence_decoders()
        if report_crashes:
            faulthandler.enable(sys.stderr)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent
    threading.Thread(target=exit_after, args=(parent,), daemon=True).start()


def exit_after(process: BaseProcess) -> None:
    """End this process, whatever it is doing, when another one has ended."""
    process.join()
    os._exit(1)


def silence_decoders() -> None:
    """Discard the warnings of Pillow, and what libtiff and others write to file descriptor 2.

    An image's faults are in its verdict. Python's own `sys.stderr` still goes to the terminal.
    """
    warnings.simplefilter("ignore")
    sys.stderr = open(os.dup(2), "w", buffering=1, errors="backslashreplace")  # noqa: SIM115 - open as long as we live
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)
