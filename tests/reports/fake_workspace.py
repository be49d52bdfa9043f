"""A small OUT folder with known shares, as the stages before the report leave it."""

import io
import json
import re
from dataclasses import replace

import numpy as np
import polars as pl
from PIL import Image

from reports import page
from shards.attributes import built_in_attributes, workspace_attributes
from shards.documents import (
    DataSource,
    LabelsDocument,
    PredictionsDocument,
    ProbeDocument,
    RunConfig,
    SamplesDocument,
    ShardsDocument,
    file_hashes,
    read_document,
    write_document,
)
from shards.tar import TarWriter
from shards.workspace import Workspace

GENDERS, AGES = ["female", "male"], ["child", "young", "adult", "middle", "senior"]
TONES = np.array([1, 3, 4, 10, 20, 25, 17, 12, 6, 2]) / 100
LABELLER = "synthetic-faces@1a2b3c4d"
MANIFEST = "ab" * 32
SAMPLES = "ef" * 8  # fingerprint of the samples
DOCUMENTS = {  # file -> the document that describes it
    "images.parquet": ("shards.json", ShardsDocument),
    "samples.parquet": ("samples.json", SamplesDocument),
    "labels.parquet": ("labels.json", LabelsDocument),
    "pixels.parquet": ("labels.json", LabelsDocument),
    "embeddings.parquet": ("labels.json", LabelsDocument),
    "probe.parquet": ("probe.json", ProbeDocument),
    "labellers.parquet": ("probe.json", ProbeDocument),
    "predictions.parquet": ("predictions.json", PredictionsDocument),
}
HOSTILE = '"><script>alert(1)</script>&$\\frac$'


def people(generator, n, women=0.6, tones=TONES):
    """`n` faces with random labels, as columns."""
    return {
        "key": [f"{i:09d}" for i in range(n)],
        "gender": generator.choice(GENDERS, n, p=[women, 1 - women]),
        "age": generator.choice(AGES, n),
        "skin_tone": generator.choice(np.arange(1, 11), n, p=tones).astype(np.int8),
    }


def pack(path, keys):
    """A tar with a plain image for every key."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with TarWriter(path) as tar:
        for i, key in enumerate(keys):
            data = io.BytesIO()
            Image.new("RGB", (16, 16), (i * 5 % 256, 90, 120)).save(data, "png")
            tar.add(key, "png", data.getvalue())


def with_columns(table, **values):
    """A table with constant columns added."""
    return pl.DataFrame(table).with_columns(pl.lit(value).alias(name) for name, value in values.items())


def attribute_toml(name, classes, **values):
    """The table of one labelled attribute; `classes` is class -> TOML table."""
    values = {"title": name.capitalize(), "subject": f"balance of {name}", "plural": f"kinds of {name}"} | values
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    lines += [f"[{name}.classes]", *(f'"{key}" = {table}' for key, table in classes.items())] if classes else []
    return "\n".join([f"[{name}]", *lines, ""])


def add_own_attributes(generator, table, attributes):
    """Add a column with random classes, the first of them the most frequent, for each that is not built in."""
    for name in attributes.labelled:
        if name not in built_in_attributes():
            shares = 1 / np.arange(2, len(attributes[name].names) + 2)
            values = generator.choice(attributes[name].names, len(table["key"]), p=shares / shares.sum())
            table[name] = values.astype(np.int8) if attributes[name].is_numbered else values


def make(
    out, run="first", synthetic=True, annotated=True, labeller=LABELLER, women=0.6, n=400, m=1200, attributes=None
):
    """Shards of `m` images and a run with `n` samples below `out`, of which the first 60 of each have a picture.

    `attributes` is the text of the user's own file of attributes.
    """
    generator = np.random.default_rng(3)
    shards, folder = out / "shards", out / "runs" / run
    folder.mkdir(parents=True)
    train, samples = people(generator, m), people(generator, n, women)
    if attributes:
        Workspace(out).attributes.write_text(attributes)
        for table in (train, samples):
            add_own_attributes(generator, table, workspace_attributes(Workspace(out)))
    pack(shards / "a.tar", train["key"][:60])
    pack(folder / "samples" / "s.tar", samples["key"][:60])
    write_images(shards / "images.parquet", train, annotated=annotated)
    about = {"labeller": labeller, "method": "clip", "size": 64}
    with_columns(train, source="train", run=None, **about).write_parquet(shards / "labels.parquet")
    with_columns(samples, source="generated", run=run, **about).write_parquet(folder / "labels.parquet")
    write_document(shards / "labels.json", labels_document("train", evaluated=True))
    write_document(folder / "labels.json", labels_document("generated", run, evaluated=True))
    table = {"key": samples["key"], "index": list(range(n))}
    constant = {"run": run, "checkpoint": "step-10.pt", "seed": 7, "shard": "s.tar"}
    with_columns(table, **constant).write_parquet(folder / "samples.parquet")
    write_document(folder / "samples.json", samples_document(run))
    write_steps(folder / "steps.parquet")
    write_document(folder / "config.json", run_config(run, images=m, synthetic=synthetic, annotated=annotated))
    write_document(shards / "shards.json", shards_document(images=m, synthetic=synthetic))
    for path in (*shards.glob("*.parquet"), *folder.glob("*.parquet")):
        record(path)
    return out


def record(path):
    """Record a file's hash in the document that describes it, as its writer does."""
    name, kind = DOCUMENTS.get(path.name, (None, None))
    if name:
        document = path.with_name(name)
        if kind is ProbeDocument and not document.exists():
            write_document(document, ProbeDocument(fingerprint="", hash="", files={}))
        edit_document(document, kind, files=read_document(document, kind).files | file_hashes(path))


