"""Several processes on one job, as torchrun starts them: who this one is, and what they do for each other."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

T = TypeVar("T")
PATIENCE = timedelta(days=1)  # a million files on a network's disk may keep one rank busy for long


def rank() -> int:
    """This process's number, 0 for the only one."""
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    """How many processes work on the job."""
    return int(os.environ.get("WORLD_SIZE", 1))


@contextmanager
def process_group() -> Iterator[None]:
    """Joins the others for the time of a block; does nothing for the only process, nor within such a block."""
    if world_size() == 1:
        yield
        return
    import torch

    if torch.distributed.is_initialized():
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    torch.distributed.init_process_group(backend, timeout=PATIENCE)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def run_on_rank0(work: Callable[[], T], told: Callable[[T], T] = lambda result: result) -> T:
    """What `work` returns on rank 0, and on the others as much of it as they are `told`.

    Its error is rank 0's to tell; the others end quietly.
    """
    if world_size() == 1:
        return work()
    import torch.distributed

    result, error, box = None, None, [None, None]
    if rank() == 0:
        try:
            result = work()
            box = [True, told(result)]
        except Exception as caught:
            error = caught
    torch.distributed.broadcast_object_list(box)
    if error:
        raise error
    if not box[0]:
        raise SystemExit(1)
    return result if rank() == 0 else box[1]


def all_gather(value: T) -> list[T]:
    """Every rank's value, in their order."""
    if world_size() == 1:
        return [value]
    import torch.distributed

    values = [value] * world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def run_on_all_ranks(work: Callable[[], T]) -> T:
    """What each rank's own `work` returns, once all are done; where one fails it says why, and the others end."""
    if world_size() == 1:
        return work()
    import torch.distributed

    result, error = None, None
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
    return result
