"""Labels shards, samples and plain folders with one labeller, so that both sides of a comparison err alike."""

import shutil
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import click
import polars as pl
import torch
from tqdm import tqdm

from models import clip, skin
from pipeline import labeller as embedded
from pipeline import probe, readings, runs
from pipeline.feed import Shards, decode
from pipeline.machine import command_line, device_of
from shards import pack, ranks
from shards.files import (
    LABELS,
    alone,
    fingerprint,
    read_json,
    read_parquet,
    replacing,
    whole_parquet,
    write_json,
    write_parquet,
)

DEFAULT_MODEL, DEFAULT_TAG = "ViT-B-32-quickgelu", "openai"
LABELLED = ("labels.parquet", "pixels.parquet", "embeddings.parquet")  # what labelling leaves, beside labels.json


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
) -> tuple[list[dict], pl.DataFrame | None]:
    """Labels the training images and a run's samples alike, at the run's image size.

    Returns both labels.json, and on rank 0 the rows of labellers.parquet, if enough images are annotated for any.
    Three labellers speak: CLIP by prompts, a probe on its embeddings where images are annotated, and the pixels. With
    `limit`, only that many of the training images are labelled: the first, which the global shuffle of packing has
    made a random sample. Several processes (torchrun) share the shards.
    """
    with ranks.group(), ExitStack() as stack:
        target = device_of(device)
        folder = runs.folder_of(out, run)
        ranks.from_first(lambda: stack.enter_context(alone(out / "shards", "labelling")), lambda _: None)
        samples = read_json(folder / "samples.json")
        if not samples:
            raise ValueError(f"{folder} has no samples yet: run `fairface sample` first")
        packed, train = read_json(out / "shards" / "shards.json"), Shards.open(out / "shards")
        generated = Shards.of_samples(folder / "samples", samples["shards"])
        shown = progress and ranks.rank() == 0
        asked = (packed["drawn"], model, pretrained, prompts, target, shown)
        # rank 0 first, which may have to fit or to fetch what the others then find
        who = ranks.from_first(lambda: choose(*asked), lambda _: None) or choose(*asked)
        first = ranks.from_first(lambda: who.name)
        ranks.together(lambda: same_labeller(who.name, first))
        if not force:
            for place in (out / "shards", folder):
                keep_others(place, who.name, asked=bool(model or pretrained or prompts))
        keys = read_parquet(out / "shards" / "images.parquet").filter(status="packed")["key"][:limit]
        common = {"size": samples["image_size"], "labeller": who.name, "skin": skin.VERSION}
        sides = [
            Side(out / "shards", train, keys, common | {"source": "train", "run": None, "of": packed["manifest"]}),
            Side(
                folder,
                generated,
                read_parquet(folder / "samples.parquet")["key"],
                common | {"source": "generated", "run": folder.name, "of": samples["fingerprint"]},
            ),
        ]
        done = [side.label(who, target, batch, force, shown) for side in sides]
        return done, ranks.from_first(lambda: probe.judge(out / "shards", folder, force), lambda _: None)


def same_labeller(mine: str, first: str) -> None:
    """ValueError where the processes of one job would label differently."""
    if mine != first:
        raise ValueError(f"this process has the labeller {mine} and the first one {first}: give all the same cache")


def keep_others(folder: Path, name: str, asked: bool) -> None:
    """ValueError where labels of another model would be replaced by those of the default one, which nobody `asked` for.

    Those of an older embedded labeller are not worth keeping; imported ones can't be made again.
    """
    there = (read_json(folder / "labels.json") or {}).get("labeller")
    if str(there).startswith("imported "):
        raise ValueError(f"{folder} has labels {there}: choose another --run, or replace them with --force")
    if asked:
        return
    if there not in (None, name) and not (there.startswith("drawn-faces") and name.startswith("drawn-faces")):
        raise ValueError(
            f"{folder} has labels of {there}: name that model again (--clip-model, --clip-pretrained, --prompts), or "
            f"replace them by labels of {name} with --force"
        )


