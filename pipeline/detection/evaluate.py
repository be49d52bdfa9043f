"""Evaluates a trained detector on the test faces, unperturbed and perturbed, and on samples of the runs."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import polars as pl
import torch

from models.detectors import Detector
from pipeline.data.shard_set import ShardSet
from pipeline.detection.dataset import FacePool
from pipeline.detection.network import build_detector, check_frozen_weights, load_trainable
from pipeline.detection.options import DETECTOR_EXECUTION_OPTIONS, DetectorOptions
from pipeline.detection.perturbations import PERTURBATIONS
from pipeline.detection.predict import EvalSet, InferenceConfig, predict_logits
from pipeline.runtime import command_line, utc_now
from pipeline.training import checkpoint
from shards import distributed
from shards.atomic_io import fingerprint, is_complete_parquet, read_parquet, write_parquet
from shards.documents import DetectorConfig, PredictionsDocument, SamplesDocument, read_document, write_document
from shards.errors import FairfaceError
from shards.workspace import DetectorFolder, RunFolder, Workspace

FACE_COLUMNS = ("source", "run", "key", "fake")


@dataclass(frozen=True)
class EvaluationConfig:
    """How a detector is evaluated after it has been trained."""

    batch_size: int = 32  # faces
    perturbations: tuple[str, ...] = ()  # keys of PERTURBATIONS, in addition to the unperturbed faces


@dataclass(frozen=True)
class TrainedDetector:
    """A trained detector, whose newest checkpoint is loaded when it is first needed."""

    config: DetectorConfig
    checkpoint: Path
    device: torch.device

    @property
    def options(self) -> DetectorOptions:
        return DetectorOptions(**(self.config.options or {}))

    @cached_property
    def net(self) -> Detector:
        """The network in evaluation mode. All ranks must access it together."""
        net = distributed.run_on_all_ranks(
            lambda: build_detector(self.options, self.config.group_counts, resuming=True)
        )
        check_frozen_weights(net, self.config)
        load_trainable(net, checkpoint.load(self.checkpoint)["networks"]["net"])
        return net.to(self.device).eval()

    def cache_name(self, eval_set: EvalSet, *, pre_resize: int | None) -> str:
        """The name of a set's cached predictions: a hash of what determines them."""
        options = {
            name: value for name, value in asdict(self.options).items() if name not in DETECTOR_EXECUTION_OPTIONS
        }
        detector = [self.config.started, self.checkpoint.name, options, pre_resize]
        return fingerprint([detector, eval_set.part, eval_set.perturbation, eval_set.fingerprint])


def evaluate(
    workspace: Workspace,
    folder: DetectorFolder,
    *,
    config: DetectorConfig,
    faces: FacePool,
    perturbations: Sequence[str],
    inference: InferenceConfig,
) -> bool:
    """Write predictions.parquet: key, detector, target and logit of every face of every evaluation set.

    Each set's predictions are cached until the detector or the faces change, so that no set is evaluated twice; cached
    predictions for perturbations that are not requested stay in the table. Returns whether the table has changed.
    """
    checkpoints = checkpoint.list_checkpoints(folder.checkpoints)
    if not checkpoints:
        raise FairfaceError(f"{folder.folder} has no checkpoint: train it again with --force")
    detector, parts = TrainedDetector(config, checkpoints[-1], inference.device), []
    for eval_set in evaluation_sets(workspace, faces):
        name = detector.cache_name(eval_set, pre_resize=inference.decoder.pre_resize)
        path = folder.cached(name)
        cached = distributed.run_on_rank0(partial(is_complete_parquet, path))
        if not cached and eval_set.perturbation not in ("none", *perturbations):
            continue
        parts.append(path)
        if not cached:
            cache_predictions(path, eval_set, detector=detector, faces=faces, inference=inference)
    return distributed.run_on_rank0(lambda: merge_predictions(folder, parts))


def evaluation_sets(workspace: Workspace, faces: FacePool) -> Iterator[EvalSet]:
    """The test faces, unperturbed and perturbed, and the samples of every run that the pool does not use."""
    indices = torch.from_numpy(faces.rows["test"].arg_true().to_numpy().astype("int64"))
    indices = indices[torch.from_numpy(faces.rows["fake"].is_not_null().to_numpy())[indices]]
    rows = faces.rows.select(FACE_COLUMNS)[indices.numpy()]
    for perturbation in ("none", *PERTURBATIONS):
        yield EvalSet("test", faces.shards, indices, rows, perturbation, fingerprint([faces.manifest, faces.run]))
    for run in workspace.runs():
        if run.name != faces.run and (samples := read_document(run.samples_document, SamplesDocument)):
            yield samples_set(run, samples)


def samples_set(run: RunFolder, samples: SamplesDocument) -> EvalSet:
    """All samples of a run."""
    keys = read_parquet(run.samples_table).select("key")
    rows = keys.select(source=pl.lit("samples"), run=pl.lit(run.name), key="key", fake=pl.lit(True))
    shards = ShardSet.from_samples(run.samples, samples.shards)
    content = fingerprint([run.name, samples.fingerprint])
    return EvalSet("samples", shards, torch.arange(len(keys)), rows, "none", content)


def cache_predictions(
    path: Path, eval_set: EvalSet, *, detector: TrainedDetector, faces: FacePool, inference: InferenceConfig
) -> None:
    """Predict a set's logits on all ranks, and write them to `path`."""
    net, options = detector.net, detector.options
    logits = distributed.run_on_all_ranks(lambda: predict_logits(net, eval_set, options=options, inference=inference))
    grouped_by = faces.grouped_by if eval_set.part == "test" else "labelled"
    name = detector.config.name
    distributed.run_on_rank0(
        lambda: write_parquet(path, prediction_rows(eval_set, logits, detector=name, grouped_by=grouped_by))
    )


def prediction_rows(eval_set: EvalSet, logits: np.ndarray, *, detector: str, grouped_by: str) -> pl.DataFrame:
    """Rows of predictions.parquet. Raises FairfaceError for logits that are not finite."""
    if not np.isfinite(logits).all():
        raise FairfaceError("the detector's logits are not finite: train it again with a lower --lr")
    return eval_set.faces.select(
        "key",
        detector=pl.lit(detector),
        part=pl.lit(eval_set.part),
        source="source",
        run="run",
        perturbation=pl.lit(eval_set.perturbation),
        grouped_by=pl.lit(grouped_by),
        target=pl.when("fake").then(pl.lit("fake")).otherwise(pl.lit("real")),
        logit=pl.Series(logits),
    )


def merge_predictions(folder: DetectorFolder, parts: list[Path]) -> bool:
    """Merge cached predictions into the table, and remove outdated ones. Returns whether any have changed."""
    names, previous = [path.stem for path in parts], read_document(folder.predictions_document, PredictionsDocument)
    if previous and previous.parts == names and is_complete_parquet(folder.predictions):
        return False
    folder.detection_metrics.unlink(missing_ok=True)  # computed from the previous predictions
    predictions = pl.concat([read_parquet(path) for path in parts])
    write_parquet(folder.predictions, predictions)
    counts = dict(predictions.filter(part="test", perturbation="none")["target"].value_counts().iter_rows())
    document = PredictionsDocument(
        images=len(predictions),
        real=counts.get("real", 0),
        fake=counts.get("fake", 0),
        created=utc_now(),
        command=command_line(),
        parts=names,
    )
    write_document(folder.predictions_document, document)
    for path in folder.cached_predictions.glob("*.parquet"):
        if path not in parts:
            path.unlink()
    return True
