"""The number of torch's threads on a CPU, which is measured at the start of a stage.

Torch's threads wait for each other hundreds of times in a step, so one thread that another process interrupts delays
all of them. A thread on every core is fastest on an idle machine; on a busy one, a single thread often is.
"""

import os
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from copy import deepcopy
from typing import Any, Protocol

import torch

from shards import distributed
from shards.concurrency import available_cpus
from shards.documents import ThreadsRecord

ROUNDS = 3  # of the measurement; every number of threads has one turn in each
TURN_SECONDS = 0.25  # length of a turn
MAX_COST = 0.05  # share of a stage's time that the measurement may take
MIN_SECONDS = 1.0  # a shorter measurement is too noisy: stages of less than MIN_SECONDS / MAX_COST are not measured
NOISE = 0.1  # rates within this share of the highest count as equal to it: of these, the fewest threads are chosen
TOO_SLOW = 2  # a step that takes more than this many times the shortest rules out its and all smaller numbers
SLOWDOWN, SLOW_SECONDS = 3, 20  # warn if the rate is this many times lower than measured for this many seconds

requested_by_option: ContextVar[int | None] = ContextVar("requested_by_option", default=None)


class Stateful(Protocol):
    """A module or an optimizer."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


def requested_threads() -> int | None:
    """Return the number of threads set by `using_threads` or by the user's OMP_NUM_THREADS; None if neither is set.

    When torchrun starts several processes, it sets OMP_NUM_THREADS to 1 itself, which does not count as a request.
    """
    if count := requested_by_option.get():
        return count
    text = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if not text.isdigit() or int(text) < 1:
        return None
    several = "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("LOCAL_WORLD_SIZE", 1)) > 1
    return None if several and text == "1" else int(text)


def max_threads() -> int:
    """Return the largest number of threads of this process: the requested one, or its share of the cores."""
    return requested_threads() or available_cpus()


@contextmanager
def restored_threads() -> Iterator[None]:
    """Restore the number of torch's threads after a block."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def using_threads(count: int | None) -> Iterator[None]:
    """Use `count` threads in torch within a block, where nothing is then measured; None has no effect."""
    with restored_threads():
        if count:
            torch.set_num_threads(count)
        token = requested_by_option.set(count or requested_by_option.get())
        try:
            yield
        finally:
            requested_by_option.reset(token)


@contextmanager
def restored_state(*objects: Stateful) -> Iterator[None]:
    """Restore the state of modules and optimizers, and torch's random state on the CPU, after a block."""
    states = [deepcopy(one.state_dict()) for one in objects]
    with torch.random.fork_rng(devices=[]):
        yield
    for one, state in zip(objects, states, strict=True):
        one.load_state_dict(state)


def choose_threads(
    time_step: Callable[[int], float], *, steps: int, step_images: int, on_all_ranks: bool = False
) -> ThreadsRecord:
    """Choose the fastest of 1, half and all threads.

    `time_step` takes a number of threads, does the work of one of the `steps` steps of `step_images` images with it,
    and returns its seconds. Nothing is measured if a number is requested, with a single core, or if the steps are fewer
    than 1 / MAX_COST or take less than MIN_SECONDS / MAX_COST; nor with a number of threads with which two steps might
    take more than MAX_COST of the time. Called `on_all_ranks`, rank 0 decides, and all ranks take the same number of
    steps.
    """
    most, is_requested = max_threads(), requested_threads() is not None
    if on_all_ranks:
        most, is_requested = distributed.run_on_rank0(lambda: (most, is_requested))
    if is_requested or most == 1 or steps * MAX_COST < 1:
        return ThreadsRecord(count=most)

    def measure(count: int, repeats: int = 1) -> float:
        seconds = statistics.mean(time_step(count) for _ in range(repeats))
        return distributed.run_on_rank0(lambda: seconds) if on_all_ranks else seconds

    def measure_first(count: int) -> float:
        return min(measure(count), measure(count))  # the first step also allocates memory

    first = {most: measure_first(most)}  # seconds of a step by number of threads
    budget = MAX_COST * steps * first[most]
    if budget < MIN_SECONDS:
        return ThreadsRecord(count=most)
    fewest = most
    for count in sorted({most // 2, 1}, reverse=True):
        cost = 2 * first[fewest] * fewest / count  # at most, of two steps
        if first[fewest] <= TOO_SLOW * min(first.values()) and cost <= budget:
            fewest, first[count] = count, measure_first(count)
    if len(first) == 1:
        return ThreadsRecord(count=most)
    kept = [count for count in first if first[count] <= TOO_SLOW * min(first.values())]
    turn = min(TURN_SECONDS, budget / ROUNDS / len(kept))
    rounds = [{count: measure(count, max(int(turn / first[count]), 1)) for count in kept} for _ in range(ROUNDS)]
    seconds = first | {count: statistics.median(one[count] for one in rounds) for count in kept}
    rates = {count: step_images / seconds[count] for count in sorted(seconds)}
    return ThreadsRecord(
        count=fastest_count(rates), images_per_s={str(count): round(rate, 1) for count, rate in rates.items()}
    )


def fastest_count(rates: Mapping[int, float]) -> int:
    """Return the smallest number of threads whose rate is within NOISE of the highest.

    The fewer threads there are, the less they are delayed by other processes.
    """
    return min(count for count, rate in rates.items() if rate >= (1 - NOISE) * max(rates.values()))


def format_threads(count: int) -> str:
    """Return a number of threads as text: `1 thread`, `2 threads`."""
    return f"{count} thread{'s' if count > 1 else ''}"


def describe_threads(threads: ThreadsRecord) -> str:
    """Return the chosen number of threads and the measured rates as one line."""
    rates = ", ".join(f"{rate:,.0f} img/s with {count}" for count, rate in threads.images_per_s.items())
    return format_threads(threads.count) + (f" (measured: {rates})" if rates else "")


class SlowdownWarning:
    """Warns once if the rate stays far below the measured one or, if nothing was measured, below that at the start."""

    def __init__(self, threads: ThreadsRecord):
        self.count, self.expected = threads.count, threads.rate
        self.slow_seconds, self.is_given = 0.0, False

    def update(self, rate: float, seconds: float) -> str | None:
        """Record the images per second over the last `seconds`, without waits for data; return the warning when due."""
        self.expected = self.expected or rate
        self.slow_seconds = self.slow_seconds + seconds if rate * SLOWDOWN < self.expected else 0.0
        if self.is_given or self.slow_seconds < SLOW_SECONDS:
            return None
        self.is_given = True
        remedy = "interrupt this command and rerun it with --threads 1, which is least affected by other processes"
        return (
            f"the rate fell from {self.expected:,.0f} to {rate:,.0f} img/s, probably because other processes use the "
            f"same cores: end them{f', or {remedy}' if self.count > 1 else ''}"
        )
