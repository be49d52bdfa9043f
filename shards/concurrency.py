"""How many cores this process may use, and jobs that a pool of workers does in order."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

J = TypeVar("J", bound=tuple)
R = TypeVar("R")


def available_cpus() -> int:
    """Cores for this process: those that SLURM allots, divided among the ranks that torchrun started on this node."""
    return max(len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)), 1)


def map_in_order(pool: Executor, work: Callable[..., R], jobs: Iterable[J], *, ahead: int) -> Iterator[tuple[J, R]]:
    """(job, work(*job)) of each job, in order, with at most `ahead` jobs in memory: there may be a million."""
    pending: deque[tuple[J, Future[R]]] = deque()
    for job in jobs:
        pending.append((job, pool.submit(work, *job)))
        if len(pending) >= ahead:
            job, future = pending.popleft()
            yield job, future.result()
    for job, future in pending:
        yield job, future.result()
