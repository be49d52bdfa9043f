"""Features of frozen backbones: extracted once from every face that is needed, and stored next to the images."""

import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from hashlib import sha256
from itertools import chain, repeat

import numpy as np
import safetensors.torch
import torch
from torch import Tensor
from tqdm import tqdm

from models.detectors import FrozenFeatureDetector
from pipeline.data.decoder import decode_batches
from pipeline.data.sampler import RankSlice, Sampler, iterate_batches
from pipeline.detection.dataset import FeatureSource
from pipeline.detection.options import DetectorOptions
from pipeline.detection.predict import EvalSet, InferenceConfig
from pipeline.runtime import check_memory
from pipeline.threads import choose_threads, max_threads, restored_threads
from pipeline.training.lifecycle import held_by_rank0
from pipeline.training.signals import StopSignals, TrainingInterrupted
from shards import distributed
from shards.atomic_io import atomic_write, check_regular, file_sha256, fingerprint, remove_files, remove_partials
from shards.documents import FeaturesDocument, stale_features, write_document
from shards.errors import FairfaceError
from shards.locks import awaited_lock
from shards.workspace import FeatureFiles

REVISION = 1  # of the extraction; raised when the features of the same images and weights change
SAVE_EVERY_SECONDS = 60  # between two parts: a killed process loses no more than that
LOGITS_BATCH = 4096  # faces

Part = dict[str, Tensor]  # rows: int64 [N], indices of the images in tar order; features: float16 [N, width]


