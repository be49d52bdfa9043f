"""Rank, world size and communication of the processes that torchrun starts for one job."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar, cast

T = TypeVar("T")
TIMEOUT = timedelta(days=1)  # a million files on a network file system may keep one rank busy for hours


def rank() -> int:
    """The rank of this process; 0 if it is the only one."""
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    """The number of processes that share the job."""
    return int(os.environ.get("WORLD_SIZE", 1))


@contextmanager
def process_group() -> Iterator[None]:
    """Join the process group for the duration of a block. Does nothing for a single process or in a nested block."""
    if world_size() == 1:
        yield
        return
    import torch

    if torch.distributed.is_initialized():
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    torch.distributed.init_process_group(backend, timeout=TIMEOUT)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def run_on_rank0(work: Callable[[], T], *, share: Callable[[T], T] = lambda result: result) -> T:
    """Run `work` on rank 0 only, and return its result on every rank.

    The other ranks get `share(result)`, for results that are large or cannot be pickled. An exception is raised on
    rank 0; the other ranks exit without a message.
    """
    if world_size() == 1:
        return work()
    import torch.distributed

    result: T | None = None
    error: Exception | None = None
    message: list = [False, None]  # whether the work succeeded, and what the other ranks get
    if rank() == 0:
        try:
            result = work()
            message = [True, share(result)]
        except Exception as caught:
            error = caught
    torch.distributed.broadcast_object_list(message)
    if error:
        raise error
    succeeded, shared = message
    if not succeeded:
        raise SystemExit(1)
    return cast(T, result if rank() == 0 else shared)


def run_on_rank0_first(work: Callable[[], T]) -> T:
    """Run `work` on every rank, on the others once rank 0 has succeeded, so that only rank 0 reports a common error."""
    result = run_on_rank0(lambda: (work(),), share=lambda _: ())
    return result[0] if result else work()


def all_gather(value: T) -> list[T]:
    """Every rank's value, in the order of the ranks."""
    if world_size() == 1:
        return [value]
    import torch.distributed

    values = [value] * world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def run_on_all_ranks(work: Callable[[], T]) -> T:
    """Run `work` on every rank, and return this rank's result when all of them have finished.

    If one fails, that rank raises its exception and the others exit.
    """
    if world_size() == 1:
        return work()
    import torch.distributed

    result: T | None = None
    error: Exception | None = None
    try:
        result = work()
    except Exception as caught:
        error = caught
    failed = [False] * world_size()
    torch.distributed.all_gather_object(failed, error is not None)
    if error:
        raise error
    if any(failed):
        raise SystemExit(1)
    return cast(T, result)
