"""Draws samples from a checkpoint: each a pure function of (checkpoint, seed, index), into shards and Parquet."""

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from itertools import islice
from pathlib import Path

import polars as pl
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from models.dcgan import Generator
from pipeline import checkpoint, runs
from pipeline.machine import device_of, now
from pipeline.order import REQUESTS, SAMPLES, generator
from shards import cpus
from shards.files import digest, fingerprint, read_json, write_json, write_parquet
from shards.tar import TarWriter

BLOCK = 64  # samples that share a generator
SHARD_IMAGES = 8192


def load_generator(path: Path, device: torch.device, weights: str = "ema") -> tuple[Generator, dict]:
    """The generator of a checkpoint in evaluation mode (`weights`: ema or g), and the checkpoint's state."""
    state = checkpoint.load(path, device)
    options = state["options"]
    net = Generator(options["latent_dim"], options["width_g"], options["image_size"], len(state.get("classes") or ()))
    net.load_state_dict(state["nets"][weights])
    return net.to(device, memory_format=torch.channels_last).eval().requires_grad_(False), state


def latents(seed: int, first: int, count: int, latent_dim: int) -> Tensor:
    """z ~ N(0, 1) of samples `first` to `first + count`: float32 [count, latent_dim], on the CPU.

    Every BLOCK of them has a generator of its own, so that any sample can be drawn again without those before it.
    """
    blocks = range(first // BLOCK, (first + count - 1) // BLOCK + 1)
    drawn = [torch.randn(BLOCK, latent_dim, generator=generator("cpu", seed, SAMPLES, block)) for block in blocks]
    start = first % BLOCK
    return torch.cat(drawn)[start : start + count]


def requests(shares: dict[str, float], seed: int, first: int, count: int) -> Tensor:
    """The classes (their numbers) that samples are asked for: int64 [count], drawn by `shares`, block by block too."""
    weights = torch.tensor(list(shares.values()), dtype=torch.float64)
    blocks = range(first // BLOCK, (first + count - 1) // BLOCK + 1)
    drawn = [
        torch.multinomial(weights, BLOCK, replacement=True, generator=generator("cpu", seed, REQUESTS, block))
        for block in blocks
    ]
    start = first % BLOCK
    return torch.cat(drawn)[start : start + count]


def generate(
    net: Generator,
    seed: int,
    first: int,
    count: int,
    device: torch.device,
    batch: int = 256,
    shares: dict[str, float] | None = None,
) -> Iterator[Tensor]:
    """Samples `first` to `first + count` as uint8 [<= batch, S, S, 3] on the CPU, in float32 arithmetic.

    A conditional generator is asked for its classes by `shares`.
    """
    with torch.inference_mode():
        for start in range(first, first + count, batch):
            size = min(batch, first + count - start)
            z = latents(seed, start, size, net.latent_dim).to(device)
            asked = (requests(shares, seed, start, size).to(device),) if net.classes else ()
            pixels = ((net(z, *asked) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
            yield pixels.permute(0, 2, 3, 1).contiguous().cpu()


def asked_for(state: dict, groups: tuple[str, ...]) -> dict[str, float] | None:
    """The shares in which a checkpoint's classes are drawn: those it was trained on, or equal ones of `groups`.

    None for an unconditional generator; ValueError for a group that it does not know.
    """
    classes = state.get("classes")
    if not groups:
        return classes
    if not classes:
        raise ValueError("--group goes with a generator trained with --conditional; this one takes no label")
    if unknown := [group for group in groups if group not in classes]:
        raise ValueError(f"--group {unknown[0]}: the generator knows {', '.join(classes)}")
    return {group: float(group in groups) for group in classes}


def encode(pixels: Tensor) -> bytes:
    """uint8 [S, S, 3] as PNG."""
    file = BytesIO()
    Image.fromarray(pixels.numpy()).save(file, "PNG", compress_level=3)
    return file.getvalue()


def sample(
    out: Path,
    run: str | None = None,
    path: Path | None = None,
    count: int = 2000,
    seed: int = 0,
    batch: int = 256,
    weights: str = "ema",
    png_dir: Path | None = None,
    device: str = "auto",
    force: bool = False,
    progress: bool = True,
    groups: tuple[str, ...] = (),
) -> dict:
    """Draws `count` samples of a run's newest checkpoint (or of `path`) into its `samples/` and samples.parquet.

    With `png_dir` they are also written there, named sample_00000.png and so on, as the original does. Returns
    samples.json with `unchanged` set.
    """
    home = None if path else runs.folder_of(out, run)
    path = path or runs.newest_checkpoint(home)
    net, state = load_generator(path, target := device_of(device), weights)
    folder = home or run_folder(out, path, state)
    stamp = {"run": folder.name, "checkpoint": path.name, "sha256": digest(path)}
    stamp |= {"seed": seed, "count": count, "weights": weights, "image_size": net.image_size}
    if shares := asked_for(state, groups):
        stamp |= {"shares": shares}
    done = read_json(folder / "samples.json")
    same = done and not force and done["fingerprint"] == fingerprint(stamp) and whole(folder, done)
    if not same:
        tars = write_samples(folder, net, stamp, batch, target, progress)
        done = stamp | {"step": state["step"], "fingerprint": fingerprint(stamp), "shards": tars}
        write_json(folder / "samples.json", done)
    if png_dir:
        write_folder(png_dir, net, seed, count, batch, target, shares)
    return done | {"folder": str(folder), "unchanged": bool(same)}


def run_folder(out: Path, path: Path, state: dict) -> Path:
    """The folder of a checkpoint's run; one from outside OUT becomes a run there, named after run and file."""
    path = path.resolve()
    folder = out / "runs" / path.parent.parent.name
    if path.parent.name == "checkpoints" and folder.resolve() == path.parent.parent:
        return folder
    folder = out / "runs" / f"{Path(str(state['run'])).name}-{path.stem}"
    config = {"run": folder.name, "status": "finished", "checkpoint": str(path), "steps": state["step"]}
    config |= {key: state[key] for key in ("options", "data")}
    old = read_json(folder / "config.json") or {}
    if {key: old.get(key) for key in config} != config:
        write_json(folder / "config.json", config | {"started": now()})
    return folder


def whole(folder: Path, done: dict) -> bool:
    """Whether the samples that samples.json names are all there."""
    tars = [folder / "samples" / shard["name"] for shard in done["shards"]]
    sizes = [tar.stat().st_size if tar.exists() and tar.with_suffix(".idx").exists() else None for tar in tars]
    return (folder / "samples.parquet").exists() and sizes == [shard["bytes"] for shard in done["shards"]]


def write_samples(folder: Path, net: Generator, stamp: dict, batch: int, device: torch.device, progress: bool) -> list:
    """Writes the tars and samples.parquet; only then do the old ones go, with the labels that described them."""
    fresh, count, rows, tars = folder / ".samples", stamp["count"], [], []
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    shares = stamp.get("shares")
    images = enumerate(encoded(generate(net, stamp["seed"], 0, count, device, batch, shares)))
    try:
        with tqdm(total=count, unit="img", desc="sampling", disable=not progress) as bar:
            for number in range(-(-count // SHARD_IMAGES)):
                shard = f"samples-{number:06d}.tar"
                with TarWriter(fresh / shard) as tar:
                    for index, png in islice(images, SHARD_IMAGES):
                        tar.add(f"{index:08d}", "png", png)
                        rows.append((f"{index:08d}", index, shard))
                        bar.update()
                held = min(count - number * SHARD_IMAGES, SHARD_IMAGES)
                tars.append({"name": shard, "images": held, "bytes": (fresh / shard).stat().st_size})
        for name in ("samples.json", "samples.parquet", "labels.json", "labels.parquet", "embeddings.parquet"):
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / "samples", ignore_errors=True)
        fresh.rename(folder / "samples")
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    frame = pl.DataFrame(rows, schema={"key": pl.String, "index": pl.Int64, "shard": pl.String}, orient="row")
    about = {
        "run": pl.lit(stamp["run"]),
        "checkpoint": pl.lit(stamp["checkpoint"]),
        "seed": pl.lit(stamp["seed"], pl.Int64),
    }
    if shares:
        numbers = pl.Series(requests(shares, stamp["seed"], 0, count).numpy())
        requested = numbers.replace_strict(dict(enumerate(shares)), return_dtype=pl.String)
    else:
        requested = pl.lit(None, pl.String)
    rows = frame.select("key", **about, index="index", shard="shard", requested=requested)
    write_parquet(folder / "samples.parquet", rows)
    return tars


def encoded(batches: Iterator[Tensor]) -> Iterator[bytes]:
    """PNG files of the samples in order; while one batch is encoded by threads, the next is generated."""
    with ThreadPoolExecutor(cpus()) as pool:
        waiting = None
        for images in batches:
            coming = pool.map(encode, images)
            yield from waiting or ()
            waiting = coming
        yield from waiting or ()


def write_folder(
    folder: Path,
    net: Generator,
    seed: int,
    count: int,
    batch: int,
    device: torch.device,
    shares: dict[str, float] | None,
) -> None:
    """The same samples as a plain folder of PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, png in enumerate(encoded(generate(net, seed, 0, count, device, batch, shares))):
        (folder / f"sample_{index:05d}.png").write_bytes(png)
