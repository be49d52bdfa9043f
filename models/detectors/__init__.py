"""The twelve detectors of AI-Face's benchmark, each a backbone, what it looks at, and a loss."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from models.detectors import backbones
from models.detectors.backbones import ClipFeatures, Weights, from_timm, xception
from models.detectors.base import (
    BackboneDetector,
    ConsistencyDetector,
    Detector,
    FrozenClipDetector,
    GroupAwareDetector,
    Labels,
    agnostic,
    cross_entropy,
)
from models.detectors.input_transforms import FrequencyBands, with_phase
from models.detectors.srm import SRM
from models.detectors.ucf import PGFDD, UCF
from shards.errors import FairfaceError

__all__ = ["ALIASES", "DETECTORS", "FAMILIES", "Detector", "Kind", "Labels", "Making", "Weights", "build", "kind_of"]

FAMILIES = ("Real", "deepfakes", "GANs", "DMs")  # as AI-Face has them; their place is their number
HALVES = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CLIPS = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


@dataclass(frozen=True)
class BuildConfig:
    """What a detector is made for: its weights, pixels, and the images of each group that it will learn from."""

    weights: Weights
    size: int
    counts: list[int] = field(default_factory=lambda: [1] * 6)


@dataclass(frozen=True)
class DetectorSpec:
    """A detector as it can be chosen by name."""

    title: str
    paper: str
    make: Callable[[BuildConfig], Detector]
    size: int = 256  # pixels of its input
    step: int = 1  # of which the size is a multiple
    normal: tuple[tuple[float, ...], tuple[float, ...]] = HALVES  # mean and deviation of its input
    fixed: bool = False  # whether it takes images of the one size that it was made for only
    paired: bool = False  # whether the first half of its batches is real and the second fake
    frozen: bool = False  # whether some of its weights stay as they are, and are in no checkpoint
    by_group: bool = False  # whether its loss looks at groups
    mild: bool = False  # whether the benchmark changes its test faces less

    def normalised(self, images: Tensor, size: int | None = None) -> Tensor:
        """uint8 [B, S, S, 3] -> float32 [B, 3, size, size], channels_last; without `size` they stay as they are."""
        mean, std = (torch.tensor(each, device=images.device).view(1, 3, 1, 1) * 255 for each in self.normal)
        images = images.permute(0, 3, 1, 2).float()
        if size and images.shape[-1] != size:
            images = torch.nn.functional.interpolate(images, (size, size), mode="bilinear", antialias=True)
        return ((images - mean) / std).contiguous(memory_format=torch.channels_last)


DETECTORS = {
    "xception": DetectorSpec(
        "Xception", "Chollet, CVPR 2017", lambda made: BackboneDetector(xception(made.weights), cross_entropy)
    ),
    "efficientnet": DetectorSpec(
        "EfficientNet-B4",
        "Tan and Le, ICML 2019",
        lambda made: BackboneDetector(from_timm(backbones.EFFICIENTNET, made.weights, 1), cross_entropy),
    ),
    "vit": DetectorSpec(
        "ViT-B/16",
        "Dosovitskiy et al., ICLR 2021",
        lambda made: BackboneDetector(from_timm(backbones.VIT, made.weights, 1, img_size=made.size), cross_entropy),
        size=224,
        step=16,
        fixed=True,
        mild=True,
    ),
    "univfd": DetectorSpec(
        "UnivFD",
        "Ojha et al., Towards Universal Fake Image Detectors, CVPR 2023",
        lambda made: FrozenClipDetector(ClipFeatures(made.weights, made.size)),
        size=224,
        step=14,
        normal=CLIPS,
        fixed=True,
        frozen=True,
        mild=True,
    ),
    "core": DetectorSpec("CORE", "Ni et al., CORE, CVPRW 2022", lambda made: ConsistencyDetector(made.weights)),
    "f3net": DetectorSpec(
        "F3Net",
        "Qian et al., Thinking in Frequency, ECCV 2020",
        lambda made: BackboneDetector(xception(made.weights, 1, 12, 0.5), cross_entropy, FrequencyBands(made.size)),
        fixed=True,
    ),
    "spsl": DetectorSpec(
        "SPSL",
        "Liu et al., Spatial-Phase Shallow Learning, CVPR 2021",
        lambda made: BackboneDetector(xception(made.weights, 1, 4), cross_entropy, with_phase),
    ),
    "srm": DetectorSpec(
        "SRM",
        "Luo et al., Generalizing Face Forgery Detection with High-frequency Features, CVPR 2021",
        lambda made: SRM(made.weights, made.size),
        fixed=True,
    ),
    "ucf": DetectorSpec(
        "UCF",
        "Yan et al., Uncovering Common Features, ICCV 2023",
        lambda made: UCF(made.weights, len(FAMILIES)),
        paired=True,
    ),
    "daw_fdd": DetectorSpec(
        "DAW-FDD",
        "Ju et al., Improving Fairness in Deepfake Detection, WACV 2024",
        lambda made: BackboneDetector(xception(made.weights), GroupAwareDetector(len(made.counts))),
        by_group=True,
    ),
    "dag_fdd": DetectorSpec(
        "DAG-FDD",
        "Ju et al., Improving Fairness in Deepfake Detection, WACV 2024",
        lambda made: BackboneDetector(xception(made.weights), agnostic),
    ),
    "pg_fdd": DetectorSpec(
        "PG-FDD",
        "Lin et al., Preserving Fairness Generalization in Deepfake Detection, CVPR 2024",
        lambda made: PGFDD(made.weights, len(FAMILIES), made.counts),
        paired=True,
        by_group=True,
    ),
}
ALIASES = {  # the names of AI-Face's benchmark and of the papers
    "fair_df_detector": "pg_fdd",
    "efficientnet_b4": "efficientnet",
    "efficientnetb4": "efficientnet",
    "vit_b16": "vit",
    "clip": "univfd",
}


def find_detector(name: str) -> tuple[str, DetectorSpec]:
    """A detector's own name and what it is. FairfaceError for an unknown one."""
    key = name.lower().replace("-", "_").replace("/", "")
    key = ALIASES.get(key, key)
    if key not in DETECTORS:
        raise FairfaceError(f"--model {name}: there is no such detector; there are {', '.join(DETECTORS)}")
    return key, DETECTORS[key]


def build_detector_network(name: str, making: BuildConfig, seed: int) -> Detector:
    """The detector of that name; what is not pretrained is a function of the seed.

    ClickException where pretrained weights can't be had; FairfaceError for a size that it can't look at.
    """
    kind = DETECTORS[name]
    if making.size % kind.step or making.size < 64:
        raise FairfaceError(
            f"--image-size {making.size}: {kind.title} takes 64 pixels or more, in multiples of {kind.step}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind.make(making).to(memory_format=torch.channels_last)
