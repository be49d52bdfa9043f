"""Every speed figure, beside a plain baseline that does the same work in the same run."""

import io
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count, cycle, islice, repeat
from pathlib import Path

import open_clip
import torch
import webdataset
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2
from torchvision.utils import save_image
from tqdm import tqdm

from models import clip
from pipeline.bench.detect import bench_detect
from pipeline.bench.estimates import bench_estimates
from pipeline.bench.measure import ROUNDS, Row, cells, compare, write_section
from pipeline.bench.packing import COPIES, bench_join, bench_pack, bench_scale, bench_verify
from pipeline.bench.report import bench_report
from pipeline.data import loader, shard_set
from pipeline.data.sampler import NaturalSampler
from pipeline.gan import sample
from pipeline.gan.train import resolve_auto
from pipeline.gan.trainer import PRESETS, GanTrainer, step_flop
from pipeline.labelling import embedded, label
from pipeline.runtime import device_name, processor, resolve_device, tune_allocator
from shards import pack
from shards.atomic_io import read_parquet, write_json
from shards.concurrency import available_cpus
from shards.errors import FairfaceError
from shards.synthetic import dataset

SIZE = 64  # pixels of everything after the decoder
# seconds an image of `faces` that an H100 can't go below: 2.28 GFLOP in bf16; at least 2.2, at most 4.5 us of traffic
H100_FLOORS = {"arithmetic": 2.8e-6, "memory traffic": 2.2e-6}


