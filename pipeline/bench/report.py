"""What asking costs: every question and the page over a million labels, beside the same tables by pandas."""

import io
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import polars as pl
from PIL import Image

import sql
from models.clip import CLASSES
from pipeline.bench.measure import ROUNDS, Row
from pipeline.labelling import tables
from pipeline.labelling.probe import EVALUATED_ATTRIBUTES
from reports import estimate, page
from shards.annotations import skin_group
from shards.atomic_io import write_json, write_parquet
from shards.errors import FairfaceError
from shards.tar import TarWriter

FACES, RUN = 166_667, "million"  # of either side; three labellers speak of each: a million labels
NOTE = f"a million labels: {2 * FACES:,} faces, three labellers"
WIDTH, PICTURED = 512, 2000  # of ViT-B/32's embeddings; images of either side that are really there


def bench_report(scratch: Path) -> Iterator[Row]:
    """Tables, estimates, the page and every question over a million labels."""
    try:
        import pandas
    except ImportError as error:
        raise FairfaceError("the report is measured beside pandas: pip install pandas, or `make setup`") from error
    out = million(scratch / RUN)
    connection = sql.connect(out)

    def sides() -> None:
        for attribute in CLASSES:
            sql.ask(connection, "sides", attribute=attribute)

    def plain_sides() -> None:
        """value_counts of each side, as the original FairFace Generator counts its labels."""
        for path in (out / "shards" / "labels.parquet", out / "runs" / RUN / "labels.parquet"):
            table = pandas.read_parquet(path, columns=list(CLASSES))
            for attribute in CLASSES:
                table[attribute].value_counts(normalize=True)
        table = pandas.read_parquet(out / "shards" / "images.parquet", columns=list(CLASSES))
        for attribute in CLASSES:
            table[attribute].value_counts(normalize=True)

    def plain_confusion() -> None:
        """pandas.crosstab of annotations and labels, attribute by attribute and labeller by labeller."""
        columns = ["key", *CLASSES]
        images = pandas.read_parquet(out / "shards" / "images.parquet", columns=columns)
        for name in ("labels", "probe", "pixels"):
            there = columns if name != "pixels" else ["key", "skin_tone"]
            both = images.merge(pandas.read_parquet(out / "shards" / f"{name}.parquet", columns=there), on="key")
            for attribute in there[1:]:
                pandas.crosstab(both[f"{attribute}_x"], both[f"{attribute}_y"])

    yield beside("three attributes counted on every side, against pandas", sides, plain_sides)
    said = "all labellers' confusion, six attributes, against pandas' three"
    yield beside(said, lambda: estimate.confusion(connection), plain_confusion)
    yield Row("report", "estimates", "ms", took(lambda: estimate.write(out, sql.connect(out), RUN)), note=NOTE)
    yield Row(
        "report",
        "the page, estimates and pictures included",
        "ms",
        took(lambda: page.build(out, force=True)),
        note=NOTE,
    )
    connection, times = sql.connect(out), {}
    for name, question in sql.questions().items():
        given = {key: RUN if key == "other" else "female" for key, p in question.params.items() if p.default is None}
        times[name] = statistics.median(took(lambda: sql.ask(connection, name, **given)) for _ in range(ROUNDS))  # noqa: B023
    slowest = max(times, key=times.get)
    yield Row("report", f"the slowest of {len(times)} questions", "ms", times[slowest], note=f"{slowest}; {NOTE}")


def took(work: Callable[[], object]) -> float:
    """Milliseconds."""
    began = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - began)


def beside(figure: str, ours: Callable[[], object], theirs: Callable[[], object]) -> Row:
    """Ours and pandas in turns."""
    pairs = [(took(ours), took(theirs)) for _ in range(ROUNDS)]
    value, baseline = (statistics.median(side) for side in zip(*pairs, strict=True))
    return Row("report", figure, "ms", value, baseline, statistics.median(b / a for a, b in pairs), NOTE)


