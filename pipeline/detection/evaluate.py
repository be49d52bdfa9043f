"""Evaluates a trained detector on the test faces, unperturbed and perturbed, and on samples of the runs."""

import hashlib
import io
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import polars as pl
import torch

from models.detectors import Detector, FrozenFeatureDetector
from pipeline.data.shard_set import ShardSet
from pipeline.detection.dataset import FacePool, FeatureSource
from pipeline.detection.features import predict_from_features
from pipeline.detection.network import build_detector, check_frozen_weights, load_trainable, move_to_device
from pipeline.detection.options import DETECTOR_EXECUTION_OPTIONS, DetectorOptions
from pipeline.detection.perturbations import PERTURBATIONS
from pipeline.detection.predict import EvalSet, InferenceConfig, predict_logits
from pipeline.runtime import command_line, utc_now
from pipeline.training import checkpoint
from pipeline.training.lifecycle import OWN_FILES
from shards import distributed
from shards.atomic_io import (
    atomic_write,
    file_sha256,
    fingerprint,
    read_parquet,
    remove_partials,
    write_parquet,
)
from shards.described_files import check_unchanged, sample_files
from shards.documents import (
    DetectorConfig,
    PredictionsDocument,
    SamplesDocument,
    changed_files,
    file_hashes,
    read_document,
    samples_images_hash,
    training_images_hash,
    write_document,
)
from shards.errors import FairfaceError
from shards.locks import shared_lock
from shards.workspace import DetectorFolder, RunFolder, TrainingFolder, Workspace

FACE_COLUMNS = ("source", "run", "key", "fake")
TEXT_COLUMNS = ("key", "detector", "part", "source", "run", "perturbation", "grouped_by", "target")
PREDICTION_COLUMNS: dict[str, type[pl.DataType]] = {**dict.fromkeys(TEXT_COLUMNS, pl.String), "logit": pl.Float64}


@dataclass(frozen=True)
class EvaluationConfig:
    """How a detector is evaluated after it has been trained."""

    batch_size: int = 32  # faces
    perturbations: tuple[str, ...] = ()  # keys of PERTURBATIONS, in addition to the unperturbed faces


@dataclass(frozen=True)
class Evaluation:
    """The outcome of an evaluation."""

    is_changed: bool  # whether the predictions have changed
    left_out: list[str]  # runs whose samples could not be evaluated, and why


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
            lambda: build_detector(self.options, list(self.config.group_counts.values()), resuming=True)
        )
        check_frozen_weights(net, self.config)
        load_trainable(net, checkpoint.load(self.checkpoint)["networks"]["net"])
        return move_to_device(net, self.device).eval()

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
) -> Evaluation:
    """Write predictions.parquet: key, detector, target and logit of every face of every evaluation set.

    Each set's predictions are cached until the detector or the faces change, so that no set is evaluated twice; cached
    predictions for perturbations that are not requested stay in the table. The samples of other runs than the pool's
    are left out if they can't be read, or if another process is writing them.
    """
    checkpoints = checkpoint.list_checkpoints(folder.checkpoints)
    if not checkpoints:
        raise FairfaceError(f"{folder.folder} has no checkpoint: train it again with --force")
    detector, parts = TrainedDetector(config, checkpoints[-1], inference.device), []
    with ExitStack() as locks:
        runs, left_out = other_runs(workspace, faces, locks)
        for eval_set in [*pool_sets(faces), *map(samples_set, runs)]:
            name = detector.cache_name(eval_set, pre_resize=inference.decoder.pre_resize)
            path = distributed.run_on_rank0(partial(find_cached, folder, name))
            if path is None and eval_set.perturbation in ("none", *perturbations):
                path = cache_predictions(
                    folder, name, eval_set=eval_set, detector=detector, faces=faces, inference=inference
                )
            if path:
                parts.append(path)
        samples = {run.name: samples_images_hash(run) or "" for run in runs}
        if faces.run:
            samples[faces.run] = samples_images_hash(workspace.run(faces.run)) or ""
        manifest = training_images_hash(workspace.shards)
        is_changed = distributed.run_on_rank0(
            lambda: merge_predictions(folder, parts, manifest=manifest, samples=samples, discard=not left_out)
        )
        return Evaluation(is_changed, left_out)


def find_cached(folder: DetectorFolder, name: str) -> Path | None:
    """The cached predictions of the set `name`; None if there are none, or only damaged ones."""
    for path in folder.cached_predictions.glob(f"{name}-*.parquet"):
        if path.is_file() and path == folder.cached(name, file_sha256(path)):
            return path
    return None


def other_runs(workspace: Workspace, faces: FacePool, locks: ExitStack) -> tuple[list[RunFolder], list[str]]:
    """The runs whose samples the pool does not use, locked until `locks` closes; and why others are left out."""
    runs, left_out = [], []
    for run in workspace.runs():
        if run.name == faces.run:
            continue
        reason, has_samples = distributed.run_on_rank0(partial(lock_samples, run, locks))
        if reason:
            left_out.append(f"the samples of run {run.name} are left out: {reason}")
        elif has_samples:
            runs.append(run)
    return runs, left_out


def lock_samples(run: RunFolder, locks: ExitStack) -> tuple[str | None, bool]:
    """Lock a run's samples; returns why that is not possible, and whether there are any."""
    try:
        locks.enter_context(shared_lock(run.samples_lock, "evaluating its samples"))
        has_samples = read_document(run.samples_document, SamplesDocument) is not None
        if has_samples:
            check_unchanged(sample_files(run))
            samples_set(run)
    except FairfaceError as error:
        return str(error), False
    return None, has_samples


