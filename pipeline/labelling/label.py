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
from pipeline.data.loader import decode_all
from pipeline.data.shard_set import ShardSet
from pipeline.labelling import embedded, probe, tables
from pipeline.runtime import command_line, resolve_device
from pipeline.training import run_directory
from shards import distributed, pack
from shards.atomic_io import (
    LABELS,
    atomic_write,
    exclusive_lock,
    fingerprint,
    is_complete_parquet,
    read_json,
    read_parquet,
    write_json,
    write_parquet,
)
from shards.errors import FairfaceError, WeightsUnavailable

DEFAULT_MODEL, DEFAULT_TAG = "ViT-B-32-quickgelu", "openai"
LABEL_FILES = ("labels.parquet", "pixels.parquet", "embeddings.parquet")  # what labelling leaves, beside labels.json


def choose_labeller(
    drawn: bool, model: str | None, pretrained: str | None, prompts: str | None, device: torch.device, progress: bool
) -> clip.Labeller:
    """The labeller that was asked for; else the embedded one for drawn faces and OpenAI's CLIP for real ones.

    Real faces fall back to the embedded labeller where CLIP's weights can't be had, with a warning that the
    report repeats: its labels of real faces mean little.
    """
    if model == "embedded" or (drawn and not (model or pretrained)):
        if pretrained or prompts:
            raise FairfaceError(
                "--clip-pretrained and --prompts go with another --clip-model than the embedded labeller"
            )
        return embedded.load_embedded(device, progress=progress)
    asked = model or pretrained
    try:
        return clip.load_labeller(model or DEFAULT_MODEL, pretrained or DEFAULT_TAG, prompts or "faces", device)
    except WeightsUnavailable as error:
        if asked or prompts:
            raise
        click.echo(
            f"Warning: {error}. Until then the embedded labeller serves, which was made for drawn faces: "
            "do not believe its labels of real ones.",
            err=True,
        )
        return embedded.load_embedded(device, progress=progress)


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
    with distributed.process_group(), ExitStack() as stack:
        target = resolve_device(device)
        folder = run_directory.folder_of(out, run)
        distributed.run_on_rank0(
            lambda: stack.enter_context(exclusive_lock(out / "shards", "labelling")), lambda _: None
        )
        samples = read_json(folder / "samples.json")
        if not samples:
            raise FairfaceError(f"{folder} has no samples yet: run `fairface sample` first")
        packed, train = read_json(out / "shards" / "shards.json"), ShardSet.open(out / "shards")
        generated = ShardSet.of_samples(folder / "samples", samples["shards"])
        shown = progress and distributed.rank() == 0
        asked = (packed["drawn"], model, pretrained, prompts, target, shown)
        # rank 0 first, which may have to fit or to fetch what the others then find
        who = distributed.run_on_rank0(lambda: choose_labeller(*asked), lambda _: None) or choose_labeller(*asked)
        first = distributed.run_on_rank0(lambda: who.name)
        distributed.run_on_all_ranks(lambda: check_same_labeller(who.name, first))
        if not force:
            for place in (out / "shards", folder):
                check_overwrite(place, who.name, asked=bool(model or pretrained or prompts))
        keys = read_parquet(out / "shards" / "images.parquet").filter(status="packed")["key"][:limit]
        common = {"size": samples["image_size"], "labeller": who.name, "skin": skin.VERSION}
        sides = [
            LabelledSide(
                out / "shards", train, keys, common | {"source": "train", "run": None, "of": packed["manifest"]}
            ),
            LabelledSide(
                folder,
                generated,
                read_parquet(folder / "samples.parquet")["key"],
                common | {"source": "generated", "run": folder.name, "of": samples["fingerprint"]},
            ),
        ]
        done = [side.label(who, target, batch, force, shown) for side in sides]
        return done, distributed.run_on_rank0(
            lambda: probe.evaluate_labellers(out / "shards", folder, force), lambda _: None
        )


def check_same_labeller(mine: str, first: str) -> None:
    """FairfaceError where the processes of one job would label differently."""
    if mine != first:
        raise FairfaceError(f"this process has the labeller {mine} and the first one {first}: give all the same cache")


def check_overwrite(folder: Path, name: str, asked: bool) -> None:
    """FairfaceError where labels of another model would be replaced by those of the default one, which nobody `asked` for.

    Those of an older embedded labeller are not worth keeping; imported ones can't be made again.
    """
    there = (read_json(folder / "labels.json") or {}).get("labeller")
    if str(there).startswith("imported "):
        raise FairfaceError(f"{folder} has labels {there}: choose another --run, or replace them with --force")
    if asked:
        return
    if there not in (None, name) and not (there.startswith("drawn-faces") and name.startswith("drawn-faces")):
        raise FairfaceError(
            f"{folder} has labels of {there}: name that model again (--clip-model, --clip-pretrained, --prompts), or "
            f"replace them by labels of {name} with --force"
        )


