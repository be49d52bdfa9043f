"""Labels shards, samples and plain folders with one labeller, so that both sides of a comparison err alike."""

import tempfile
from pathlib import Path

import click
import numpy as np
import polars as pl
import torch
from tqdm import tqdm

from models import clip
from pipeline import labeller as embedded
from pipeline import runs
from pipeline.feed import Shards, decode
from pipeline.machine import device_of
from shards import pack
from shards.files import fingerprint, read_json, read_parquet, replacing, write_json, write_parquet

DEFAULT_MODEL, DEFAULT_TAG = "ViT-B-32-quickgelu", "openai"
PROBABILITIES = [
    f"p_{'tone_' if attribute == 'skin_tone' else ''}{name}"
    for attribute, names in clip.CLASSES.items()
    for name in names
]


def choose(
    drawn: bool, model: str | None, pretrained: str | None, prompts: str | None, device: torch.device, progress: bool
) -> clip.Labeller:
    """The labeller that was asked for; else the embedded one for drawn faces and OpenAI's CLIP for real ones.

    Real faces fall back to the embedded labeller where CLIP's weights can't be had, with a warning that the
    report repeats: its labels of real faces mean little.
    """
    if model == "embedded" or (drawn and not (model or pretrained)):
        if pretrained or prompts:
            raise ValueError("--clip-pretrained and --prompts go with another --clip-model than the embedded labeller")
        return embedded.embedded(device, progress=progress)
    asked = model or pretrained
    try:
        return clip.load(model or DEFAULT_MODEL, pretrained or DEFAULT_TAG, prompts or "faces", device)
    except click.ClickException as error:
        if asked or prompts:
            raise
        click.echo(
            f"Warning: {error.message}. Until then the embedded labeller serves, which was made for drawn faces: "
            "do not believe its labels of real ones.",
            err=True,
        )
        return embedded.embedded(device, progress=progress)


def label(
    out: Path,
    run: str | None = None,
    model: str | None = None,
    pretrained: str | None = None,
    prompts: str | None = None,
    device: str = "auto",
    batch: int = 256,
    limit: int | None = None,
    force: bool = False,
    progress: bool = True,
) -> list[dict]:
    """Labels the training images and a run's samples alike, at the run's image size; returns both labels.json.

    With `limit`, only that many of the training images are labelled: the first, which the global shuffle of
    packing has made a random sample.
    """
    target = device_of(device)
    folder = runs.folder_of(out, run)
    samples = read_json(folder / "samples.json")
    if not samples:
        raise ValueError(f"{folder} has no samples yet: run `fairface sample` first")
    packed = read_json(out / "shards" / "shards.json")
    train = Shards.open(out / "shards")
    size, who = samples["image_size"], choose(packed["drawn"], model, pretrained, prompts, target, progress)
    generated = Shards.of_samples(folder / "samples", samples["shards"])
    images = read_parquet(out / "shards" / "images.parquet").filter(status="packed")["key"][:limit]
    keys = read_parquet(folder / "samples.parquet")["key"]
    common = {"who": who, "size": size, "device": target, "batch": batch, "force": force, "progress": progress}
    return [
        label_shards(out / "shards", train, images, "train", None, packed["manifest"], **common),
        label_shards(folder, generated, keys, "generated", folder.name, samples["fingerprint"], **common),
    ]


