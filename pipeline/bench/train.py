"""Benchmark of the DCGAN's training next to a plain loop of equal width, batch and data, and to its limits."""

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import count, islice, repeat
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pipeline.bench.baselines import ImageFolder, PlainGan, repeat_loader
from pipeline.bench.context import BenchContext
from pipeline.bench.measure import ROUNDS, Row, busy_process, compare
from pipeline.data.loader import FEEDS, FeedConfig
from pipeline.data.sampler import NaturalSampler
from pipeline.gan.defaults import resolve_auto
from pipeline.gan.options import PRESETS, GanOptions
from pipeline.gan.trainer import GanTrainer, step_flop
from pipeline.runtime import device_name, tune_allocator
from pipeline.threads import choose_threads, describe_threads, restored_threads
from shards.concurrency import available_cpus

# Seconds per image of `faces` that an H100 can't go below: 2.28 GFLOP in bf16; 2.2 to 4.5 us of memory traffic.
H100_FLOORS = {"arithmetic": 2.8e-6, "memory traffic": 2.2e-6}
H100_CHIPS = ("H100", "H200", "GH200")
PUBLISHED: dict[str, Any] = {"loss": "dcgan", "regularizer": "none"}  # at equal widths


def bench_train(context: BenchContext) -> Iterator[Row]:
    """Measure both presets."""
    tune_allocator()
    for preset, steps in (("sketch", 100), ("faces", 4 if context.device.type == "cpu" else 300)):
        yield from bench_preset(context, preset, steps=steps)


def bench_preset(context: BenchContext, preset: str, *, steps: int) -> Iterator[Row]:
    """Measure a preset: the whole trainer, its step alone on a fixed batch, each feed alone, and each with the step."""
    shards, device = context.shards(), context.device
    run_steps = 10**9 if device.type == "cuda" else steps  # of the run whose options are resolved
    options, _ = resolve_auto(PRESETS[preset], run_steps, shards=shards, device=device)
    sampler, config = NaturalSampler(shards.sizes, 0), FeedConfig(options.image_size, options.batch_size, device)
    feeds = {name: FEEDS[name](shards, sampler, config)(0) for name in ("resident", "streaming")}
    fixed = next(feeds["resident"]).clone()
    train, plain = our_training(options, device), plain_training(context, options)
    for batches in feeds.values():  # compiles
        train(batches, 2)
    plain(2)  # starts the worker
    measure = partial(
        compare,
        "train",
        device=device,
        note=f"{options.precision}, {'compiled' if options.compile else 'eager'}, "
        f"width {options.width_g}/{options.width_d}",
    )
    row = measure(
        f"{preset}: batch of {options.batch_size}, vs a plain loop",
        ours=partial(train, feeds["resident"], steps),
        baseline=partial(plain, steps),
    )
    yield row
    # short turns, but many: the differences here are smaller than the machine's own fluctuations
    turn = max(steps // 5, 1)
    alone = partial(train, repeat(fixed), turn)
    for name, batches in feeds.items():
        feed = partial(read_batches, batches, max(steps, 50))  # many more than are read ahead
        yield measure(f"{preset}: {name} feed alone, vs the step alone", ours=feed, baseline=alone)
        both = partial(train, batches, turn)
        title = f"{preset}: step with the {name} feed, vs the step alone"
        yield measure(title, ours=both, baseline=alone, rounds=5 * ROUNDS)
    if options.has_penalty:
        published = partial(our_training(replace(options, **PUBLISHED), device), repeat(fixed))
        published(2)
        title = f"{preset}: step alone, vs that of the published loss"
        yield measure(title, ours=alone, baseline=partial(published, turn), rounds=5 * ROUNDS)
    if device.type == "cpu":
        yield from threads_rows(preset, options, images=fixed, steps=turn)
    yield from arithmetic_rows(preset, options, device=device, rate=row.value)


def our_training(options: GanOptions, device: torch.device) -> Callable[[Iterator[Tensor], int], int]:
    """Return `train(batches, steps)`, which returns the number of images."""
    trainer, numbers = GanTrainer(options, device), count()

    def train(batches: Iterator[Tensor], steps: int) -> int:
        return sum(len(images) for images in islice(batches, steps) if trainer.step(next(numbers), images).any())

    return train


def threads_rows(preset: str, options: GanOptions, *, images: Tensor, steps: int) -> Iterator[Row]:
    """Measure the step with the number of threads that a run would choose, next to that with a thread on every core."""
    trainer, numbers = GanTrainer(options, images.device), count()

    def train(threads: int, steps: int = steps) -> int:
        torch.set_num_threads(threads)
        return sum(len(images) for _ in range(steps) if trainer.step(next(numbers), images).any())

    def time_step(threads: int) -> float:
        start = time.perf_counter()
        train(threads, 1)
        return time.perf_counter() - start

    for title, condition in (("", nullcontext), (", next to a busy process", busy_process)):
        with restored_threads(), condition():
            threads = choose_threads(time_step, steps=10**6, step_images=len(images))
            row = compare(
                "train",
                f"{preset}: step with the measured number of threads, vs with all cores{title}",
                ours=partial(train, threads.count),
                baseline=partial(train, available_cpus()),
                note=describe_threads(threads),
                rounds=5 * ROUNDS,
            )
        yield row


def plain_training(context: BenchContext, options: GanOptions) -> Callable[[int], int]:
    """Return `train(steps)` of the plain loop, which returns the number of images."""
    plain = PlainGan(GanTrainer(replace(options, **PUBLISHED), context.device), context.device)
    loader = DataLoader(ImageFolder(context.faces), options.batch_size, shuffle=True, num_workers=1, drop_last=True)
    batches = repeat_loader(loader)
    return lambda steps: sum(plain.step(images) for images in islice(batches, steps))


def read_batches(batches: Iterator[Tensor], steps: int) -> int:
    """Read the batches of `steps` steps; return the number of images."""
    return sum(len(images) for images in islice(batches, steps))


def arithmetic_rows(preset: str, options: GanOptions, *, device: torch.device, rate: float) -> Iterator[Row]:
    """Yield the arithmetic rate of `rate` images per second, and on an H100 the share of what each limit allows."""
    flop = step_flop(options)
    note = f"{flop / 1e9:.3f} GFLOP per image"
    yield Row("train", f"{preset}: arithmetic", unit="GFLOP/s", value=rate * flop / 1e9, note=note)
    if preset == "faces" and any(chip in device_name(device) for chip in H100_CHIPS):
        for limit, seconds in H100_FLOORS.items():
            title = f"{preset}: share of the rate that {limit} allows"
            yield Row("train", title, unit="%", value=100 * rate * seconds)
