"""Classifies images that are neither packed nor labelled with a trained detector: `detect --judge`.

An image is checked, decoded and resized like the packed images that the detector was trained and evaluated on, so that
a packed image gets the logit of predictions.parquet.
"""

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from pipeline.data.decoder import DecoderConfig, decode_coded
from pipeline.detection.dataset import detector_view
from pipeline.detection.evaluate import TrainedDetector, check_finite
from pipeline.detection.options import DetectorOptions
from pipeline.detection.predict import detector_logits
from pipeline.runtime import resolve_device
from pipeline.threads import max_threads, using_threads
from pipeline.training import checkpoint
from pipeline.training.lifecycle import load_options
from shards.concurrency import available_cpus, generator_threads, map_in_order
from shards.dali_decoder import DaliDecoder
from shards.discover import SUFFIXES, find_images
from shards.documents import (
    DetectorConfig,
    DetectorView,
    PredictionsDocument,
    SamplesDocument,
    read_document,
)
from shards.errors import FairfaceError
from shards.locks import shared_lock
from shards.worker import CONVERTED, ImageRecipe, check_and_encode, read_regular_file, try_packing
from shards.workspace import DetectorFolder, Workspace

IMAGES_AHEAD = 2  # per worker, read and checked before the detector needs them


@dataclass(frozen=True)
class JudgeConfig:
    """How images are judged."""

    name: str | None = None  # of the detector; None: the only one that was trained here
    batch_size: int = 32  # images
    device: str = "auto"  # auto | cpu | cuda | cuda:N
    threads: int | None = None  # of torch on a CPU; None: as many as the detector was trained with
    decoder: DecoderConfig = field(default_factory=DecoderConfig)  # `workers` also check the images


class Judgement(NamedTuple):
    """A detector's logit for an image; without a logit, `reason` says why the image could not be read."""

    path: str
    logit: float | None
    reason: str | None

    @property
    def probability(self) -> float | None:
        """The probability of being fake."""
        return None if self.logit is None else float(torch.sigmoid(torch.tensor(self.logit, dtype=torch.float64)))

    @property
    def decision(self) -> str | None:
        """fake or real, by the same threshold as in the view `predictions`."""
        return None if self.probability is None else "fake" if self.probability >= 0.5 else "real"


class CheckedImage(NamedTuple):
    """An image's bytes, as they would be packed; None, with the `reason`, if it would not be."""

    path: str
    coded: np.ndarray | None  # uint8 [bytes]
    reason: str | None


@dataclass(frozen=True)
class ImageJudge:
    """A trained detector, with everything else that its logits depend on."""

    detector: TrainedDetector
    view: DetectorView
    config: JudgeConfig

    @property
    def name(self) -> str:
        return self.detector.config.name

    @property
    def unfinished(self) -> str | None:
        """A warning if the detector's training was interrupted; None if it is finished."""
        step, config = checkpoint.checkpoint_step(self.detector.checkpoint), self.detector.config
        if config.status == "finished":
            return None
        return f"the training of {self.name} is not finished: these are the logits after step {step:,}"

    @cached_property
    def recipe(self) -> ImageRecipe:
        """How an image is encoded again before it is decoded: as by the packer.

        For a detector that was trained on samples, images are not encoded again: neither were the samples, and reducing
        images to their size removes nearly all artefacts of the packer's JPEGs.
        """
        size = None if self.view.pre_resize else self.view.packed_size
        return ImageRecipe(check=True, size=size, quality=self.view.packed_quality)

    def judge(self, paths: Sequence[str]) -> Iterator[list[Judgement]]:
        """Yield the judgements of images in order, a batch at a time; only a few batches are in memory.

        Raises FairfaceError for logits that are not finite.
        """
        config, options, device = self.config, self.detector.options, self.detector.device
        trained = self.detector.config.threads
        threads = config.threads or (min(trained.count, max_threads()) if trained else None)
        with using_threads(threads), closing(self.checked_batches(paths)) as batches:
            net = self.detector.net
            current: list[CheckedImage] = []

            def coded() -> Iterator[list[np.ndarray]]:
                for batch in batches:
                    current[:] = batch
                    if images := [image.coded for image in batch if image.coded is not None]:
                        yield images

            decoded = decode_coded(
                coded(),
                image_size=options.image_size,
                device=device,
                batch_size=config.batch_size,
                decoder=replace(config.decoder, pre_resize=self.view.pre_resize),
            )
            for images in decoded:
                logits = detector_logits(net, images, options=options).cpu().double().numpy()
                check_finite(logits)
                yield judgements(current, logits)
                current.clear()
            if current:  # the last batch, without any image that can be read
                yield judgements(current, np.empty(0))

    def checked_batches(self, paths: Iterable[str]) -> Generator[list[CheckedImage]]:
        """Yield checked images in order, in batches of `batch_size` readable ones and any number of others."""
        batch: list[CheckedImage] = []
        readable = 0
        for image in self.checked_images(paths):
            batch.append(image)
            readable += image.coded is not None
            if readable == self.config.batch_size:
                yield batch
                batch, readable = [], 0
        if batch:
            yield batch

    def checked_images(self, paths: Iterable[str]) -> Iterator[CheckedImage]:
        """Read and check images in order; each is decoded once in a process that a hostile image may crash."""
        workers = self.config.decoder.workers or available_cpus()
        with DaliDecoder(workers) as processes, generator_threads(workers) as pool:
            check = partial(check_image, recipe=self.recipe, processes=processes)
            for _, image in map_in_order(pool, check, ((path,) for path in paths), ahead=IMAGES_AHEAD * workers):
                yield image


