"""The output of `detect --judge`: a table for a terminal, or a CSV."""

import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click
from tqdm import tqdm

from pipeline.cli import console
from shards.atomic_io import open_output
from shards.errors import FairfaceError
from shards.workspace import Workspace

if TYPE_CHECKING:
    from pipeline.detection.judge import JudgeConfig, Judgement

STANDARD_OUTPUT = Path("-")
MAX_PATH_WIDTH = 60  # of the aligned column; longer paths shift the rest of their row


def judge_images(workspace: Workspace, judged: Sequence[Path], config: "JudgeConfig", *, output: Path | None) -> None:
    """Judge images, and print the judgements as a table, or write them as a CSV to `output`.

    Images that can't be read are counted. Raises FairfaceError, after the output is written, if none could be read.
    """
    from pipeline.detection.judge import find_judged, load_judge

    paths = find_judged(workspace, judged)
    if output:
        check_output(workspace, output, paths=paths)
    console.forget_progress()
    judge = load_judge(workspace, config)
    if judge.unfinished:
        console.warn(judge.unfinished)
    is_table = output is None
    with tqdm(
        total=len(paths), unit="img", desc="judging", disable=is_table or not console.is_interactive(), leave=False
    ) as bar:
        counts: Counter[str] = Counter()

        def counted() -> Iterator[list["Judgement"]]:
            for batch in judge.judge(paths):
                counts.update(one.reason or one.decision or "" for one in batch)
                yield batch
                bar.update(len(batch))

        if is_table:
            print_table(counted(), paths=paths)
        else:
            assert output
            write_csv(counted(), output)
    print_counts(judge.name, counts, output=output)


def check_output(workspace: Workspace, output: Path, *, paths: Sequence[str]) -> None:
    """Raise FairfaceError if the CSV would replace one of the judged images, or a file below OUT.

    It may replace an earlier CSV directly in OUT.
    """
    is_result = False
    for resolve in (os.path.realpath, os.path.abspath):  # folders of OUT may be links
        target, root = Path(resolve(output)), Path(resolve(workspace.root))
        is_earlier = target.parent == root and target.suffix == ".csv"
        is_result |= target.is_relative_to(root) and target.is_file() and not is_earlier
    if is_result or os.path.realpath(output) in map(os.path.realpath, paths):
        raise FairfaceError(f"--csv {output} would replace an image or a result: choose another name")


def print_table(batches: Iterable[list["Judgement"]], *, paths: Sequence[str]) -> None:
    """Print a row for each image as soon as it is judged."""
    width = min(max(len(console.printable_line(path) or "") for path in paths), MAX_PATH_WIDTH)
    click.echo(f"{'image':{width}}  {'logit':>8}  probability  decision")
    for one in (one for batch in batches for one in batch):
        name = f"{console.printable_line(one.path):{width}}"
        if one.logit is None:
            click.echo(f"{name}  {'':>8}  {'':>11}  {(one.reason or '').replace('_', ' ')}")
        else:
            click.echo(f"{name}  {one.logit:8.3f}  {one.probability:11.3f}  {one.decision}")


def write_csv(batches: Iterable[list["Judgement"]], output: Path) -> None:
    """Write the judgements as a CSV, which appears only when it is complete."""
    import polars as pl

    from shards.csv_output import escape_formulas

    schema = {"path": pl.String, "logit": pl.Float64, "probability": pl.Float64, "decision": pl.String}
    with open_csv(output) as file:
        is_first = True
        for batch in batches:
            rows = [(one.path, one.logit, one.probability, one.decision, one.reason) for one in batch]
            table = pl.DataFrame(rows, schema=schema | {"reason": pl.String}, orient="row")
            escape_formulas(table).write_csv(file, include_header=is_first)
            is_first = False


@contextmanager
def open_csv(output: Path) -> Iterator[BinaryIO]:
    """Open the CSV to write, or standard output."""
    if output == STANDARD_OUTPUT:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    with open_output(output) as file:
        yield file


def print_counts(name: str, counts: Counter[str], *, output: Path | None) -> None:
    """Print how many images were called fake, real or unreadable. Raises FairfaceError if none could be read."""
    total = counts.total()
    reasons = Counter({reason: n for reason, n in counts.items() if reason not in ("fake", "real")})
    listed = ", ".join(f"{n:,} {reason.replace('_', ' ')}" for reason, n in reasons.most_common())
    if reasons.total() == total:
        raise FairfaceError(f"none of the {total:,} images could be read: {listed}")
    place = f"{output}: " if output and output != STANDARD_OUTPUT else ""
    console.echo(
        f"{place}{total - reasons.total():,} images judged by {name}: {counts['fake']:,} fake, {counts['real']:,} real",
        err=output == STANDARD_OUTPUT,
    )
    if reasons:
        console.warn(f"{reasons.total():,} could not be read: {listed}")