@dataclass
class FeatureExtractor:
    """Extracts features with a frozen backbone, and stores them next to the images for every later use.

    A part is written every minute, at a signal and at the end.
    """

    net: FrozenFeatureDetector  # on `inference.device`
    weights: str  # hash of the frozen weights
    options: DetectorOptions
    inference: InferenceConfig
    threads: int = field(default_factory=max_threads)  # of torch on a CPU; replaced by the fastest number once measured

    def load(self, sources: tuple[FeatureSource, ...], indices: Tensor, *, title: str) -> Tensor:
        """Return the features of the faces `indices`, float16 [N, width] on the CPU; extract those that are missing.

        `indices`, int64 [N] in ascending order, count the images of all sources. All ranks must call this together,
        each with faces of its own. Raises FairfaceError if the features don't fit on the disk or into memory, and
        TrainingInterrupted after SIGTERM or SIGINT, after the features extracted so far are stored.
        """
        features = distributed.run_on_all_ranks(lambda: self._allocate(len(indices)))
        start = first = 0
        for source in sources:
            stop = int(torch.searchsorted(indices, first + source.shards.images))
            rows = indices[start:stop] - first + source.first
            self._load_rows(source, rows, output=features[start:stop], title=title)
            start, first = stop, first + source.shards.images
        return features

    def _allocate(self, count: int) -> Tensor:
        """Memory for the features of `count` faces, float16 [count, width]."""
        width, remedy = self.net.head.in_features, "share the faces among more processes"
        check_memory(2 * width * count, torch.device("cpu"), purpose="the features", remedy=remedy)
        return torch.empty(count, width, dtype=torch.float16)

    def _load_rows(self, source: FeatureSource, rows: Tensor, *, output: Tensor, title: str) -> None:
        """Load the features of the images `rows`, in tar order, into `output`."""
        files, document = source.files, self._describe(source)
        view = fingerprint(asdict(document))
        with held_by_rank0(lambda: awaited_lock(files.lock, "extracting features")):
            distributed.run_on_rank0(lambda: prepare_folder(files, view, document))
            missing = distributed.run_on_all_ranks(lambda: read_parts(files, view, rows=rows, output=output))
            if not (count := sum(distributed.all_gather(int(missing.sum())))):
                return
            distributed.run_on_rank0(partial(check_disk, files, count, width=document.width))
            extract = partial(self._extract, source, rows[missing], view=view, title=title)
            exit_codes = distributed.all_gather(distributed.run_on_all_ranks(extract))
            if codes := [code for code in exit_codes if code]:
                raise TrainingInterrupted(
                    f"interrupted while extracting features of {title}. Progress is saved; rerun the same command to "
                    "resume.",
                    exit_code=codes[0],
                )
            distributed.run_on_all_ranks(lambda: read_parts(files, view, rows=rows, output=output))

    def _describe(self, source: FeatureSource) -> FeaturesDocument:
        """The document of the features of these images; different documents mean different features."""
        options, pre_resize = self.options, self.inference.decoder.pre_resize
        return FeaturesDocument(
            images_hash=source.images_hash,
            model=options.model,
            backbone=options.spec.backbone,
            weights=self.weights,
            width=self.net.head.in_features,
            image_size=options.image_size,
            pre_resize=pre_resize if pre_resize and pre_resize < options.image_size else None,
            normalisation=[list(values) for values in options.spec.normalisation],
            precision=options.precision,
            revision=REVISION,
        )

    def _extract(self, source: FeatureSource, rows: Tensor, *, view: str, title: str) -> int | None:
        """Extract and store the features of the images `rows`; return the exit code if a signal ended it early."""
        if not len(rows):
            return None
        batches, pending, saved = self._iterate(source, rows), list[Part](), time.monotonic()

        def time_batch(threads: int) -> float:
            torch.set_num_threads(threads)
            start = time.perf_counter()
            pending.append(next(batches))
            return time.perf_counter() - start

        progress = tqdm(total=len(rows), unit="img", desc=f"features of {title}", disable=not self.inference.progress)
        with StopSignals() as signals, progress as bar, restored_threads():
            if self.inference.device.type == "cpu":
                steps, size = len(rows) // self.inference.batch_size, self.inference.batch_size
                self.threads = choose_threads(time_batch, steps=steps, step_images=size).count
                torch.set_num_threads(self.threads)
                bar.update(sum(len(part["rows"]) for part in pending))
            for part in batches:
                pending.append(part)
                bar.update(len(part["rows"]))
                if signals.received:
                    break
                if time.monotonic() - saved > SAVE_EVERY_SECONDS:
                    write_part(source.files, view, pending)
                    pending, saved = [], time.monotonic()
            if pending:
                write_part(source.files, view, pending)
        return signals.exit_code if signals.received else None

    def _iterate(self, source: FeatureSource, rows: Tensor) -> Iterator[Part]:
        """Yield the features of the images `rows` in batches."""
        indices, size = rows - source.first, self.inference.batch_size
        images = decode_batches(
            source.shards,
            chain(
                indices.split(size), repeat(indices[:1])
            ),  # the decoder reads ahead: batches beyond the end are discarded
            image_size=self.options.image_size,
            device=self.inference.device,
            decoder=self.inference.decoder,
            prefetch_tars=True,
        )
        for batch, decoded in zip(rows.split(size), images, strict=False):
            yield {"rows": batch, "features": self._extract_batch(decoded)}

    @torch.inference_mode()
    def _extract_batch(self, images: Tensor) -> Tensor:
        """The features of images uint8 [B, S, S, 3], float16 [B, width] on the CPU."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.options.precision == "bf16"):
            features = self.net.extract_features(self.options.spec.normalise(images, self.options.image_size))
        if not features.isfinite().all():
            raise FairfaceError(
                f"{self.options.model}: features exceed the range of float16: choose another --backbone or --pretrained"
            )
        return features.cpu()


def prepare_folder(files: FeatureFiles, view: str, document: FeaturesDocument) -> None:
    """Write the document of a view, and remove damaged parts and features of images that are no longer present."""
    write_document(files.document(view), document)
    remove_partials(files.folder)
    remove_files(stale_features(files, images_hash=document.images_hash))
    for path in files.parts(view):
        check_regular(path)
        if path != files.part(view, file_sha256(path)):
            print(f"{path} is damaged: its features are extracted again", flush=True)
            path.unlink()


def read_parts(files: FeatureFiles, view: str, *, rows: Tensor, output: Tensor) -> Tensor:
    """Read the stored features of the images `rows`, int64 [N] in ascending order, into `output`, float16 [N, width].

    Returns which rows are missing, bool [N].
    """
    missing = torch.ones(len(rows), dtype=torch.bool)
    for path in files.parts(view) if len(rows) else ():
        part = safetensors.torch.load_file(path)  # mapped into memory, not read
        positions = torch.searchsorted(rows, part["rows"]).clamp(max=len(rows) - 1)
        is_needed = rows[positions] == part["rows"]
        output[positions[is_needed]] = part["features"][is_needed]
        missing[positions[is_needed]] = False
    return missing


def write_part(files: FeatureFiles, view: str, batches: list[Part]) -> None:
    """Write batches of features as one part; the name of the file contains its hash, so that damage is noticed."""
    content = safetensors.torch.save({name: torch.cat([batch[name] for batch in batches]) for name in batches[0]})
    with atomic_write(files.part(view, sha256(content).hexdigest())) as file:
        file.write(content)


def check_disk(files: FeatureFiles, count: int, *, width: int) -> None:
    """Raise FairfaceError if the disk has no room for the features of `count` faces."""
    needed, free = count * (2 * width + 8), shutil.disk_usage(files.folder).free
    if needed > free:
        raise FairfaceError(
            f"the features of {count:,} faces need {needed / 1e6:,.1f} MB, and the disk of {files.folder} has "
            f"{free / 1e6:,.1f} MB left: free some space, or choose another --out"
        )


def iterate_features(
    features: Tensor, indices: Tensor, sampler: Sampler, *, batch_size: int, first_step: int
) -> Iterator[Tensor]:
    """Yield the features of `first_step` and of every later step, float16 [batch_size, width], on their device.

    `features`, float16 [N, width], are those of the images `indices`, int64 [N] in ascending order.
    """
    for batch in iterate_batches(sampler, batch_size, first_step=first_step):
        yield features[torch.searchsorted(indices, batch).to(features.device)]


def predict_from_features(
    net: FrozenFeatureDetector, eval_set: EvalSet, *, weights: str, options: DetectorOptions, inference: InferenceConfig
) -> np.ndarray:
    """What `predict_logits` returns for unperturbed faces, from stored features where there are any.

    All ranks must call it together. `weights` is the hash of the frozen weights.
    """
    mine = RankSlice(distributed.rank(), distributed.world_size()).indices(len(eval_set.indices))
    extractor = FeatureExtractor(net, weights, options, inference)
    features = extractor.load(eval_set.sources, eval_set.indices[mine.start : mine.stop], title=eval_set.title)
    with torch.inference_mode():
        batches = features.split(LOGITS_BATCH)
        logits = torch.cat([net.logits_from_features(batch.to(inference.device)).cpu() for batch in batches])
    return np.concatenate(distributed.all_gather(logits.double().numpy()))