def replace_table(path, frame):
    """Replace a table and its hash, as its writer does."""
    frame.write_parquet(path)
    record(path)


def write_images(path, train, annotated):
    """images.parquet of one subset, with or without annotations."""
    tone = pl.col("skin_tone")
    group = pl.when(tone < 4).then(pl.lit("light")).when(tone < 7).then(pl.lit("medium"))
    images = with_columns(train, status="packed", shard="a.tar", family="GANs", subset="<b>S</b>")
    images = images.with_columns(skin_group=group.otherwise(pl.lit("dark")))
    if not annotated:
        images = images.drop("skin_group", *(name for name in train if name != "key"))
    images.write_parquet(path)


def write_steps(path):
    """steps.parquet of 50 steps of 32 images."""
    steps = {"step": np.arange(1, 51), "images": np.arange(1, 51) * 32, "seconds": np.arange(1, 51) * 0.5}
    steps |= {name: np.linspace(1, 0.5, 50) for name in ("loss_d", "loss_g", "d_real", "d_fake")}
    steps |= {"images_per_s": np.full(50, 64.0), "data_wait": np.full(50, 0.02)}
    pl.DataFrame(steps).write_parquet(path)


def run_config(run, images=1200, synthetic=True, annotated=True):
    """config.json of a finished run."""
    return RunConfig(
        name=run,
        status="finished",
        started="2026-01-01",
        command="fairface train",
        options={"seed": 1},
        versions={"torch": "2"},
        device="cpu",
        data=DataSource(
            manifest=MANIFEST,
            images=images,
            synthetic=synthetic,
            root="data",
            annotated=images if annotated else 0,
        ),
    )


def shards_document(images=1200, synthetic=True):
    """shards.json of one shard."""
    return ShardsDocument(
        manifest=MANIFEST,
        files={},
        fingerprint="",
        order="",
        synthetic=synthetic,
        root="data",
        options={},
        images_found=images,
        unreadable=[],
        tables=[],
        rows=images,
        rows_repeated=0,
        rows_disagreeing=0,
        rows_uncoded=0,
        matched=images,
        unmatched={},
        images=images,
        rejected={},
        annotated=images,
        bytes=0,
        shards=[],
        seconds=1.0,
        created="2026-01-01",
    )


def samples_document(run="first", manifest=MANIFEST, files=(), **options):
    """samples.json; `options` are fields such as `shares`."""
    return SamplesDocument(
        run=run,
        checkpoint="step-10.pt",
        sha256="cd" * 32,
        seed=7,
        count=400,
        weights="ema",
        image_size=64,
        fingerprint=SAMPLES,
        step=10,
        manifest=manifest,
        command="fairface sample",
        shards=[],
        files=dict(files),
        **options,
    )


def predictions_document(**options):
    """predictions.json of a detector that was trained on the images."""
    about = {"images": 300, "real": 150, "fake": 150, "created": "2026-01-01", "command": "fairface detect"}
    return PredictionsDocument(**{"files": {}, "manifest": MANIFEST, **about, **options})


def labels_document(source, run=None, evaluated=False, **options):
    """labels.json of `fairface label`, before or after the labellers were evaluated."""
    about = {"files": {}, "images_hash": SAMPLES if source == "generated" else MANIFEST} | options
    return LabelsDocument(
        source=source,
        run=run,
        labeller=LABELLER,
        size=64,
        images=400,
        fingerprint="",
        skin_version=1,
        evaluated=evaluated,
        **about,
    )


def edit_document(path, kind, **changes):
    """Replace fields of a document on disk."""
    write_document(path, replace(read_document(path, kind), **changes))


def edit_config(out, run="first", **changes):
    """Replace fields of a run's config.json."""
    edit_document(out / "runs" / run / "config.json", RunConfig, **changes)


def build(out, *runs, force=False):
    """Build the page of an OUT folder."""
    return page.build(Workspace(out), runs=runs, force=force)


def text_of(html):
    """The text of a page, without its tags."""
    return re.sub(r"\s+", " ", re.sub(r"<style>.*?</style>|<[^>]*>", " ", html, flags=re.S))


def page_text(out, *runs):
    """The text of the page of an OUT folder, built before."""
    return text_of(build(out, *runs).page.read_text())