def pool_sets(faces: FacePool) -> Iterator[EvalSet]:
    """The test faces, unperturbed and perturbed."""
    indices = torch.from_numpy(faces.rows["test"].arg_true().to_numpy().astype("int64"))
    indices = indices[torch.from_numpy(faces.rows["fake"].is_not_null().to_numpy())[indices]]
    rows = faces.rows.select(FACE_COLUMNS)[indices.numpy()]
    for perturbation in ("none", *PERTURBATIONS):
        content = fingerprint([faces.manifest, faces.run])
        yield EvalSet("test", faces.shards, indices, rows, perturbation, content, faces.sources)


def samples_set(run: RunFolder) -> EvalSet:
    """All samples of a run. Raises FairfaceError if they are incomplete."""
    samples = read_document(run.samples_document, SamplesDocument)
    if samples is None:
        raise FairfaceError(f"{run.folder} has no samples: run `fairface sample`")
    keys = read_parquet(run.samples_table, {"key": pl.String})
    rows = keys.select(source=pl.lit("samples"), run=pl.lit(run.name), key="key", fake=pl.lit(True))
    shards = ShardSet.from_samples(run.samples, samples.shards)
    content = fingerprint([run.name, samples.fingerprint])
    source = FeatureSource(run.features, samples.fingerprint, shards)
    return EvalSet("samples", shards, torch.arange(len(keys)), rows, "none", content, (source,))


def cache_predictions(
    folder: DetectorFolder,
    name: str,
    *,
    eval_set: EvalSet,
    detector: TrainedDetector,
    faces: FacePool,
    inference: InferenceConfig,
) -> Path:
    """Predict a set's logits on all ranks, and write them as the cached predictions of the set `name`."""
    net, options = detector.net, detector.options
    if isinstance(net, FrozenFeatureDetector) and eval_set.sources and eval_set.perturbation == "none":
        weights = detector.config.frozen or ""
        logits = predict_from_features(net, eval_set, weights=weights, options=options, inference=inference)
    else:
        logits = distributed.run_on_all_ranks(
            lambda: predict_logits(net, eval_set, options=options, inference=inference)
        )
    grouped_by = faces.grouped_by if eval_set.part == "test" else "labelled"
    return distributed.run_on_rank0(
        lambda: write_cached(
            folder, name, prediction_rows(eval_set, logits, detector=detector.config.name, grouped_by=grouped_by)
        )
    )


def write_cached(folder: DetectorFolder, name: str, rows: pl.DataFrame) -> Path:
    """Write the predictions of the set `name`."""
    data = io.BytesIO()
    write_parquet(folder.cached_predictions, rows, output=data)
    path = folder.cached(name, hashlib.sha256(data.getbuffer()).hexdigest())
    with atomic_write(path) as file:
        file.write(data.getbuffer())
    return path


def prediction_rows(eval_set: EvalSet, logits: np.ndarray, *, detector: str, grouped_by: str) -> pl.DataFrame:
    """Rows of predictions.parquet. Raises FairfaceError for logits that are not finite."""
    check_finite(logits)
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


def check_finite(logits: np.ndarray) -> None:
    """Raise FairfaceError if one of the logits is not finite."""
    if not np.isfinite(logits).all():
        raise FairfaceError("the detector's logits are not finite: train it again with a lower --lr")


def merge_predictions(
    folder: DetectorFolder, parts: list[Path], *, manifest: str | None, samples: dict[str, str], discard: bool
) -> bool:
    """Merge cached predictions into the table. Returns whether it has changed.

    With `discard`, outdated cached predictions are removed. `manifest` and `samples` identify the evaluated images and
    samples, as in PredictionsDocument.
    """
    names, previous = [path.stem for path in parts], read_predictions_document(folder)
    if previous and previous.parts == names and not changed_files(folder.folder, previous.files):
        return False
    predictions = pl.concat([read_parquet(path, PREDICTION_COLUMNS) for path in parts])
    counts = dict(predictions.filter(part="test", perturbation="none")["target"].value_counts().iter_rows())
    # the new predictions are on disk under a temporary name before the previous ones are removed
    with atomic_write(folder.predictions) as file:
        write_parquet(folder.predictions, predictions, output=file)
        discard_predictions(folder)
    document = PredictionsDocument(
        images=len(predictions),
        real=counts.get("real", 0),
        fake=counts.get("fake", 0),
        created=utc_now(),
        command=command_line(),
        files=file_hashes(folder.predictions),
        manifest=manifest,
        samples=samples,
        parts=names,
    )
    write_document(folder.predictions_document, document)
    remove_partials(folder.cached_predictions)
    for path in folder.cached_predictions.iterdir() if discard else ():
        if path not in parts and OWN_FILES[folder.cached_predictions.name].fullmatch(path.name):
            path.unlink()
    return True


def read_predictions_document(folder: DetectorFolder) -> PredictionsDocument | None:
    """The document of a detector's predictions; None if they must be merged again."""
    try:
        return read_document(folder.predictions_document, PredictionsDocument)
    except FairfaceError:
        return None


def check_foreign(folder: TrainingFolder) -> None:
    """Raise FairfaceError if a folder without config.json holds files with the names of those of a training run."""
    files = [] if folder.config.exists() else folder.training_files()
    if any(path.exists() for path in files):
        raise FairfaceError(f"{folder.folder} holds files that don't belong to a detector: choose another --name")


def discard_predictions(folder: DetectorFolder) -> None:
    """Remove a detector's predictions and the metrics that were computed from them, their documents first."""
    for path in (folder.predictions_document, folder.metrics_document, *folder.tables(), folder.predictions):
        path.unlink(missing_ok=True)
