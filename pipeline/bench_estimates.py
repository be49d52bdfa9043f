"""What the estimates are worth, and what they cost: intervals and corrections in simulated worlds, a million labels."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl

import sql
from pipeline.measure import Row
from reports import estimate, worlds
from shards.files import write_parquet

CLASSES = (2, 3, 5, 10)
WORLDS = 400
MILLION = 1_000_000


def bench_estimates(scratch: Path) -> Iterator[Row]:
    """Coverage and accuracy of corrected shares beside those of the labels alone, then the time of a million labels."""
    for classes in CLASSES:
        ours, naive = worlds.coverage(classes, WORLDS, seed=classes)
        figure = f"{classes} classes: truths that 95 % intervals hold, against the labels' own"
        yield Row("estimates", figure, "%", 100 * ours, 100 * naive, ours / naive, f"{WORLDS} worlds")
    for classes in CLASSES:
        yield errors(classes, "20,000 samples, 5,000 calibrated", worlds.accuracy(classes, WORLDS // 4, classes))
    few = worlds.accuracy(10, WORLDS // 4, 1, n=2000, calibration=500, accuracies=(0.95, 0.95))
    yield errors(10, "2,000 samples, 500 calibrated, accuracy 0.95", few)
    run = million(scratch / "million")
    began = time.perf_counter()
    estimate.write(scratch / "million", sql.connect(scratch / "million"), run)
    yield Row("estimates", "a million labelled faces, by two labellers", "ms", 1000 * (time.perf_counter() - began))


def errors(classes: int, where: str, found: dict[str, float]) -> Row:
    """Mean total variation from the truth: of the corrected shares, beside that of the raw ones."""
    other = ", ".join(f"{name} {1000 * found[name]:.0f}" for name in ("best", "probabilistic", "maximisation"))
    figure, left = f"{classes} classes: error of corrected shares, against raw", found["corrected"]
    return Row(
        "estimates", figure, "permille", 1000 * left, 1000 * found["raw"], found["raw"] / left, f"{where}; {other}"
    )


def million(out: Path) -> str:
    """An OUT folder with as many labels as that, half of them of training images; returns its run."""
    rng, run, half = np.random.default_rng(0), "million", MILLION // 2
    folder = out / "runs" / run
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"run": run, "status": "finished", "started": "2026"}))
    for path, source, name in ((out / "shards", "train", None), (folder, "generated", run)):
        faces = pl.DataFrame(
            {
                "key": np.arange(half).astype(str),
                "gender": rng.choice(["female", "male"], half),
                "age": rng.choice(["child", "young", "adult", "middle", "senior"], half),
                "skin_tone": rng.integers(1, 11, half).astype(np.int8),
            }
        )
        if source == "train":
            tone = pl.col("skin_tone")
            group = (
                pl.when(tone < 4).then(pl.lit("light")).when(tone < 7).then(pl.lit("medium")).otherwise(pl.lit("dark"))
            )
            write_parquet(path / "images.parquet", faces.with_columns(status=pl.lit("packed"), skin_group=group))
        wrong = pl.Series(rng.random(half) < 0.1)
        for method in ("clip", "probe"):
            said = faces.with_columns(gender=pl.when(wrong).then(pl.lit("male")).otherwise("gender"))
            about = {"source": source, "run": name, "method": method, "labeller": method, "size": 64}
            said = said.with_columns(pl.lit(value).alias(key) for key, value in about.items())
            write_parquet(path / f"{'labels' if method == 'clip' else method}.parquet", said)
    return run