class Folder(Dataset):
    """The plain way to read images: Pillow, then torchvision's Resize, CenterCrop and Normalize, one at a time."""

    def __init__(self, root: Path):
        self.paths = sorted(root.rglob("*.jpg"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        return plain_transform(Image.open(self.paths[index]).convert("RGB"))


plain_transform = v2.Compose(
    [
        v2.Resize(SIZE, antialias=True),
        v2.CenterCrop(SIZE),
        v2.PILToTensor(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize([0.5] * 3, [0.5] * 3),
    ]
)


def decode_sample(member: dict) -> torch.Tensor:
    """The plain way to read a webdataset sample."""
    return plain_transform(Image.open(io.BytesIO(member["jpg"])).convert("RGB"))


@dataclass
class Bench:
    """What the stages share: a folder of drawn 256x256 JPEGs, their shards, a device."""

    root: Path
    scratch: Path
    device: torch.device

    @property
    def shards(self) -> shard_set.ShardSet:
        if not (self.scratch / "shards" / "shards.json").exists():
            pack.pack(self.root, self.scratch / "shards", pack.PackConfig(shard_images=256), progress=False)
        return shard_set.ShardSet.open(self.scratch / "shards")


def bench_feed(bench: Bench) -> Iterator[Row]:
    """DALI's streaming and the resident feed against webdataset, Pillow and DataLoader with a worker a core."""
    shards, device, batch = bench.shards, bench.device, 128

    order = NaturalSampler([shard["images"] for shard in shards.shards], 0)

    def streaming() -> int:
        started = loader.streaming_feed(shards, order, SIZE, batch, device)(0)
        return sum(len(loader.to_unit_range(images)) for images in islice(started, shards.images // batch))

    batches = loader.resident_feed(shards, order, SIZE, batch, device, progress=False)(0)

    def resident() -> int:
        return sum(len(loader.to_unit_range(images)) for images in islice(batches, 20 * shards.images // batch))

    def plain() -> int:
        urls = [str(shards.folder / name) for name in shards.names]
        dataset = webdataset.WebDataset(urls, shardshuffle=False, workersplitter=webdataset.split_by_worker)
        loader = DataLoader(dataset.map(decode_sample), batch_size=batch, num_workers=min(available_cpus(), len(urls)))
        return sum(len(images.to(device)) for images in loader)

    note = "to float32 batches on the device"
    yield compare("feed", "streaming", streaming, plain, device, note)
    yield compare("feed", "resident, after the first epoch", resident, plain, device, note)


class PlainLoop:
    """The training loop as published tutorials and the original have it: eager, fp32, sigmoid and BCELoss."""

    def __init__(self, trainer: GanTrainer, device: torch.device):
        latent_dim, g, d = trainer.options.latent_dim, trainer.nets.g, trainer.nets.d
        g.net[0] = nn.ConvTranspose2d(latent_dim, g.net[0].out_channels, 4, 1, 0, bias=False)
        d.net[-1] = nn.Conv2d(d.net[-1].in_channels, 1, 4, 1, 0, bias=False)
        self.g, self.d = (net.to(device, memory_format=torch.contiguous_format) for net in (g, d))
        self.adams = [torch.optim.Adam(net.parameters(), 2e-4, (0.5, 0.999)) for net in (self.g, self.d)]
        self.loss, self.device, self.latent_dim = nn.BCELoss(), device, latent_dim

    def step(self, images: torch.Tensor) -> int:
        images = images.to(self.device)
        real, fake = torch.ones(len(images), device=self.device), torch.zeros(len(images), device=self.device)
        drawn = self.g(torch.randn(len(images), self.latent_dim, device=self.device))
        self.d.zero_grad()
        (self.loss(self.d(images).sigmoid(), real) + self.loss(self.d(drawn.detach()).sigmoid(), fake)).backward()
        self.adams[1].step()
        self.g.zero_grad()
        self.loss(self.d(drawn).sigmoid(), real).backward()
        self.adams[0].step()
        return len(images)


def bench_train(bench: Bench) -> Iterator[Row]:
    """The whole trainer against the plain loop at equal width, batch and data; and how near it is to its limits."""
    tune_allocator()
    for name, steps in (("sketch", 100), ("faces", 4 if bench.device.type == "cpu" else 300)):
        yield from bench_preset(bench, name, steps)


def bench_preset(bench: Bench, name: str, steps: int) -> Iterator[Row]:
    """One preset's rates: the trainer, its step alone on a fixed batch, each feed alone, each with the step."""
    shards, device = bench.shards, bench.device
    options, _ = resolve_auto(PRESETS[name], 10**9 if device.type == "cuda" else steps, shards, device)
    trainer, plain = GanTrainer(options, device), PlainLoop(GanTrainer(options, device), device)
    order = NaturalSampler([shard["images"] for shard in shards.shards], 0)
    feeds = {
        kind: loader.FEEDS[kind](shards, order, options.image_size, options.batch_size, device)(0)
        for kind in ("resident", "streaming")
    }
    loader = DataLoader(Folder(bench.root), options.batch_size, shuffle=True, num_workers=1, drop_last=True)
    forever, numbers, fixed = cycle_loader(loader), count(), next(feeds["resident"]).clone()

    def together(batches: Iterator[torch.Tensor], steps: int) -> int:
        return sum(len(images) for images in islice(batches, steps) if trainer.step(next(numbers), images).any())

    def plainly(steps: int) -> int:
        return sum(plain.step(images) for images in islice(forever, steps))

    for batches in feeds.values():  # compiles
        together(batches, 2)
    plainly(2)  # starts the worker
    how = "compiled" if options.compile else "eager"
    about = f"{options.precision}, {how}, width {options.width_g}/{options.width_d}"
    ours, theirs = partial(together, feeds["resident"], steps), partial(plainly, steps)
    row = compare("train", f"{name}: batch {options.batch_size}", ours, theirs, device, about)
    yield row
    # short turns, many of them: what is asked for here is smaller than the machine's own ups and downs
    turn = max(steps // 5, 1)
    alone = partial(together, repeat(fixed), turn)
    for kind, batches in feeds.items():
        feeding = partial(fed, batches, max(steps, 50))  # many more than are read ahead
        yield compare("train", f"{name}: the {kind} feed alone, against the step alone", feeding, alone, device, about)
        both, figure = partial(together, batches, turn), f"{name}: step with the {kind} feed, against the step alone"
        yield compare("train", figure, both, alone, device, about, 5 * ROUNDS)
    work = step_flop(options)
    yield Row(
        "train", f"{name}: arithmetic", "GFLOP/s", row.value * work / 1e9, note=f"{work / 1e9:.3f} GFLOP an image"
    )
    if name == "faces" and any(chip in device_name(device) for chip in ("H100", "H200", "GH200")):
        for floor, seconds in H100_FLOORS.items():
            yield Row("train", f"{name}: share of the {floor} floor", "%", 100 * row.value * seconds)


def fed(batches: Iterator[torch.Tensor], steps: int) -> int:
    return sum(len(images) for images in islice(batches, steps))


def cycle_loader(loader: DataLoader) -> Iterator[torch.Tensor]:
    """The batches of a loader for ever, epoch after epoch."""
    for _ in cycle([None]):
        yield from loader


def bench_sample(bench: Bench) -> Iterator[Row]:
    """Drawing samples into shards against the original's way: its network, a batch of 64, save_image one at a time."""
    tune_allocator()
    device, folder, count = bench.device, bench.scratch / "png", 2048
    folder.mkdir(exist_ok=True)
    for name in ("sketch", "faces"):
        net = GanTrainer(PRESETS[name], device).nets.ema.eval()
        plain = PlainLoop(GanTrainer(PRESETS[name], device), device).g.eval()
        stamp = {"run": name, "checkpoint": "", "seed": 0, "count": count}

        def ours(net=net, stamp=stamp) -> int:
            sample.write_samples(bench.scratch / "samples", net, stamp, None, device, progress=False)
            return count

        def theirs(plain=plain) -> int:
            with torch.no_grad():
                for start in range(0, count, 64):
                    for i, image in enumerate((plain(torch.randn(64, plain.latent_dim, device=device)) + 1) / 2):
                        save_image(image, folder / f"sample_{start + i:05d}.png")
            return count

        about = f"width {PRESETS[name].width_g}, PNG in shards against single files"
        yield compare("sample", name, ours, theirs, device, about)


def bench_label(bench: Bench) -> Iterator[Row]:
    """Labelling through DALI in batches against one image at a time with the text encoded for each."""
    drawn = embedded.load_embedded(bench.device, progress=True)
    yield label_by(bench, "the embedded labeller", drawn, clip.read_prompts("drawn"), embedded.tokenizer(), 2000, 100)
    name, prompts = "ViT-B-32-quickgelu", clip.read_prompts("original")
    tokenizer = open_clip.get_tokenizer(name)
    with torch.random.fork_rng(devices=[]):  # OpenAI's weights would be as fast
        who = clip.Labeller(open_clip.create_model(name), tokenizer, prompts, name, bench.device)
    yield label_by(bench, f"{name}, the original's prompts", who, prompts, tokenizer, 256, 8)


def label_by(
    bench: Bench, name: str, who: clip.Labeller, prompts: dict, tokenizer: Callable, ours: int, theirs: int
) -> Row:
    """A labeller's rate on `ours` images, and on `theirs` in the original's way."""
    shards, paths = bench.shards, sorted(bench.root.rglob("*.jpg"))[:theirs]
    keys = read_parquet(shards.folder / "images.parquet")["key"][:ours]
    some, _ = shards.holding(range(len(keys)))

    def labelled() -> int:
        return len(label.label_shards(some, keys, who, SIZE, bench.device, 256))

    def plainly() -> int:
        for path in paths:
            image = v2.functional.pil_to_tensor(Image.open(path).convert("RGB").resize((SIZE, SIZE)))[None]
            who.text = who.encode_text(tokenizer, prompts)
            who.label(image.to(bench.device))
        return len(paths)

    return compare("label", name, labelled, plainly, bench.device, "DALI and batches of 256, pixels too")


STAGES = {
    "pack": bench_pack,
    "verify": bench_verify,
    "scale": bench_scale,
    "join": bench_join,
    "feed": bench_feed,
    "train": bench_train,
    "sample": bench_sample,
    "label": bench_label,
    "detect": lambda bench: bench_detect(bench.root, bench.scratch, bench.shards, bench.device),
    "estimates": lambda _: bench_estimates(),
    "report": lambda bench: bench_report(bench.scratch),
}


def run(stages: tuple[str, ...], device: str, images: int, json_file: Path | None, markdown: Path | None) -> None:
    """Runs the named stages, or all, and prints their rows; also as JSON, and into a section of a Markdown file."""
    if unknown := set(stages) - set(STAGES):
        raise FairfaceError(f"there is no stage {', '.join(sorted(unknown))}: choose of {', '.join(STAGES)}")
    target, rows = resolve_device(device), []
    with tempfile.TemporaryDirectory(prefix="fairface-bench-") as scratch:
        root = Path(scratch) / "faces"
        dataset.write_dataset(root, images, size=256, quality=95, progress=True)
        bench = Bench(root, Path(scratch), target)
        size = statistics.mean(path.stat().st_size for path in root.rglob("*.jpg")) / 1000
        about = (
            f"{images:,} drawn JPEGs of 256x256 and {size:.0f} kB; for packing and verifying {COPIES} copies of each"
        )
        for name in stages or STAGES:
            for row in STAGES[name](bench):
                rows.append(row)
                tqdm.write(f"{row.stage:7} {row.figure:45} {cells(row)}")
    if json_file:
        write_json(json_file, [asdict(row) for row in rows])
    if markdown:
        write_section(
            markdown, processor() if target.type == "cpu" else f"{device_name(target)}, {processor()}", rows, about
        )
