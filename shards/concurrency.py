"""How many cores this process may use, and work done in order by a pool of them."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor


def available_cpus() -> int:
    """Cores for this process: those that SLURM leaves it, shared with the other ranks that torchrun started here."""
    return max(len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)), 1)


def map_in_order(pool: Executor, work: Callable, jobs: Iterable[tuple], ahead: int) -> Iterator[tuple]:
    """(job, work(*job)) of each job, in order, with at most `ahead` jobs in memory: a million need not be."""
    waiting: deque = deque()
    for job in jobs:
        waiting.append((job, pool.submit(work, *job)))
        if len(waiting) >= ahead:
            job, future = waiting.popleft()
            yield job, future.result()
    for job, future in waiting:
        yield job, future.result()
