"""The training loop of every kind of network: takes the steps, and logs, renders and saves in between."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import polars as pl
import torch
from torch import Tensor
from torchvision.utils import save_image
from tqdm import tqdm

from pipeline.data.sampler import RankSlice
from pipeline.threads import SlowdownWarning, format_threads
from pipeline.training import checkpoint
from pipeline.training.signals import StopSignals, TrainingInterrupted
from shards.atomic_io import atomic_write, write_parquet
from shards.documents import ThreadsRecord
from shards.errors import FairfaceError
from shards.workspace import TrainingFolder

LOG_LINE_SECONDS = 20  # between lines where no progress bar is shown
LONG_DAYS = 1  # training that takes longer is announced

Batches = Iterator[tuple[Tensor, Any]]  # images uint8 [B, S, S, 3], or their features, and labels for the trainer


class Trainer(Protocol):
    """The interface of the objects that perform training steps."""

    rank_slice: RankSlice
    device: torch.device

    @property
    def batch_size(self) -> int:
        """Images of a step, over all ranks."""

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The names of what `step` returns."""

    def step(self, step: int, images: Tensor, labels: Any) -> Tensor:
        """Update the weights once; returns the metrics, float32 [len(metric_names)] on the device."""

    def summary(self, values: Sequence[float]) -> str:
        """The metrics as text for the progress bar."""

    def state(self) -> dict[str, Any]:
        """Everything that resuming needs."""

    def load(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""


@dataclass(frozen=True)
class LoopConfig:
    """What the loop does between steps, and how often."""

    steps_per_epoch: int
    sample_every: int | None = None  # steps between two grids of samples; None: no grids
    save_every_epoch: int | None = None  # epochs between two checkpoints; None: by time
    save_every_seconds: float = 30  # between two checkpoints, where save_every_epoch is None
    log_every: int = 20  # steps between two rows of steps.parquet; metrics are read from the device only then
    keep: int = 3  # checkpoints
    progress: bool = True  # show a progress bar instead of an occasional line
    threads: ThreadsRecord | None = None  # torch's threads on a CPU; None: on a GPU


class TrainingLoop:
    """The loop around the steps of a trainer; only rank 0 writes."""

    def __init__(
        self,
        trainer: Trainer,
        folder: TrainingFolder,
        config: LoopConfig,
        *,
        rows: list[dict[str, Any]],
        header: Mapping[str, Any],
        render_grid: Callable[[], Tensor] | None = None,
    ):
        """`rows` are the existing rows of steps.parquet; `header` goes into every checkpoint.

        `render_grid` returns images to look at, float32 [N, 3, S, S] in [0, 1].
        """
        from pipeline.training.event_file import EventFile

        self.trainer, self.folder, self.config = trainer, folder, config
        self.rows, self.header, self.render_grid = rows, header, render_grid
        self.board: EventFile | None = None
        if trainer.rank_slice.rank == 0:  # the other ranks compute the same state and save nothing
            purge_step = rows[-1]["step"] + 1 if rows else None
            self.board = EventFile(folder.tensorboard, purge_step=purge_step)
        self._first_rows, self._is_timed = len(rows), False
        self._metrics: list[Tensor] = []  # of the steps since the last row
        self._data_wait = 0.0  # seconds since the last row
        self._slowdown = SlowdownWarning(config.threads) if config.threads else None
        self._train_seconds: float = rows[-1]["seconds"] if rows else 0.0
        self._row_time = self._save_time = self._line_time = time.monotonic()

    def run(self, batches: Batches, *, first: int, last: int, signals: StopSignals) -> None:
        """Take the steps from `first` to `last` (exclusive), counted from 0.

        Saves at the end, at a signal, and in between as configured. Raises TrainingInterrupted after a signal and
        FairfaceError for a metric or a weight that is not finite.
        """
        try:
            self._run(batches, first=first, last=last, signals=signals)
        finally:
            if self.board:
                self.board.close()

    def _run(self, batches: Batches, *, first: int, last: int, signals: StopSignals) -> None:
        self._row_time = self._save_time = time.monotonic()
        if first == last:  # a run of no steps consists of the weights that it starts with
            self._save(last)
        with tqdm(total=last, initial=first, unit="step", desc="training", disable=not self.config.progress) as bar:
            for step in range(first, last):
                images, labels = self._next_batch(batches)
                self._metrics.append(self.trainer.step(step, images, labels))
                done = step + 1
                interrupted = self._is_interrupted(signals.received, done)
                saving = done == last or interrupted or self._is_save_due(done)
                if saving or done % self.config.log_every == 0:  # metrics are checked before weights are saved
                    self._log(done, last, bar)
                bar.update()
                if self._is_grid_due(done, last):
                    self._save_grid(done)
                if saving:
                    self._save(done)
                if interrupted and done < last:
                    raise TrainingInterrupted(
                        f"interrupted at step {done:,} of {last:,}. Progress is saved; rerun the same command to "
                        "resume.",
                        exit_code=signals.exit_code,
                    )

    def _next_batch(self, batches: Batches) -> tuple[Tensor, Any]:
        start = time.monotonic()
        batch = next(batches)
        self._data_wait += time.monotonic() - start
        return batch

    def _is_interrupted(self, received: bool, step: int) -> bool:
        """Whether a signal, received on any rank, ends the run after this step.

        On CPUs, where steps are long, the ranks exchange this after every step. On GPUs that would stall each step, so
        they exchange it only when they log.
        """
        if self.trainer.rank_slice.world_size == 1:
            return received
        if self.trainer.device.type == "cuda" and step % self.config.log_every:
            return False
        flag = torch.tensor(float(received))
        torch.distributed.all_reduce(flag)
        return flag.item() > 0

    def _is_save_due(self, step: int) -> bool:
        """Whether to save now: every N epochs if configured, otherwise by time."""
        if self.config.save_every_epoch:
            return step % (self.config.save_every_epoch * self.config.steps_per_epoch) == 0
        waited = time.monotonic() - self._save_time
        return step % self.config.log_every == 0 and waited > self.config.save_every_seconds

    def _is_grid_due(self, step: int, last: int) -> bool:
        every = self.config.sample_every
        return bool(self.board and every and (step % every == 0 or step == last))

    def _log(self, step: int, last: int, bar: tqdm) -> None:
        """Read the metrics since the last row from the device and record their mean."""
        values = torch.stack(self._metrics).mean(0).tolist()  # waits for the device: the seconds include its work
        seconds, steps = time.monotonic() - self._row_time, len(self._metrics)
        if not all(map(math.isfinite, values)):
            raise FairfaceError(
                f"a loss became {values} near step {step:,}: no checkpoint was saved after it; try a lower --lr, "
                "or --precision fp32"
            )
        if self.board:
            self._train_seconds += seconds
            row = self._add_row(step, values, steps=steps, seconds=seconds)
            self._show(row, values, bar=bar, last=last)
            self._warn_if_slow(steps, seconds - self._data_wait)
        self._metrics, self._data_wait, self._row_time = [], 0.0, time.monotonic()

    def _add_row(self, step: int, values: list[float], *, steps: int, seconds: float) -> dict[str, Any]:
        """Append a row of steps.parquet, and its values to TensorBoard."""
        measured = dict(zip(self.trainer.metric_names, values, strict=True))
        measured["images_per_s"] = steps * self.trainer.batch_size / seconds
        measured["data_wait"] = self._data_wait / seconds
        row = {
            "step": step,
            "epoch": (step - 1) // self.config.steps_per_epoch + 1,
            "images": step * self.trainer.batch_size,
            "seconds": self._train_seconds,
            **measured,
        }
        self.rows.append(row)
        if self.board:
            self.board.add_scalars(measured, step)
        return row

    def _show(self, row: dict[str, Any], values: list[float], *, bar: tqdm, last: int) -> None:
        """Show the newest row next to the progress bar, or print it occasionally if there is no progress bar."""
        step, rate, threads = row["step"], row["images_per_s"], self.config.threads
        on = f" on {format_threads(threads.count)}" if threads else ""
        line = (
            f"epoch {row['epoch']}, {rate:,.0f} img/s{on}, waiting for data {row['data_wait']:.1%}, "
            f"{self.trainer.summary(values)}"
        )
        bar.set_postfix_str(line, refresh=False)
        self._announce_duration(step, last, rate=rate)
        if not self.config.progress and time.monotonic() - self._line_time > LOG_LINE_SECONDS:
            left = (last - step) * self.trainer.batch_size / rate
            print(f"step {step:,} of {last:,}, {line}, {left:,.0f} s left", flush=True)
            self._line_time = time.monotonic()

    def _announce_duration(self, step: int, last: int, *, rate: float) -> None:
        """Print, once steps are timed, how long the rest takes if that is more than a day."""
        if self._is_timed:
            return
        # the first row includes compilation and the start of the feed
        self._is_timed = len(self.rows) - self._first_rows > 1
        days = (last - step) * self.trainer.batch_size / rate / 86_400
        if self._is_timed and days > LONG_DAYS:
            self._print(f"the remaining {last - step:,} steps will take about {days:,.1f} days")

    def _warn_if_slow(self, steps: int, seconds: float) -> None:
        """Print a warning, once, if steps take much longer than at the start; waits for data do not count."""
        if self._slowdown and len(self.rows) - self._first_rows > 1:  # the first row includes compilation
            warning = self._slowdown.update(steps * self.trainer.batch_size / max(seconds, 1e-9), seconds)
            if warning:
                self._print(warning)

    def _print(self, line: str) -> None:
        tqdm.write(line) if self.config.progress else print(line, flush=True)

    def _save_grid(self, step: int) -> None:
        if self.render_grid is None:
            return
        with atomic_write(self.folder.grid(step)) as file:
            save_image(self.render_grid(), file, format="png", nrow=8, padding=0)

    def _save(self, step: int) -> None:
        """Write steps.parquet, then the checkpoint, because resuming can drop later rows but not add missing ones."""
        if self.board:
            state = {**self.header, "networks": self.trainer.state()}
            if not checkpoint.is_finite(state):
                raise FairfaceError(
                    f"weights became NaN or infinite near step {step:,}: no checkpoint was saved after it; try a lower "
                    "--lr, or --precision fp32"
                )
            write_parquet(
                self.folder.steps, pl.DataFrame(self.rows, schema=steps_schema(self.trainer.metric_names), orient="row")
            )
            checkpoint.save(self.folder.checkpoints, step, state, keep=self.config.keep)
        self._save_time = time.monotonic()


def steps_schema(metric_names: Sequence[str]) -> dict[str, type[pl.DataType]]:
    """The types of steps.parquet: int64 step, epoch, images; float64 seconds; float32 the others."""
    integers = {"step", "epoch", "images"}
    names = ["step", "epoch", "images", "seconds", *metric_names, "images_per_s", "data_wait"]
    return {name: pl.Int64 if name in integers else pl.Float64 if name == "seconds" else pl.Float32 for name in names}
