"""Benchmark of joining a million annotation rows to a million image paths."""

import csv
import itertools
import random
import time
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from pipeline.bench.context import BenchContext
from pipeline.bench.many_attributes import CLASSES, TWELVE, write_many_attributes
from pipeline.bench.measure import Row, run_in_process
from shards import annotations, discover, match
from shards.attributes import built_in_attributes, read_own_attributes
from shards.synthetic import dataset

ROWS = 1_000_000
SUBSETS = ("GANs/AttGAN", "GANs/STYLEGAN2", "GANs/StyleGAN3", "DMs/DCFACe", "DMs/SD1.5", "Real/FFHQ", "Real/imdb_wiki")


def bench_join(context: BenchContext) -> Iterator[Row]:
    """Measure reading and joining next to the csv module and a dictionary of exact paths."""
    table, own, rng = context.scratch("million.csv"), context.scratch("many.toml"), random.Random(0)
    names = [name for name in write_many_attributes(own).labelled if name not in built_in_attributes()]
    with open(table, "w") as file:
        file.write(",".join([dataset.COLUMNS, *names]) + "\n")
        for path in image_paths(ROWS):
            labels = f"{rng.randrange(2)},{rng.randrange(5)},{rng.randrange(1, 11)},1,0,0,,"
            classes = ",".join(rng.choices(CLASSES, k=len(names)))
            file.write(f"AI_Face_imagesV2/{path},{labels},{classes}\n")
    seconds, memory = run_in_process(join_rows, str(table), str(own), ROWS)
    plain_seconds, plain_memory = run_in_process(join_exact_paths, str(table), ROWS)
    yield Row(
        "join",
        "annotations read and joined, vs csv and a dictionary",
        unit="rows/s",
        value=ROWS / seconds,
        baseline=ROWS / plain_seconds,
        ratio=plain_seconds / seconds,
        note=f"{ROWS:,} rows, {TWELVE} attributes; normalised names, aliases, ambiguous paths",
    )
    yield Row(
        "join",
        "peak memory of reading and joining, vs csv and a dictionary",
        unit="MB",
        value=memory / 1e6,
        baseline=plain_memory / 1e6,
        ratio=plain_memory / memory,
        note=f"{seconds:.1f} s",
    )


def image_paths(count: int) -> list[str]:
    """Return image paths like AI-Face's: few file names in many folders of many methods."""
    numbered = itertools.product(range(count), SUBSETS)
    return [f"{subset}/{i // 1000:04d}/{i % 1000}.jpg" for i, subset in itertools.islice(numbered, count)]


def join_rows(table: str, own: str, count: int) -> float:
    """Read and join the rows; return seconds."""
    paths, root = pl.Series("path", sorted(image_paths(count))), Path("/data/AI-Face")
    started = time.perf_counter()
    options = annotations.ReadOptions(attributes=read_own_attributes(Path(own)).table)
    tables = annotations.read_tables([Path(table)], options)
    matched = match.match_rows(discover.describe(paths, root), tables.frame, root=root)
    if not matched.files["matched"].all():
        raise RuntimeError("not every row found its image")
    return time.perf_counter() - started


def join_exact_paths(table: str, count: int) -> float:
    """Read and join the rows in the plain way, which matches exact paths only; return seconds."""
    paths = sorted(image_paths(count))
    started = time.perf_counter()
    with open(table, newline="") as file:
        rows = {row["Image Path"].partition("/")[2]: row for row in csv.DictReader(file)}
    if len([rows[path] for path in paths]) != count:
        raise RuntimeError("not every row found its image")
    return time.perf_counter() - started
