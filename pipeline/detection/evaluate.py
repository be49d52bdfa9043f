"""Evaluates a trained detector: its logits of the test faces, as they are and perturbed, and of our samples."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, repeat
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor
from tqdm import tqdm

from models.detectors import Detector
from pipeline.data.loader import DecoderConfig, decode_batches
from pipeline.data.random_streams import PERTURBATION_NOISE, seeded_generator
from pipeline.data.shard_set import ConcatShards, ShardSet
from pipeline.detection.dataset import FacePool
from pipeline.detection.perturbations import CROP, MILD, PERTURBATIONS, RANDOM_NUMBERS, RANDOM_PERTURBATIONS, STRONG
from pipeline.detection.trainer import (
    EXECUTION_OPTIONS,
    DetectorOptions,
    build_detector,
    check_frozen_weights,
    detector_logits,
    load_trainable,
)
from pipeline.runtime import command_line, utc_now
from pipeline.training import checkpoint
from shards import distributed
from shards.atomic_io import fingerprint, is_complete_parquet, read_json, read_parquet, write_json, write_parquet
from shards.errors import FairfaceError


@dataclass
class EvaluationConfig:
    """How a detector is looked at when it is trained."""

    batch_size: int = 32
    changes: tuple[str, ...] = ()  # of postprocess.CHANGES, beside the faces as they are


@dataclass
class EvalSet:
    """Faces that a trained detector is asked about, once."""

    part: str  # test, or samples that it did not learn from
    shards: ShardSet | ConcatShards
    numbers: Tensor  # of the faces, in tar order
    about: pl.DataFrame  # source, run, key, fake of each
    change: str  # none, or one of postprocess.CHANGES
    mark: str  # changes when the answers may


def evaluation_sets(out: Path, faces: FacePool) -> Iterator[EvalSet]:
    """The test faces as they are and changed, and the samples of every run that are not among the pool's."""
    columns = ["source", "run", "key", "fake"]
    test = torch.from_numpy(faces.rows["test"].arg_true().to_numpy().astype("int64"))
    test = test[torch.from_numpy(faces.rows["fake"].is_not_null().to_numpy())[test]]
    for change in ("none", *PERTURBATIONS):
        mark = fingerprint([faces.manifest, faces.run])
        yield EvalSet("test", faces.shards, test, faces.rows.select(columns)[test.numpy()], change, mark)
    for path in sorted((out / "runs").glob("*/samples.json")):
        if path.parent.name != faces.run:
            samples, keys = read_json(path), read_parquet(path.with_name("samples.parquet")).select("key")
            about = keys.select(source=pl.lit("samples"), run=pl.lit(path.parent.name), key="key", fake=pl.lit(True))
            shards = ShardSet.of_samples(path.with_name("samples"), samples["shards"])
            yield EvalSet(
                "samples",
                shards,
                torch.arange(len(keys)),
                about,
                "none",
                fingerprint([path.parent.name, samples["fingerprint"]]),
            )


def evaluate(
    out: Path,
    folder: Path,
    config: dict,
    faces: FacePool,
    judging: EvaluationConfig,
    device: torch.device,
    decoding: DecoderConfig,
    progress: bool,
) -> bool:
    """Writes predictions.parquet: key, detector, target, logit of every face asked about; each is looked at once.

    Answers are kept by themselves until the detector or the faces change: what was asked before is not asked again.
    Returns whether anything was new.
    """
    options, newest = DetectorOptions(**config["options"]), checkpoint.list_checkpoints(folder / "checkpoints")
    if not newest:
        raise FairfaceError(f"{folder} has no checkpoint: train it again with --force")
    net, parts, kept = None, [], folder / "answers"
    for sight in evaluation_sets(out, faces):
        deciding = {key: value for key, value in config["options"].items() if key not in EXECUTION_OPTIONS}
        who = [config["started"], newest[-1].name, deciding, decoding.through]
        path = kept / f"{fingerprint([who, sight.part, sight.change, sight.mark])}.parquet"
        known = distributed.run_on_rank0(lambda path=path: is_complete_parquet(path))
        if known or sight.change in ("none", *judging.changes):
            parts.append(path)
        if known or path not in parts:
            continue
        net = net or load_detector(options, config, newest[-1], device)
        asked = (net, options, sight, judging.batch_size, device, decoding, progress)
        said = distributed.run_on_all_ranks(lambda asked=asked: predict_logits(*asked))
        distributed.run_on_rank0(
            lambda path=path, s=sight, said=said: write_parquet(path, prediction_rows(folder.name, s, said, faces))
        )
    return distributed.run_on_rank0(lambda: merge_predictions(folder, parts))