@dataclass
class Side:
    """Images of one folder that are to be labelled, and what identifies their labels."""

    folder: Path
    shards: Shards
    keys: pl.Series  # of the first images in tar order
    stamp: dict

    def label(self, who: clip.Labeller, device: torch.device, batch: int, force: bool, progress: bool) -> dict:
        """Writes labels.parquet, pixels.parquet and embeddings.parquet, if anything changed; returns labels.json.

        Every shard's labels are kept as soon as they are there: after a kill only what is missing is labelled.
        """
        stamp = self.stamp | {"images": len(self.keys)}
        mark = fingerprint(stamp)
        done = read_json(self.folder / "labels.json") or {}
        there = all(whole_parquet(self.folder / name) for name in LABELLED)
        if ranks.from_first(lambda: done.get("fingerprint") == mark and there and not force):
            ranks.from_first(lambda: shutil.rmtree(self.folder / ".labels", ignore_errors=True))
            return done | {"unchanged": True}
        parts = self.folder / ".labels" / mark
        if force:
            ranks.from_first(lambda: shutil.rmtree(parts, ignore_errors=True))
        ranks.together(lambda: self.label_parts(parts, who, device, batch, progress))
        ranks.from_first(lambda: self.gather(parts, stamp | {"fingerprint": mark, "command": command_line()}))
        return stamp | {"fingerprint": mark, "unchanged": False}

    def label_parts(self, parts: Path, who: clip.Labeller, device: torch.device, batch: int, progress: bool) -> None:
        """One Parquet file a shard: every rank takes its share of those that are not there yet."""
        first = 0
        with tqdm(total=len(self.keys), unit="img", desc=f"labelling with {who.name}", disable=not progress) as bar:
            for number, shard in enumerate(self.shards.shards):
                keys = self.keys[first : first + shard["images"]]
                path = parts / f"{number:06d}.parquet"
                if len(keys) and number % ranks.world() == ranks.rank() and not whole_parquet(path):
                    one, _ = self.shards.holding(range(first, first + len(keys)))
                    write_parquet(path, read_labels(one, keys, who, self.stamp["size"], device, batch))
                first += shard["images"]
                bar.update(len(keys))

    def gather(self, parts: Path, stamp: dict) -> None:
        """Puts the parts together; labels.json comes last, and says that all is there."""
        table = pl.concat([read_parquet(path) for path in sorted(parts.glob("*.parquet"))])
        if not table["key"].equals(self.keys, check_dtypes=False, null_equal=True):
            raise ValueError(
                f"some labels of {self.folder} are missing, as if another process labelled it too: run it again"
            )
        for name in LABELS:
            (self.folder / name).unlink(missing_ok=True)
        # what a network makes of a face is as good as random: it hardly packs
        write_parquet(self.folder / "embeddings.parquet", table.select("key", "embedding"), packed=False)
        pixels = table.select("key", skin_tone="pixel_tone", typology_angle="typology_angle")
        readings.write(self.folder / "pixels.parquet", pixels, stamp, "pixels", f"pixels-{skin.VERSION}")
        labels = table.drop("embedding", "pixel_tone", "typology_angle")
        readings.write(self.folder / "labels.parquet", labels, stamp, "clip", stamp["labeller"])
        write_json(self.folder / "labels.json", stamp)
        shutil.rmtree(self.folder / ".labels")


def read_labels(
    shards: Shards, keys: pl.Series, who: clip.Labeller, size: int, device: torch.device, batch: int
) -> pl.DataFrame:
    """Labels the first len(keys) images in tar order.

    key, classes and probabilities as `readings.frame` has them, float16 `embedding`, `pixel_tone`, `typology_angle`.
    """
    found, embeddings, tones, angles, left = [], [], [], [], len(keys)
    for images in decode(shards, size, device, batch):
        images = images[:left]
        probabilities, embedding = who.label(images.permute(0, 3, 1, 2))
        found.append(torch.cat([probabilities[name] for name in clip.CLASSES], 1).float().cpu())
        embeddings.append(embedding.cpu())
        tone, angle = skin.read(images)
        tones.append(tone.cpu())
        angles.append(angle.cpu())
        left -= len(images)
        if not left:
            break
    stacked = torch.cat(embeddings).numpy()
    return readings.frame(keys, torch.cat(found).numpy()).with_columns(
        pl.Series("embedding", stacked, dtype=pl.Array(pl.Float16, stacked.shape[1])),
        pl.Series("pixel_tone", torch.cat(tones).numpy(), dtype=pl.Int8),
        pl.Series("typology_angle", torch.cat(angles).numpy(), dtype=pl.Float32),
    )


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
        labels = read_labels(Shards.open(shards), images["key"], who, who.size, target, batch).drop("embedding")
    paths = pl.Series("Image Path", [str(folder / path) for path in images["path"]])
    table = labels.drop("key").insert_column(0, paths).with_columns(labeller=pl.lit(who.name)).sort("Image Path")
    with replacing(csv) as file:
        table.write_csv(file)
    return {"images": len(table), "rejected": packed["rejected"], "labeller": who.name}
