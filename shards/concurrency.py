"""Counts the cores that this process may use, and runs jobs in a pool of workers with results in order."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

J = TypeVar("J", bound=tuple)
R = TypeVar("R")


def available_cpus() -> int:
    """The number of cores for this process: SLURM's allocation, divided among torchrun's ranks on this node."""
    return max(len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)), 1)


@contextmanager
def generator_threads(workers: int, **options: Any) -> Iterator[ThreadPoolExecutor]:
    """A pool of threads for a generator. Leaving the block does not wait for jobs that are still running.

    The garbage collector may close an abandoned generator at any time, even while a lock of `threading` is held that
    waiting would need.
    """
    pool = ThreadPoolExecutor(workers, **options)
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def map_in_order(pool: Executor, work: Callable[..., R], jobs: Iterable[J], *, ahead: int) -> Iterator[tuple[J, R]]:
    """Yield (job, work(*job)) of each job in order, with at most `ahead` jobs in memory: there may be a million."""
    pending: deque[tuple[J, Future[R]]] = deque()
    for job in jobs:
        pending.append((job, pool.submit(work, *job)))
        if len(pending) >= ahead:
            job, future = pending.popleft()
            yield job, future.result()
    for job, future in pending:
        yield job, future.result()