def load_detector(options: DetectorOptions, config: dict, path: Path, device: torch.device) -> Detector:
    """The detector of a checkpoint, in evaluation mode."""
    net = distributed.run_on_all_ranks(lambda: build_detector(options, config["groups"], True))
    check_frozen_weights(net, config)
    load_trainable(net, checkpoint.load(path)["nets"]["net"])
    return net.to(device).eval()


def predict_logits(
    net: Detector,
    options: DetectorOptions,
    sight: EvalSet,
    batch: int,
    device: torch.device,
    decoding: DecoderConfig,
    progress: bool,
) -> np.ndarray:
    """The logits of a sight's faces, float64 [N]; each rank asks about its share of them."""
    mine = sight.numbers[
        slice(*(len(sight.numbers) * (distributed.rank() + i) // distributed.world_size() for i in (0, 1)))
    ]
    chances = None
    if sight.change in RANDOM_PERTURBATIONS:
        place = seeded_generator("cpu", 0, PERTURBATION_NOISE, list(PERTURBATIONS).index(sight.change))
        chances = torch.rand(sight.shards.images, RANDOM_NUMBERS, generator=place).numpy()
    found = []
    if len(mine):
        numbers = chain(mine.split(batch), repeat(mine[:1]))  # what is read ahead of the end is thrown away
        size, resize = options.image_size, True
        change = PERTURBATIONS.get(sight.change)
        if change:
            change = partial(change, MILD if options.kind.mild else STRONG)
        if sight.change == "random_crop":
            # those that the benchmark shows 224 pixels get them out of 256, and keep them as they are
            size = round(size / CROP) if options.kind.mild else size
            resize = options.kind.fixed and not options.kind.mild
        images = decode_batches(sight.shards, numbers, size, device, decoding, True, change, chances)
        what = (
            f"{sight.part} faces, {sight.change.replace('_', ' ')}" if sight.change != "none" else f"{sight.part} faces"
        )
        with tqdm(total=len(mine), unit="img", desc=what, disable=not progress, leave=False) as bar:
            for some, _ in zip(images, range(-(-len(mine) // batch)), strict=False):
                found.append(detector_logits(net, options, some, resize).cpu())
                bar.update(len(some))
    everyone = distributed.all_gather(torch.cat(found).double().numpy() if found else np.empty(0))
    return np.concatenate(everyone)


def prediction_rows(detector: str, sight: EvalSet, logits: np.ndarray, faces: FacePool) -> pl.DataFrame:
    """Rows of predictions.parquet."""
    if not np.isfinite(logits).all():
        raise FairfaceError("the detector's logits are not finite: train it again with a lower --lr")
    return sight.about.select(
        "key",
        detector=pl.lit(detector),
        part=pl.lit(sight.part),
        source="source",
        run="run",
        change=pl.lit(sight.change),
        grouped_by=pl.lit(faces.grouped_by if sight.part == "test" else "labelled"),
        target=pl.when("fake").then(pl.lit("fake")).otherwise(pl.lit("real")),
        logit=pl.Series(logits),
    )


def merge_predictions(folder: Path, parts: list[Path]) -> bool:
    """Puts the answers together, if they are others than before; those that no longer count go."""
    marks, done = [path.stem for path in parts], read_json(folder / "predictions.json") or {}
    written = folder / "predictions.parquet"
    if done.get("answers") == marks and is_complete_parquet(written):
        return False
    (folder / "detection.parquet").unlink(missing_ok=True)  # it described others
    found = pl.concat([read_parquet(path) for path in parts])
    write_parquet(written, found)
    counts = dict(found.filter(part="test", change="none")["target"].value_counts().iter_rows())
    about = {"answers": marks, "when": utc_now(), "command": command_line(), "images": len(found)}
    write_json(folder / "predictions.json", about | {"real": counts.get("real", 0), "fake": counts.get("fake", 0)})
    for path in parts[0].parent.glob("*.parquet"):
        if path not in parts:
            path.unlink()
    return True
