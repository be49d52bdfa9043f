"""The loop around the training steps: what is counted, shown, drawn and saved while a run goes on, and what ends it."""

import math
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import polars as pl
import torch
from torch import Tensor
from torchvision.utils import save_image
from tqdm import tqdm

from pipeline.data.sampler import RankSlice
from pipeline.training import checkpoint
from shards.atomic_io import atomic_write, write_parquet
from shards.errors import FairfaceError

LOG_LINE_SECONDS = 20  # seconds between lines where no progress bar is shown


class TrainingInterrupted(FairfaceError):
    """A signal asked for an end; `code` is the exit code that says so."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.exit_code = code


class Trainer(Protocol):
    """What a loop takes its steps with."""

    part: RankSlice
    device: torch.device
    batch: int  # images of a step, of all ranks
    figures: tuple[str, ...]  # the names of what a step returns

    def step(self, step: int, images: Tensor, labels: Any) -> Tensor:
        """One update; returns its figures, on the device."""

    def line(self, values: Sequence[float]) -> str:
        """The figures for a person."""

    def state(self) -> dict:
        """All that continuing needs."""

    def grid(self) -> Tensor:
        """Images to look at, float32 [N, 3, S, S] in [0, 1]; asked for where images are to be drawn."""


class TrainingLoop:
    """The loop around the steps: what is counted, shown, drawn and saved while a run goes on."""

    def __init__(
        self,
        trainer: Trainer,
        folder: Path,
        config: dict,
        rows: list[dict],
        per_epoch: int,
        sample_every: int | None,
        save_every_epoch: int | None,
        keep: int,
        progress: bool,
        save_every: float = 30,
        log_every: int = 20,
    ):
        """`sample_every` and `log_every` are steps, `save_every` is seconds."""
        from torch.utils.tensorboard import SummaryWriter

        self.trainer, self.folder, self.config, self.rows, self.per_epoch = trainer, folder, config, rows, per_epoch
        self.sample_every, self.save_every_epoch, self.keep, self.progress = (
            sample_every,
            save_every_epoch,
            keep,
            progress,
        )
        self.writes = trainer.part.rank == 0  # the others compute alike, and keep nothing
        self.log_every, self.save_every, self.told = log_every, save_every, time.monotonic()
        self.batch = trainer.batch
        self.seconds = rows[-1]["seconds"] if rows else 0.0
        if self.writes:
            self.board = SummaryWriter(folder / "tensorboard", purge_step=rows[-1]["step"] + 1 if rows else None)

    def run(self, batches: Iterator[tuple[Tensor, Any]], first: int, last: int, signals: "StopSignals") -> None:
        """Steps `first` to `last`, counted from 0; saves at the end, at every signal, and in between."""
        losses, waited, saved_at, began = [], 0.0, time.monotonic(), time.monotonic()
        bar = tqdm(total=last, initial=first, unit="step", desc="training", disable=not self.progress)
        with bar:
            for step in range(first, last):
                asked = time.monotonic()
                images, labels = next(batches)
                waited += time.monotonic() - asked
                losses.append(self.trainer.step(step, images, labels))
                done = step + 1
                stopping = self.agreed(signals.seen, done)
                saving = done == last or stopping or self.due(done, saved_at)
                if saving or done % self.log_every == 0:  # a loss is looked at before it is saved
                    elapsed = time.monotonic() - began
                    self.log(done, losses, waited, elapsed, bar)
                    losses, waited, began = [], 0.0, time.monotonic()
                bar.update()
                if self.writes and self.sample_every and (done % self.sample_every == 0 or done == last):
                    self.draw(done)
                if saving:
                    self.save(done)
                    saved_at = time.monotonic()
                if stopping and done < last:
                    raise TrainingInterrupted(
                        f"stopped at step {done:,} of {last:,}, saved: the same command continues",
                        signals.code or EXIT_CODES[signal.SIGTERM],  # another rank's signal, perhaps
                    )
        if self.writes:
            self.board.close()

    def agreed(self, seen: bool, step: int) -> bool:
        """Whether a signal ends the run after this step; several ranks ask each other.

        After every step on CPUs, where a step is long and nothing waits; on GPUs that would stop them each time.
        """
        if self.trainer.part.world == 1:
            return seen
        if self.trainer.device.type == "cuda" and step % self.log_every:
            return False
        flag = torch.tensor(float(seen))
        torch.distributed.all_reduce(flag)
        return flag.item() > 0

    def log(self, step: int, losses: list[Tensor], waited: float, elapsed: float, bar: tqdm) -> None:
        """Reads the losses back from the device, once for many steps; a loss that is not finite ends the run."""
        values = torch.stack(losses).mean(0).tolist()  # also waits for the device, so `elapsed` is honest after it
        if not all(map(math.isfinite, values)):
            raise FairfaceError(
                f"a loss became {values} near step {step:,}: no checkpoint was saved after it; try a lower --lr, "
                "or --precision fp32"
            )
        if not self.writes:
            return
        self.seconds += elapsed
        names = self.trainer.figures
        rate, wait = len(losses) * self.batch / elapsed, waited / elapsed
        self.rows.append(
            {
                "step": step,
                "epoch": (step - 1) // self.per_epoch + 1,
                "images": step * self.batch,
                "seconds": self.seconds,
                **dict(zip(names, values, strict=True)),
                "images_per_s": rate,
                "data_wait": wait,
            }
        )
        for name, value in [*zip(names, values, strict=True), ("images_per_s", rate), ("data_wait", wait)]:
            self.board.add_scalar(name, value, step)
        about = self.trainer.line(values)
        line = f"epoch {self.rows[-1]['epoch']}, {rate:,.0f} img/s, waiting for data {wait:.1%}, {about}"
        bar.set_postfix_str(line, refresh=False)
        if not self.progress and time.monotonic() - self.told > LOG_LINE_SECONDS:  # a log file: a line now and then
            left = (self.config["steps"] - step) * self.batch / rate
            print(f"step {step:,} of {self.config['steps']:,}, {line}, {left:,.0f} s left", flush=True)
            self.told = time.monotonic()

    def draw(self, step: int) -> None:
        with atomic_write(self.folder / "grids" / f"step_{step:09d}.png") as file:
            save_image(self.trainer.grid(), file, format="png", nrow=8, padding=0)

    def due(self, step: int, saved_at: float) -> bool:
        """Whether to save now: every N epochs where asked for, else from time to time."""
        if self.save_every_epoch:
            return step % (self.save_every_epoch * self.per_epoch) == 0
        return step % self.log_every == 0 and time.monotonic() - saved_at > self.save_every

    def save(self, step: int) -> None:
        """Writes steps.parquet before the checkpoint: a resume drops later rows, and can't make earlier ones again."""
        if not self.writes:
            return
        write_parquet(self.folder / "steps.parquet", steps_frame(self.rows, self.trainer.figures))
        state = {key: self.config[key] for key in ("options", "data", "run", "classes")}
        checkpoint.save(self.folder / "checkpoints", step, state | {"nets": self.trainer.state()}, self.keep)


def steps_frame(rows: list[dict], figures: Sequence[str]) -> pl.DataFrame:
    """The rows of steps.parquet in their types."""
    whole = {"step", "epoch", "images"}
    names = ["step", "epoch", "images", "seconds", *figures, "images_per_s", "data_wait"]
    kinds = {name: pl.Int64 if name in whole else pl.Float64 if name == "seconds" else pl.Float32 for name in names}
    return pl.DataFrame(rows, schema=kinds, orient="row")


EXIT_CODES = {signal.SIGTERM: 75, signal.SIGINT: 130}  # 75: EX_TEMPFAIL of sysexits.h, "try again"


class StopSignals:
    """Within it, SIGTERM (a SLURM time limit) and SIGINT only ask for an end; a second Ctrl-C ends at once.

    A second SIGTERM does not: SLURM and torchrun may each send one.
    """

    def __enter__(self) -> "StopSignals":
        self.seen, self.code = False, 0
        self.before = {number: signal.signal(number, self.note) for number in EXIT_CODES}
        return self

    def note(self, number: int, _frame) -> None:
        self.seen, self.code = True, EXIT_CODES[number]
        if number == signal.SIGINT:
            signal.signal(number, self.before[number])

    def __exit__(self, *_) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
