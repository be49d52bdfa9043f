"""How fast detectors are trained and judged, beside Pillow, DataLoader, eager float32 and a pass for every group."""

from collections.abc import Iterator
from functools import partial
from itertools import count, islice, repeat
from pathlib import Path
from statistics import median

import polars as pl
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

import sql
from models.detectors import Labels
from pipeline.bench.measure import ROUNDS, Row, apart, compare, rate
from pipeline.data.loader import FEEDS, DecoderConfig
from pipeline.data.sampler import NaturalSampler
from pipeline.data.shard_set import ShardSet
from pipeline.detection import evaluate, train
from pipeline.detection.trainer import DetectorOptions, DetectorTrainer, build_detector
from pipeline.runtime import resolve_device, tune_allocator
from shards.annotations import intersection
from shards.atomic_io import read_parquet, write_parquet
from shards.concurrency import available_cpus

SIZE, GROUPS = 256, 6


class Files(Dataset):
    """Faces from single files, and whether each is a fake: every other one, for speed's sake."""

    def __init__(self, paths: list[Path]):
        self.paths = paths
        self.transform = v2.Compose(
            [
                v2.Resize((SIZE, SIZE), antialias=True),
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize([0.5] * 3, [0.5] * 3),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.open(self.paths[index]).convert("RGB")), index % 2


def plain_training(root: str, device: str, batch: int, steps: int) -> float:
    """Images a second of the plain loop, after two steps, in a process that nothing was tuned in."""
    torch.backends.cudnn.benchmark = True
    target = resolve_device(device)
    net = build_detector(DetectorOptions(from_scratch=True), []).to(target, memory_format=torch.contiguous_format)
    sgd = torch.optim.SGD(net.parameters(), 5e-4, 0.9, weight_decay=5e-3)
    files = Files(sorted(Path(root).rglob("*.jpg")))
    loader = DataLoader(
        files,
        batch,
        shuffle=True,
        num_workers=max(available_cpus() - 1, 1),
        drop_last=True,
        pin_memory=target.type == "cuda",
    )
    batches = (pair for _ in repeat(None) for pair in loader)

    def work(steps: int) -> int:
        for images, fake in islice(batches, steps):
            loss = torch.nn.functional.binary_cross_entropy_with_logits(net(images.to(target)), fake.to(target).float())
            sgd.zero_grad()
            loss.backward()
            sgd.step()
            loss.item()  # as the benchmark sums it
        return steps * batch

    work(2)
    return rate(partial(work, steps), target)


def bench_detect(root: Path, scratch: Path, shards: ShardSet, device: torch.device) -> Iterator[Row]:
    """Xception's training at 256 pixels, and the judging of all groups, on drawn JPEGs."""
    tune_allocator()
    yield from training(root, shards, device)
    yield judging(root, scratch, shards, device)


def training(root: Path, shards: ShardSet, device: torch.device) -> Iterator[Row]:
    """The whole loop against the plain one, and against its own step alone."""
    on_gpu = device.type == "cuda"
    batch, steps = (128, 30) if on_gpu else (8, 6)
    options = train.resolve_auto(DetectorOptions(batch_size=batch, from_scratch=True, feed="streaming"), None, device)
    trainer, numbers = DetectorTrainer(options, [1] * GROUPS, device, 100), count()
    order = NaturalSampler([shard["images"] for shard in shards.shards], 0)
    feeding = FEEDS["streaming"](shards, order, SIZE, batch, device)(0)
    known = Labels(*(torch.arange(batch, device=device) % 2 for _ in Labels._fields))
    fixed = next(feeding).clone()

    def work(batches: Iterator[torch.Tensor], steps: int) -> int:
        return sum(len(images) for images in islice(batches, steps) if trainer.step(next(numbers), images, known).any())

    work(feeding, 3)  # compiles, and grows the allocator's memory
    pairs = []
    for _ in range(ROUNDS):
        ours = rate(partial(work, feeding, steps), device)
        pairs.append((ours, apart(plain_training, str(root), str(device), batch, steps)[0]))
    ours, theirs = (median(side) for side in zip(*pairs, strict=True))
    how = f"{options.precision}, {'compiled' if options.compile else 'eager'}, batch {batch}"
    yield Row("detect", "training Xception at 256", "img/s", ours, theirs, median(a / b for a, b in pairs), how)
    together, alone = partial(work, feeding, max(steps // 4, 1)), partial(work, repeat(fixed), max(steps // 4, 1))
    figure = "step with the streaming feed, against the step alone"
    yield compare("detect", figure, together, alone, device, how, 5 * ROUNDS)


def judging(root: Path, scratch: Path, shards: ShardSet, device: torch.device) -> Row:
    """Every group's figures from one pass and SQL, against a data set and a pass for each group."""
    images = read_parquet(shards.folder / "images.parquet").filter(status="packed")[
        : 64 if device.type == "cpu" else 2000
    ]
    options = train.resolve_auto(DetectorOptions(from_scratch=True, feed="streaming"), None, device)
    net = build_detector(options, []).to(device).eval()
    plain = build_detector(options, []).to(device, memory_format=torch.contiguous_format).eval()
    about = images.select(
        "key", source=pl.lit("images"), run=pl.lit(None, pl.String), fake=pl.int_range(pl.len()) % 2 == 1
    )
    sight = evaluate.EvalSet("test", shards, torch.arange(len(images)), about, "none", "")
    table = images.select("path", "age", group=intersection())
    groups = [("group", name) for name in table["group"].unique()] + [("age", name) for name in table["age"].unique()]

    def ours() -> int:
        logits = evaluate.predict_logits(net, options, sight, 32, device, DecoderConfig(), False)
        rows = about.select(
            "key", "source", "run", target=pl.when("fake").then(pl.lit("fake")).otherwise(pl.lit("real"))
        )
        more = {"detector": "x", "part": "test", "change": "none", "grouped_by": "annotated"}
        rows = rows.with_columns(logit=pl.Series(logits), **{name: pl.lit(value) for name, value in more.items()})
        write_parquet(scratch / "detectors" / "x" / "predictions.parquet", rows)
        connection = sql.connect(scratch)
        return len(images) * bool(len(sql.ask(connection, "utility")) and len(sql.ask(connection, "fairness")))

    def theirs() -> int:
        for column, name in groups:
            files = Files([root / path for path in table.filter(pl.col(column) == name)["path"]])
            loader, said = DataLoader(files, 32, num_workers=available_cpus(), pin_memory=device.type == "cuda"), []
            with torch.no_grad():
                for faces, _ in loader:
                    said += plain(faces.to(device)).tolist()
        return len(images)

    return compare("detect", "judging all groups", ours, theirs, device, f"{len(images):,} faces, {len(groups)} groups")