@dataclass
class LabelledSide:
    """Images of one folder that are to be labelled, and what identifies their labels."""

    folder: Path
    shards: ShardSet
    keys: pl.Series  # of the first images in tar order
    stamp: dict

    def label(self, who: clip.Labeller, device: torch.device, batch: int, force: bool, progress: bool) -> dict:
        """Writes labels.parquet, pixels.parquet and embeddings.parquet, if anything changed; returns labels.json.

        Every shard's labels are kept as soon as they are there: after a kill only what is missing is labelled.
        """
        stamp = self.stamp | {"images": len(self.keys)}
        mark = fingerprint(stamp)
        done = read_json(self.folder / "labels.json") or {}
        there = all(is_complete_parquet(self.folder / name) for name in LABEL_FILES)
        if distributed.run_on_rank0(lambda: done.get("fingerprint") == mark and there and not force):
            distributed.run_on_rank0(lambda: shutil.rmtree(self.folder / ".labels", ignore_errors=True))
            return done | {"unchanged": True}
        parts = self.folder / ".labels" / mark
        if force:
            distributed.run_on_rank0(lambda: shutil.rmtree(parts, ignore_errors=True))
        distributed.run_on_all_ranks(lambda: self.label_parts(parts, who, device, batch, progress))
        distributed.run_on_rank0(lambda: self.gather(parts, stamp | {"fingerprint": mark, "command": command_line()}))
        return stamp | {"fingerprint": mark, "unchanged": False}

    def label_parts(self, parts: Path, who: clip.Labeller, device: torch.device, batch: int, progress: bool) -> None:
        """One Parquet file a shard: every rank takes its share of those that are not there yet."""
        first = 0
        with tqdm(total=len(self.keys), unit="img", desc=f"labelling with {who.name}", disable=not progress) as bar:
            for number, shard in enumerate(self.shards.shards):
                keys = self.keys[first : first + shard["images"]]
                path = parts / f"{number:06d}.parquet"
                if (
                    len(keys)
                    and number % distributed.world_size() == distributed.rank()
                    and not is_complete_parquet(path)
                ):
                    one, _ = self.shards.holding(range(first, first + len(keys)))
                    write_parquet(path, label_shards(one, keys, who, self.stamp["size"], device, batch))
                first += shard["images"]
                bar.update(len(keys))

    def gather(self, parts: Path, stamp: dict) -> None:
        """Puts the parts together; labels.json comes last, and says that all is there."""
        table = pl.concat([read_parquet(path) for path in sorted(parts.glob("*.parquet"))])
        if not table["key"].equals(self.keys, check_dtypes=False, null_equal=True):
            raise FairfaceError(
                f"some labels of {self.folder} are missing, as if another process labelled it too: run it again"
            )
        for name in LABELS:
            (self.folder / name).unlink(missing_ok=True)
        # what a network makes of a face is as good as random: it hardly packs
        write_parquet(self.folder / "embeddings.parquet", table.select("key", "embedding"), packed=False)
        pixels = table.select("key", skin_tone="pixel_tone", typology_angle="typology_angle")
        tables.write_label_table(self.folder / "pixels.parquet", pixels, stamp, "pixels", f"pixels-{skin.VERSION}")
        labels = table.drop("embedding", "pixel_tone", "typology_angle")
        tables.write_label_table(self.folder / "labels.parquet", labels, stamp, "clip", stamp["labeller"])
        write_json(self.folder / "labels.json", stamp)
        shutil.rmtree(self.folder / ".labels")


def label_shards(
    shards: ShardSet, keys: pl.Series, who: clip.Labeller, size: int, device: torch.device, batch: int
) -> pl.DataFrame:
    """Labels the first len(keys) images in tar order.

    key, classes and probabilities as `readings.frame` has them, float16 `embedding`, `pixel_tone`, `typology_angle`.
    """
    found, embeddings, tones, angles, left = [], [], [], [], len(keys)
    for images in decode_all(shards, size, device, batch):
        images = images[:left]
        probabilities, embedding = who.label(images.permute(0, 3, 1, 2))
        found.append(torch.cat([probabilities[name] for name in clip.CLASSES], 1).float().cpu())
        embeddings.append(embedding.cpu())
        tone, angle = skin.read_skin(images)
        tones.append(tone.cpu())
        angles.append(angle.cpu())
        left -= len(images)
        if not left:
            break
    stacked = torch.cat(embeddings).numpy()
    return tables.label_frame(keys, torch.cat(found).numpy()).with_columns(
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
    target = resolve_device(device)
    with tempfile.TemporaryDirectory(prefix="fairface-") as scratch:
        shards = Path(scratch) / "shards"
        packed = pack.pack(folder, shards, tables=[], progress=progress)
        images = read_parquet(shards / "images.parquet").filter(status="packed")
        who = choose_labeller(packed["drawn"], model, pretrained, prompts, target, progress)
        labels = label_shards(ShardSet.open(shards), images["key"], who, who.size, target, batch).drop("embedding")
    paths = pl.Series("Image Path", [str(folder / path) for path in images["path"]])
    table = labels.drop("key").insert_column(0, paths).with_columns(labeller=pl.lit(who.name)).sort("Image Path")
    with atomic_write(csv) as file:
        table.write_csv(file)
    return {"images": len(table), "rejected": packed["rejected"], "labeller": who.name}
