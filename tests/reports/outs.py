"""A small OUT whose truth is known, as the stages before the report leave it."""

import io
import json
import re

import numpy as np
import polars as pl
from PIL import Image

from shards.tar import TarWriter

GENDERS, AGES = ["female", "male"], ["child", "young", "adult", "middle", "senior"]
TONES = np.array([1, 3, 4, 10, 20, 25, 17, 12, 6, 2]) / 100


def people(generator, n, women=0.6, tones=TONES):
    return {
        "key": [f"{i:09d}" for i in range(n)],
        "gender": generator.choice(GENDERS, n, p=[women, 1 - women]),
        "age": generator.choice(AGES, n),
        "skin_tone": generator.choice(np.arange(1, 11), n, p=tones).astype(np.int8),
    }


def pack(path, keys):
    path.parent.mkdir(parents=True, exist_ok=True)
    with TarWriter(path) as tar:
        for i, key in enumerate(keys):
            data = io.BytesIO()
            Image.new("RGB", (16, 16), (i * 5 % 256, 90, 120)).save(data, "png")
            tar.add(key, "png", data.getvalue())


def make(out, run="first", drawn=True, annotated=True, labeller="drawn-faces@1a2b3c4d", women=0.6, n=400, m=1200):
    generator = np.random.default_rng(3)
    shards, folder = out / "shards", out / "runs" / run
    folder.mkdir(parents=True)
    train, drawn_people = people(generator, m), people(generator, n, women)
    pack(shards / "a.tar", train["key"][:60])
    pack(folder / "samples" / "s.tar", drawn_people["key"][:60])
    images = pl.DataFrame(train).with_columns(
        status=pl.lit("packed"), shard=pl.lit("a.tar"), family=pl.lit("GANs"), subset=pl.lit("<b>S</b>")
    )
    tone = pl.col("skin_tone")
    group = pl.when(tone < 4).then(pl.lit("light")).when(tone < 7).then(pl.lit("medium"))
    images = images.with_columns(skin_group=group.otherwise(pl.lit("dark")))
    if not annotated:
        images = images.drop("gender", "age", "skin_tone", "skin_group")
    images.write_parquet(shards / "images.parquet")
    for source, name, table, path in (
        ("train", None, train, shards / "labels.parquet"),
        ("generated", run, drawn_people, folder / "labels.parquet"),
    ):
        extra = {"source": source, "run": name, "labeller": labeller, "size": 64}
        pl.DataFrame(table).with_columns(pl.lit(v).alias(k) for k, v in extra.items()).write_parquet(path)
    sample = {"key": drawn_people["key"], "index": list(range(n))}
    constant = {"run": run, "checkpoint": "step-10.pt", "seed": 7, "shard": "s.tar"}
    sample = pl.DataFrame(sample).with_columns(pl.lit(v).alias(k) for k, v in constant.items())
    sample.write_parquet(folder / "samples.parquet")
    steps = {"step": np.arange(1, 51), "images": np.arange(1, 51) * 32, "seconds": np.arange(1, 51) * 0.5}
    steps |= {name: np.linspace(1, 0.5, 50) for name in ("loss_d", "loss_g", "d_real", "d_fake")}
    steps |= {"images_per_s": np.full(50, 64.0), "data_wait": np.full(50, 0.02)}
    pl.DataFrame(steps).write_parquet(folder / "steps.parquet")
    config = {"run": run, "status": "finished", "started": "2026-01-01", "command": "fairface train"}
    config |= {"data": {"manifest": "ab" * 32, "images": m, "drawn": drawn, "root": "data"}}
    config |= {"options": {"seed": 1}, "versions": {"torch": "2"}, "device": "cpu"}
    (folder / "config.json").write_text(json.dumps(config))
    (shards / "shards.json").write_text(json.dumps({"manifest": "ab" * 32, "drawn": drawn}))
    return out


HOSTILE = '"><script>alert(1)</script>&$\\frac$'


def text_of(html):
    """What a page says, without its tags."""
    return re.sub(r"\s+", " ", re.sub(r"<style>.*?</style>|<[^>]*>", " ", html, flags=re.S))