def check_image(path: str, *, recipe: ImageRecipe, processes: DaliDecoder) -> CheckedImage:
    """Read an image, and return the bytes that the packer would have packed, or why it would have rejected it."""
    try:
        data, _ = read_regular_file(path)
    except OSError:  # deleted, no permission, a pipe, a failing disk
        return CheckedImage(path, None, "unreadable")
    reason = processes.run(partial(try_packing, recipe=recipe), data)
    if reason == CONVERTED:
        data, reason = check_and_encode(data, recipe)[1], None
    return CheckedImage(path, None if reason else np.frombuffer(data, np.uint8), reason)


def judgements(images: Sequence[CheckedImage], logits: np.ndarray) -> list[Judgement]:
    """The judgements of a batch; `logits`, float64, are those of its images that could be read, in order."""
    values = iter(logits.tolist())
    return [Judgement(one.path, None if one.coded is None else next(values), one.reason) for one in images]


def load_judge(workspace: Workspace, config: JudgeConfig) -> ImageJudge:
    """Load the detector that judges images: its newest checkpoint.

    Raises FairfaceError if there is none, if the name is missing and there are several, if its predictions were
    imported, if it is being trained, and if the size of its samples is no longer known; WeightsUnavailable if its
    frozen weights are not available.
    """
    device = resolve_device(config.device)
    folder = find_detector(workspace, config.name)
    with shared_lock(folder.lock, "judging images with it"):
        trained = read_document(folder.config, DetectorConfig)
        checkpoints = checkpoint.list_checkpoints(folder.checkpoints)
        if trained is None or not checkpoints:
            raise FairfaceError(f"{folder.folder} has no checkpoint: train it first with `fairface detect`")
        load_options(DetectorOptions, trained.options, source=folder.config)  # refuses those of another version
        detector = TrainedDetector(trained, checkpoints[-1], device)
        judge = ImageJudge(detector, find_view(workspace, trained), config)
        _ = detector.net  # while the lock keeps the checkpoint
    return judge


def find_detector(workspace: Workspace, name: str | None) -> DetectorFolder:
    """Find the folder of a detector that was trained here; without a name, of the only one."""
    trained = [folder.name for folder in workspace.detectors() if folder.config.exists()]
    listed = f"the trained detectors are: {', '.join(trained)}" if trained else "train one with `fairface detect`"
    if name is None:
        if len(trained) != 1:
            raise FairfaceError(f"--judge needs the name of a detector, with --name: {listed}")
        return workspace.detector(trained[0])
    folder = workspace.detector(name)
    if folder.config.exists():
        return folder
    predictions = read_document(folder.predictions_document, PredictionsDocument)
    if predictions and predictions.imported is not None:
        raise FairfaceError(f"{name} can't judge images, because only its predictions were imported: {listed}")
    raise FairfaceError(f"there is no detector {name!r} below {workspace.root}: {listed}")


def find_view(workspace: Workspace, trained: DetectorConfig) -> DetectorView:
    """The view of a detector; if it did not record one, that of the present images and samples."""
    if trained.data.view:
        return trained.data.view
    pre_resize = None
    if trained.data.run:
        samples = read_document(workspace.run(trained.data.run).samples_document, SamplesDocument)
        if samples is None:
            raise FairfaceError(
                f"{trained.name} was trained on samples of run {trained.data.run}, whose size is no longer known: "
                "train it again with --force"
            )
        pre_resize = samples.image_size
    return detector_view(workspace.shards, pre_resize=pre_resize)


def find_judged(workspace: Workspace, judged: Sequence[Path]) -> list[str]:
    """The paths of the images to judge, sorted: files, whatever their names, and all images below folders.

    Hidden files and folders, and OUT itself, are skipped. Raises FairfaceError for a path that does not exist, and
    for a folder without images.
    """
    paths: set[str] = set()
    for path in judged:
        if not path.exists():
            raise FairfaceError(f"--judge {path}: there is no such file or folder")
        if not path.is_dir():
            paths.add(str(path))
            continue
        tree = find_images(path, exclude=workspace.root)
        found = [*tree.files["path"], *tree.unreadable]
        if not found:
            raise FairfaceError(f"--judge {path}: no images (looked for {', '.join(SUFFIXES)})")
        paths.update(str(path / name) for name in found)
    return sorted(paths)