def million(out: Path) -> Path:
    """An OUT folder of so many labelled faces on either side, with all that labelling and sampling leave."""
    rng, half = np.random.default_rng(0), FACES
    folder, shards = out / "runs" / RUN, out / "shards"
    write_json(shards / "shards.json", {"manifest": "m", "drawn": True})
    config = {"run": RUN, "status": "finished", "started": "2026", "data": {"manifest": "m", "drawn": True}}
    (folder / "samples").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    steps = {name: np.linspace(1, 0.5, 5000) for name in ("loss_d", "loss_g", "d_real", "d_fake", "data_wait")}
    write_parquet(folder / "steps.parquet", pl.DataFrame(steps | {"step": np.arange(5000) * 20, "images": 1}))
    keys = pl.int_range(half, eager=True).cast(pl.String).str.zfill(9).alias("key")
    shard = pl.when(pl.int_range(pl.len()) < PICTURED).then(pl.lit("a.tar")).alias("shard")
    for path, source, name in ((shards, "train", None), (folder, "generated", RUN)):
        picture(path / ("samples" if name else ".") / "a.tar", keys[:PICTURED])
        numbers = {attribute: rng.integers(0, len(names), half) for attribute, names in CLASSES.items()}
        faces = keys.to_frame().with_columns(
            pl.Series(attribute, numbers[attribute]).replace_strict(dict(enumerate(names)), return_dtype=pl.String)
            for attribute, names in CLASSES.items()
        )
        faces = faces.with_columns(pl.col("skin_tone").cast(pl.Int8))
        if source == "train":
            images = faces.with_columns(shard, status=pl.lit("packed"), skin_group=skin_group(), family=pl.lit("GANs"))
            write_parquet(path / "images.parquet", images)
        else:
            about = {"run": RUN, "checkpoint": "c", "seed": 0}
            samples = keys.to_frame().with_columns(shard, *(pl.lit(v).alias(k) for k, v in about.items()))
            write_parquet(path / "samples.parquet", samples.with_columns(index=pl.int_range(pl.len())))
        about = {"source": source, "run": name, "size": 64}
        for method in ("clip", "probe"):
            probabilities = np.concatenate([noisy(rng, numbers[a], len(names)) for a, names in CLASSES.items()], 1)
            table = tables.label_frame(keys, probabilities)
            tables.write_label_table(
                path / f"{'labels' if method == 'clip' else method}.parquet", table, about, method, method
            )
        pixels = faces.select("key", "skin_tone", typology_angle=pl.lit(20.0, pl.Float32))
        tables.write_label_table(path / "pixels.parquet", pixels, about, "pixels", "pixels")
        vectors = rng.standard_normal((half, WIDTH), dtype=np.float32)
        vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
        embeddings = keys.to_frame().with_columns(pl.Series("embedding", vectors, dtype=pl.Array(pl.Float16, WIDTH)))
        write_parquet(path / "embeddings.parquet", embeddings, packed=False)
    judged = [
        (attribute, method, method, half, 0.9, 0.9, method == "probe")
        for attribute in EVALUATED_ATTRIBUTES
        for method in ("clip", "probe")
    ]
    names = ["attribute", "method", "labeller", "n", "accuracy", "balanced_accuracy", "chosen"]
    write_parquet(shards / "labellers.parquet", pl.DataFrame(judged, schema=names, orient="row"))
    return out


def noisy(rng: np.random.Generator, numbers: np.ndarray, classes: int) -> np.ndarray:
    """Probabilities float32 [N, classes] of a labeller that is right nine times in ten."""
    wrong = rng.random(len(numbers)) < 0.1
    said = np.where(wrong, rng.integers(0, classes, len(numbers)), numbers)
    sure = rng.uniform(0.6, 0.99, len(numbers))[:, None]
    return np.where(np.eye(classes, dtype=bool)[said], sure, (1 - sure) / (classes - 1)).astype(np.float32)


def picture(path: Path, keys: pl.Series) -> None:
    """A tar with an image of 64x64 for every key."""
    data = io.BytesIO()
    Image.effect_noise((64, 64), 60).convert("RGB").save(data, "jpeg")
    with TarWriter(path) as writer:
        for key in keys:
            writer.add(key, "jpg", data.getvalue())
