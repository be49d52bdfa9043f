"""Benchmark of the classifier: fitting and labelling next to a plain loop, and its accuracy on held-out faces."""

from collections.abc import Iterator
from functools import partial
from itertools import count, islice, repeat
from pathlib import Path

import polars as pl
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from models.classifier import FaceClassifier, uses_bf16
from pipeline.bench.baselines import ImageFolder
from pipeline.bench.context import SIZE, BenchContext
from pipeline.bench.measure import ROUNDS, Row, compare, measure_rate, row_of_rounds, run_in_process
from pipeline.data.shard_set import ShardSet
from pipeline.labelling import classifier
from pipeline.labelling.accuracy import accuracy_table, annotations_of
from pipeline.labelling.classifier_fit import BATCH, FitConfig, FitImages, fit_classifier
from pipeline.labelling.side import LabelKinds, label_images
from pipeline.runtime import resolve_device
from shards import pack
from shards.attributes import workspace_attributes
from shards.concurrency import available_cpus
from shards.documents import load_shards_json
from shards.workspace import ShardsFolder

PHOTOGRAPHS = Path(__file__).parents[3] / "shared/reference/annotated-faces"  # next to the checkout, on some machines
HEADS = {"gender": 2, "age": 5, "race": 5}  # the speed does not depend on the classes
EPOCHS = 3  # one at each size


def bench_classifier(context: BenchContext) -> Iterator[Row]:
    """Measure the classifier."""
    yield bench_fit(context)
    yield bench_labels(context)
    yield from bench_accuracy(context)


def bench_fit(context: BenchContext) -> Row:
    """Measure decoding once and fitting for some epochs next to a loop that decodes every batch."""
    device, shards = context.device, context.shards()
    images = min(shards.images, 16 * BATCH if device.type == "cuda" else 4 * BATCH)
    images_seen = EPOCHS * images

    def fit() -> int:
        decoded = classifier.decode_rows(shards, torch.arange(images), SIZE, device=device, progress=False)
        classes = {name: torch.arange(images, device=device) % classes for name, classes in HEADS.items()}
        fit_classifier(FitImages(decoded, classes, HEADS), FitConfig(epochs=EPOCHS, progress=False))
        return images_seen

    fit()  # grows the allocator's memory
    rounds = []
    for _ in range(ROUNDS):
        ours = measure_rate(fit, device)
        rounds.append((ours, run_in_process(fit_baseline, str(context.faces), str(device), images_seen // BATCH)[0]))
    precision = "bf16" if uses_bf16(device) else "fp32"
    note = f"{precision}, {EPOCHS} epochs of {images:,} images, decoding included"
    return row_of_rounds("label", "fitting the classifier, vs a plain loop", unit="img/s", rounds=rounds, note=note)


def fit_baseline(root: str, device_name: str, steps: int) -> float:
    """Images per second of a plain loop with the same network: Pillow, DataLoader, eager, fp32, full size."""
    device = resolve_device(device_name)
    net = FaceClassifier(HEADS).to(device).train()
    adam = torch.optim.AdamW(net.parameters(), 1e-3)
    batches = (batch for _ in repeat(None) for batch in plain_loader(root, BATCH, device))
    numbers = count()

    def fit(steps: int) -> int:
        for images in islice(batches, steps):
            logits = net(images.to(device))
            target = (torch.arange(BATCH) + next(numbers)).to(device)
            loss = torch.stack([F.cross_entropy(logits[name], target % classes) for name, classes in HEADS.items()])
            adam.zero_grad()
            loss.sum().backward()
            adam.step()
            loss.sum().item()
        return steps * BATCH

    fit(1)
    return measure_rate(partial(fit, steps), device)


def plain_loader(root: str, batch_size: int, device: torch.device) -> DataLoader:
    """Shuffled batches of the images below a folder."""
    workers, pinned = max(available_cpus() - 1, 1), device.type == "cuda"
    return DataLoader(
        ImageFolder(Path(root)), batch_size, shuffle=True, num_workers=workers, drop_last=True, pin_memory=pinned
    )


def bench_labels(context: BenchContext) -> Row:
    """Measure the labels of packed images next to Pillow, a DataLoader and the same network, eager in fp32."""
    device, shards = context.device, context.shards()
    net = FaceClassifier(HEADS).eval()
    attributes = workspace_attributes(context.workspace).labelled
    names = {name: attributes[name].names[:classes] for name, classes in HEADS.items()}
    labeller = classifier.ClassifierLabeller(net, attributes, fitted_classes=names, thresholds={}, device=device)
    labels = LabelKinds(labeller, has_skin_tones=False)
    keys = pl.Series("key", list(map(str, range(shards.images))))
    plain = FaceClassifier(HEADS).to(device).eval()

    def ours() -> int:
        return len(label_images(shards, keys, labels=labels, size=SIZE, device=device, batch_size=256))

    def baseline() -> int:
        labelled = 0
        with torch.no_grad():
            for images in plain_loader(str(context.faces), BATCH, device):
                for mirrored in (images, images.flip(3)):
                    plain(mirrored.to(device))["gender"].softmax(1).cpu()
                labelled += len(images)
        return labelled

    note = "each image and its mirror image; ours also checks the tars, and labels by pixels"
    title = "labelling by the classifier, vs a plain loop"
    return compare("label", title, ours=ours, baseline=baseline, device=device, note=note)


def bench_accuracy(context: BenchContext) -> Iterator[Row]:
    """Measure balanced accuracy on the half of the faces that the classifier was not fitted to."""
    real = PHOTOGRAPHS.is_dir()
    shards = context.workspace.shards
    if real:
        shards = ShardsFolder(context.scratch("photographs"))
        pack.pack(PHOTOGRAPHS, shards, progress=False)
    tars, attributes = ShardSet.open(shards), workspace_attributes(context.workspace)
    data = classifier.ClassifierData(shards, load_shards_json(shards), tars, attributes, SIZE)
    fitted = classifier.load_classifier(data, context.device, progress=True)
    if fitted is None:
        return
    document = classifier.read_classifier(shards.label_files)
    images = pl.read_parquet(shards.images).filter(status="packed")
    labels = label_images(
        tars,
        images["key"],
        labels=LabelKinds(fitted.labeller, has_skin_tones=False),
        size=SIZE,
        device=context.device,
        batch_size=256,
    ).filter(~pl.col("key").is_in(fitted.fit_keys.implode()))
    labels = labels.with_columns(labeller=pl.lit(fitted.labeller.name))
    truth = annotations_of(images, labels["key"], attributes)
    for row in accuracy_table(truth, {classifier.network.NAME: labels}, attributes).to_dicts():
        if row["attribute"] in fitted.labeller.attributes:
            yield Row(
                "label",
                f"balanced accuracy of {row['attribute']}, {'photographs' if real else 'synthetic faces'}",
                unit="%",
                value=100 * row["balanced_accuracy"],
                note=f"accuracy {row['accuracy']:.3f}, {row['n']:,} held out, {document.images:,} fitted to in "
                f"{document.seconds:.0f} s",
            )
