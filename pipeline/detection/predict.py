"""Predicts the logits of faces, unperturbed or perturbed."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, repeat

import numpy as np
import polars as pl
import torch
from torch import Tensor
from tqdm import tqdm

from models.detectors import Detector
from pipeline.data.decoder import DecoderConfig, decode_batches
from pipeline.data.random_streams import PERTURBATION_NOISE, seeded_generator
from pipeline.data.sampler import RankSlice
from pipeline.data.shard_set import ConcatShards, ShardSet
from pipeline.detection.dataset import FeatureSource
from pipeline.detection.options import DetectorOptions
from pipeline.detection.perturbations import CROP, MILD, PERTURBATIONS, RANDOM_NUMBERS, RANDOM_PERTURBATIONS, STRONG
from shards import distributed


@dataclass(frozen=True)
class InferenceConfig:
    """How logits are computed; only `decoder.pre_resize` changes them beyond rounding."""

    device: torch.device
    decoder: DecoderConfig
    batch_size: int = 32  # faces
    progress: bool = True


@dataclass(frozen=True)
class EvalSet:
    """Faces whose logits are predicted, and how they are perturbed."""

    part: str  # test, or samples that the detector was not trained on
    shards: ShardSet | ConcatShards
    indices: Tensor  # of the faces, in tar order, int64 [N]
    faces: pl.DataFrame  # source, run, key, fake of each
    perturbation: str  # none, or a key of PERTURBATIONS
    fingerprint: str  # hash that changes whenever the predictions may change
    sources: tuple[FeatureSource, ...] = ()  # one for each part of `shards`; empty: features are not stored

    @property
    def title(self) -> str:
        """The name of the set in progress bars."""
        return f"{self.part} faces" + (
            f", {self.perturbation.replace('_', ' ')}" if self.perturbation != "none" else ""
        )


def predict_logits(
    net: Detector, eval_set: EvalSet, *, options: DetectorOptions, inference: InferenceConfig
) -> np.ndarray:
    """Predict the logits of a set's faces, float64 [N], the same on every rank; each rank predicts its share."""
    rank_slice = RankSlice(distributed.rank(), distributed.world_size())
    mine = rank_slice.indices(len(eval_set.indices))
    indices = eval_set.indices[mine.start : mine.stop]
    logits = []
    if len(indices):
        batches, resize = perturbed_batches(eval_set, indices, options=options, inference=inference)
        progress = tqdm(
            total=len(indices), unit="img", desc=eval_set.title, disable=not inference.progress, leave=False
        )
        with progress:
            for images, _ in zip(batches, range(-(-len(indices) // inference.batch_size)), strict=False):
                logits.append(detector_logits(net, images, options=options, resize=resize).cpu())
                progress.update(len(images))
    rank_logits = torch.cat(logits).double().numpy() if logits else np.empty(0)
    return np.concatenate(distributed.all_gather(rank_logits))


def perturbed_batches(
    eval_set: EvalSet, indices: Tensor, *, options: DetectorOptions, inference: InferenceConfig
) -> tuple[Iterator[Tensor], bool]:
    """Return batches of the faces `indices`, uint8 [B, S, S, 3], and whether the detector must resize them."""
    spec, size, resize = options.spec, options.image_size, True
    perturb = PERTURBATIONS.get(eval_set.perturbation)
    if perturb:
        perturb = partial(perturb, MILD if spec.mild_perturbations else STRONG)
    if eval_set.perturbation == "random_crop":
        # the benchmark's 224-pixel detectors get crops of 256-pixel images that are not resized
        size = round(size / CROP) if spec.mild_perturbations else size
        resize = spec.fixed_size and not spec.mild_perturbations
    # batches are read ahead: those beyond the end are discarded
    index_batches = chain(indices.split(inference.batch_size), repeat(indices[:1]))
    batches = decode_batches(
        eval_set.shards,
        index_batches,
        image_size=size,
        device=inference.device,
        decoder=inference.decoder,
        prefetch_tars=True,
        perturb=perturb,
        random_numbers=perturbation_noise(eval_set),
    )
    return batches, resize


def perturbation_noise(eval_set: EvalSet) -> np.ndarray | None:
    """The random numbers in [0, 1) of every image in a set's shards, float32 [N, RANDOM_NUMBERS], if any are needed."""
    if eval_set.perturbation not in RANDOM_PERTURBATIONS:
        return None
    generator = seeded_generator("cpu", 0, PERTURBATION_NOISE, list(PERTURBATIONS).index(eval_set.perturbation))
    return torch.rand(eval_set.shards.images, RANDOM_NUMBERS, generator=generator).numpy()


@torch.inference_mode()
def detector_logits(net: Detector, images: Tensor, *, options: DetectorOptions, resize: bool = True) -> Tensor:
    """The logits of images uint8 [B, S, S, 3] by a detector in evaluation mode, float32 [B] on its device."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=options.precision == "bf16"):
        logits: Tensor = net(options.spec.normalise(images, options.image_size if resize else None))
    return logits.float()