def label_shards(
    folder: Path,
    shards: Shards,
    keys: pl.Series,
    source: str,
    run: str | None,
    identity: str,
    *,
    who: clip.Labeller,
    size: int,
    device: torch.device,
    batch: int,
    force: bool,
    progress: bool,
) -> dict:
    """Writes labels.parquet and embeddings.parquet of the images `keys` into `folder`, if anything changed."""
    stamp = {"source": source, "run": run, "labeller": who.name, "size": size, "images": len(keys), "of": identity}
    done = read_json(folder / "labels.json")
    there = all((folder / name).exists() for name in ("labels.parquet", "embeddings.parquet"))
    if done and done["fingerprint"] == fingerprint(stamp) and there and not force:
        return done | {"unchanged": True}
    labels, embeddings = read_labels(shards, keys, who, size, device, batch, progress)
    about = [
        pl.lit(source).alias("source"),
        pl.lit(run, pl.String).alias("run"),
        pl.lit(who.name).alias("labeller"),
        pl.lit(size, pl.Int32).alias("size"),
    ]
    (folder / "labels.json").unlink(missing_ok=True)
    write_parquet(folder / "embeddings.parquet", embeddings)
    write_parquet(folder / "labels.parquet", labels.select("key", *about, pl.exclude("key")))
    write_json(folder / "labels.json", summary := stamp | {"fingerprint": fingerprint(stamp)})
    return summary | {"unchanged": False}


def read_labels(
    shards: Shards, keys: pl.Series, who: clip.Labeller, size: int, device: torch.device, batch: int, progress: bool
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Labels the first len(keys) images in tar order: (key, classes, probabilities) and (key, float16 embedding)."""
    found, embeddings, start = [], [], 0
    with tqdm(total=len(keys), unit="img", desc=f"labelling with {who.name}", disable=not progress) as bar:
        for images in decode(shards.holding(range(len(keys)))[0], size, device, batch):
            images = images[: len(keys) - start]
            probabilities, embedding = who.label(images.permute(0, 3, 1, 2))
            found.append(torch.cat([probabilities[name] for name in clip.CLASSES], 1).float().cpu())
            embeddings.append(embedding.cpu())
            start += len(images)
            bar.update(len(images))
            if start == len(keys):
                break
    stacked = torch.cat(embeddings).numpy()
    vectors = pl.Series("embedding", stacked, dtype=pl.Array(pl.Float16, stacked.shape[1]))
    return classes(keys, torch.cat(found).numpy()), pl.DataFrame({"key": keys}).with_columns(vectors)


def classes(keys: pl.Series, probabilities: np.ndarray) -> pl.DataFrame:
    """key, the most probable gender, age, skin_tone (null where no prompt asks), and the probabilities [N, 17]."""
    columns, start = {}, 0
    for attribute, names in clip.CLASSES.items():
        part = probabilities[:, start : start + len(names)]
        start += len(names)
        best = pl.Series(part.argmax(1)).replace_strict(dict(enumerate(names)), return_dtype=pl.String)
        columns[attribute] = best.to_frame("x").select(pl.when(~pl.Series(np.isnan(part[:, 0]))).then("x")).to_series()
    frame = pl.DataFrame({"key": keys, **columns}).with_columns(pl.col("skin_tone").cast(pl.Int8))
    return frame.hstack(pl.DataFrame(probabilities, schema=dict.fromkeys(PROBABILITIES, pl.Float32)))


def label_folder(
    folder: Path,
    csv: Path,
    model: str | None = None,
    pretrained: str | None = None,
    prompts: str | None = None,
    device: str = "auto",
    batch: int = 256,
    progress: bool = True,
) -> dict:
    """Labels every image below a plain folder into a CSV, one row an image; what can't be decoded is counted.

    The images go through temporary shards, so that they are checked and decoded as all others are.
    """
    target = device_of(device)
    with tempfile.TemporaryDirectory(prefix="fairface-") as scratch:
        shards = Path(scratch) / "shards"
        packed = pack.pack(folder, shards, tables=[], progress=progress)
        images = read_parquet(shards / "images.parquet").filter(status="packed")
        who = choose(packed["drawn"], model, pretrained, prompts, target, progress)
        labels, _ = read_labels(Shards.open(shards), images["key"], who, who.size, target, batch, progress)
    paths = pl.Series("Image Path", [str(folder / path) for path in images["path"]])
    table = labels.drop("key").insert_column(0, paths).with_columns(labeller=pl.lit(who.name)).sort("Image Path")
    with replacing(csv) as file:
        table.write_csv(file)
    return {"images": len(table), "rejected": packed["rejected"], "labeller": who.name}
