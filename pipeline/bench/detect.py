"""Benchmark of detectors: training next to plain loops, evaluation next to a pass for each group, and metrics."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import count, islice, repeat
from pathlib import Path

import polars as pl
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

import sql
from models.detectors import FrozenFeatureDetector, Labels
from pipeline.bench.context import BenchContext
from pipeline.bench.measure import ROUNDS, Row, compare, measure_rate, row_of_rounds, run_in_process
from pipeline.bench.metrics import bench_metrics
from pipeline.data.decoder import DecoderConfig
from pipeline.data.loader import FeedConfig, streaming_feed
from pipeline.data.sampler import NaturalSampler
from pipeline.detection.dataset import FeatureSource
from pipeline.detection.defaults import resolve_auto
from pipeline.detection.features import FeatureExtractor, iterate_features
from pipeline.detection.network import build_detector, frozen_hash, move_to_device
from pipeline.detection.options import DetectorOptions
from pipeline.detection.predict import EvalSet, InferenceConfig, predict_logits
from pipeline.detection.trainer import DetectorTrainer
from pipeline.runtime import resolve_device, tune_allocator, utc_now
from shards.annotations import derived_class
from shards.atomic_io import read_parquet, remove_tree, write_parquet
from shards.attributes import built_in_attributes
from shards.concurrency import available_cpus
from shards.documents import PredictionsDocument, file_hashes, training_images_hash, write_document
from shards.workspace import Workspace

IMAGE_SIZE = 256  # pixels
EPOCHS = 10
GROUPS = 6
TEST_BATCH_SIZE = 32
DETECTOR = "x"  # name of the detector that is evaluated


class LabelledFiles(Dataset):
    """Faces from single files; every other one counts as a fake, because the speed does not depend on the target."""

    def __init__(self, paths: list[Path], size: int = IMAGE_SIZE) -> None:
        self.paths = paths
        self.transform = v2.Compose(
            [
                v2.Resize((size, size), antialias=True),
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize([0.5] * 3, [0.5] * 3),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.open(self.paths[index]).convert("RGB")), index % 2


def bench_detect(context: BenchContext) -> Iterator[Row]:
    """Measure training of Xception and of a head on frozen features, evaluation of all groups, and metrics."""
    tune_allocator()
    yield from bench_training(context)
    yield from bench_frozen_features(context)
    yield bench_evaluation(context)
    yield from bench_metrics(context)


def bench_training(context: BenchContext) -> Iterator[Row]:
    """Measure the whole loop next to the plain one, and next to its own step alone."""
    device, shards = context.device, context.shards()
    batch_size, steps = (128, 30) if device.type == "cuda" else (8, 6)
    options = DetectorOptions(batch_size=batch_size, from_scratch=True, feed="streaming")
    options = resolve_auto(options, shards=shards, device=device)
    trainer, numbers = DetectorTrainer(options, [1] * GROUPS, device=device, steps_per_epoch=100), count()
    labels = Labels(*(torch.arange(batch_size, device=device) % 2 for _ in Labels._fields))
    batches = streaming_feed(shards, NaturalSampler(shards.sizes, 0), FeedConfig(IMAGE_SIZE, batch_size, device))(0)
    fixed = next(batches).clone()

    def train(batches: Iterator[Tensor], steps: int) -> int:
        return sum(
            len(images) for images in islice(batches, steps) if trainer.step(next(numbers), images, labels).any()
        )

    train(batches, 3)  # compiles, and grows the allocator's memory
    note = f"{options.precision}, {'compiled' if options.compile else 'eager'}, batch of {batch_size}"
    rounds, plain = [], (options.model, options.image_size, batch_size, steps)
    for _ in range(ROUNDS):
        ours = measure_rate(partial(train, batches, steps), device)
        rounds.append((ours, run_in_process(train_plainly, str(context.faces), str(device), *plain)[0]))
    title = f"training Xception at {IMAGE_SIZE} pixels, vs a plain loop"
    yield row_of_rounds("detect", title, unit="img/s", rounds=rounds, note=note)
    turn = max(steps // 4, 1)
    yield compare(
        "detect",
        "step with the streaming feed, vs the step alone",
        ours=partial(train, batches, turn),
        baseline=partial(train, repeat(fixed), turn),
        device=device,
        note=note,
        rounds=5 * ROUNDS,
    )


def bench_frozen_features(context: BenchContext) -> Iterator[Row]:
    """Measure ten epochs of UnivFD next to one, and next to a plain loop that extracts the features in each epoch."""
    device, shards = context.device, context.shards()
    count, size, batch_size = (shards.images, 224, 128) if device.type == "cuda" else (128, 70, 16)
    options = DetectorOptions("univfd", size, batch_size=batch_size, from_scratch=True)
    options = resolve_auto(replace(options, compile=False), shards=shards, device=device)
    images = torch.arange(shards.images)
    sampler = NaturalSampler(shards.sizes, 0, kept=images < count)
    steps = sampler.images_per_epoch // batch_size
    trainer = DetectorTrainer(options, [], device=device, steps_per_epoch=steps)
    assert isinstance(trainer.net, FrozenFeatureDetector)
    inference = InferenceConfig(device, DecoderConfig(), batch_size=TEST_BATCH_SIZE, progress=False)
    extractor = FeatureExtractor(trainer.net, frozen_hash(trainer.net) or "", options, inference)
    source = FeatureSource(context.workspace.shards.features, "", shards)
    labels = Labels(*(torch.arange(batch_size, device=device) % 2 for _ in Labels._fields))

    def train(epochs: int) -> int:
        remove_tree(source.files.folder)
        features = extractor.load((source,), images[:count], title="faces").to(device)
        batches = iterate_features(features, images[:count], sampler, batch_size=batch_size, first_step=0)
        for step, batch in enumerate(islice(batches, epochs * steps)):
            trainer.step(step, batch, labels)
        return epochs * steps * batch_size

    train(1)
    rounds, seconds, plain = [], [], (options.model, size, batch_size, steps)
    for _ in range(ROUNDS):
        one, ten = measure_rate(partial(train, 1), device), measure_rate(partial(train, EPOCHS), device)
        seconds.append((EPOCHS * steps * batch_size / ten, steps * batch_size / one))
        rounds.append((ten, run_in_process(train_plainly, str(context.faces), str(device), *plain)[0]))
    note = f"{options.precision}, {count:,} faces of {size} pixels, batch of {batch_size}"
    yield row_of_rounds("detect", f"{EPOCHS} epochs of UnivFD, vs one", unit="s", rounds=seconds, note=note)
    title = f"{EPOCHS} epochs of UnivFD, vs a plain loop"
    yield row_of_rounds("detect", title, unit="img/s", rounds=rounds, note=note)


def train_plainly(root: str, device_name: str, model: str, size: int, batch_size: int, steps: int) -> float:
    """Return images per second of the plain loop, after two steps, in a process without any tuning."""
    torch.backends.cudnn.benchmark = True
    device = resolve_device(device_name)
    options = DetectorOptions(model, size, from_scratch=True)
    net = build_detector(options, []).to(device).to(memory_format=torch.contiguous_format).train()
    sgd = torch.optim.SGD(net.parameters(), 5e-4, 0.9, weight_decay=5e-3)
    loader = DataLoader(
        LabelledFiles(sorted(Path(root).rglob("*.jpg")), size),
        batch_size,
        shuffle=True,
        num_workers=max(available_cpus() - 1, 1),
        drop_last=True,
        pin_memory=device.type == "cuda",
    )
    batches = (batch for _ in repeat(None) for batch in loader)

    def train(steps: int) -> int:
        for images, fake in islice(batches, steps):
            logits, target = net(images.to(device)), fake.to(device).float()
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, target)
            sgd.zero_grad()
            loss.backward()
            sgd.step()
            loss.item()  # AI-Face's benchmark sums it up
        return steps * batch_size

    train(2)
    return measure_rate(partial(train, steps), device)


def bench_evaluation(context: BenchContext) -> Row:
    """Measure every group's metrics from one pass and SQL next to a data set and a pass for each group."""
    device, shards = context.device, context.shards()
    limit = 64 if device.type == "cpu" else 2000
    images = read_parquet(context.workspace.shards.images).filter(status="packed")[:limit]
    options = resolve_auto(DetectorOptions(from_scratch=True, feed="streaming"), shards=shards, device=device)
    net = move_to_device(build_detector(options, []), device).eval()
    plain = build_detector(options, []).to(device).to(memory_format=torch.contiguous_format).eval()
    faces = images.select(
        "key", source=pl.lit("images"), run=pl.lit(None, pl.String), fake=pl.int_range(pl.len()) % 2 == 1
    )
    eval_set = EvalSet("test", shards, torch.arange(len(images)), faces, "none", "")
    inference = InferenceConfig(device, DecoderConfig(), batch_size=TEST_BATCH_SIZE, progress=False)
    labels = images.select("path", "age", derived_class(built_in_attributes()["intersection"]).alias("group"))
    groups = [(column, name) for column in ("group", "age") for name in labels[column].unique()]
    by_group = [labels.filter(pl.col(column) == name)["path"] for column, name in groups]

    def ours() -> int:
        logits = predict_logits(net, eval_set, options=options, inference=inference)
        ask_metrics(context.workspace, faces.with_columns(logit=pl.Series(logits)))
        return len(images)

    def baseline() -> int:
        for paths in by_group:
            files = LabelledFiles([context.faces / path for path in paths])
            loader = DataLoader(files, TEST_BATCH_SIZE, num_workers=available_cpus(), pin_memory=device.type == "cuda")
            logits: list[float] = []
            with torch.no_grad():
                for batch, _ in loader:
                    logits += plain(batch.to(device)).tolist()
        return len(images)

    return compare(
        "detect",
        "evaluation of all groups, vs a pass per group",
        ours=ours,
        baseline=baseline,
        device=device,
        note=f"{len(images):,} faces, {len(groups)} groups",
    )


def ask_metrics(workspace: Workspace, faces: pl.DataFrame) -> None:
    """Write predictions of packed faces with source, run, key, fake and logit, and ask for the metrics of all groups.

    Raises RuntimeError if there are none, because the views have left the predictions out.
    """
    folder = workspace.detector(DETECTOR)
    constants = {"detector": DETECTOR, "part": "test", "perturbation": "none", "grouped_by": "annotated"}
    target = pl.when("fake").then(pl.lit("fake")).otherwise(pl.lit("real"))
    rows = faces.select(
        "key", "source", "run", "logit", target=target, **{name: pl.lit(value) for name, value in constants.items()}
    )
    write_parquet(folder.predictions, rows)
    fake = int(faces["fake"].sum())
    document = PredictionsDocument(
        images=len(faces),
        real=len(faces) - fake,
        fake=fake,
        created=utc_now(),
        command="",
        files=file_hashes(folder.predictions),
        manifest=training_images_hash(workspace.shards),
    )
    write_document(folder.predictions_document, document)
    connection = sql.connect(workspace)
    if any(sql.ask(connection, question).is_empty() for question in ("utility", "fairness")):
        raise RuntimeError(f"{folder.predictions} has no metrics")
