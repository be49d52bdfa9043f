"""The registry of the twelve detectors of AI-Face's benchmark: how each is built, and its input."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from models.detectors import backbones
from models.detectors.backbones import ClipFeatures, Weights, timm_model, xception
from models.detectors.base import BackboneDetector, Detector, FrozenFeatureDetector
from models.detectors.core import ConsistencyDetector
from models.detectors.input_transforms import FrequencyBands, append_phase_image
from models.detectors.objectives import GroupCvarBce, cvar_bce, mean_bce
from models.detectors.pg_fdd import PGFDD
from models.detectors.srm import SRM
from models.detectors.ucf import UCF
from shards.errors import FairfaceError

FAMILIES = ("Real", "deepfakes", "GANs", "DMs")  # AI-Face's; the position is the label
MIN_IMAGE_SIZE = 64  # pixels
Normalisation = tuple[tuple[float, ...], tuple[float, ...]]  # mean and deviation of each channel, of values in [0, 1]
HALF: Normalisation = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CLIP: Normalisation = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


@dataclass(frozen=True)
class BuildConfig:
    """The parameters that a network is built with."""

    weights: Weights
    image_size: int  # pixels
    group_counts: tuple[int, ...] | list[int] = (1,) * 6  # training images of each group


@dataclass(frozen=True)
class DetectorSpec:
    """A detector that can be selected by name."""

    title: str
    paper: str
    build: Callable[[BuildConfig], Detector]
    image_size: int = 256  # pixels of its input
    size_multiple: int = 1  # pixels that the image size is a multiple of
    normalisation: Normalisation = HALF
    fixed_size: bool = False  # accepts only images of the size that it was built for
    paired_batches: bool = False  # the first half of a batch is real and the second fake
    frozen_backbone: bool = False  # some weights are not trained, and are in no checkpoint
    uses_groups: bool = False  # its loss depends on the groups
    mild_perturbations: bool = False  # the benchmark perturbs this detector's test faces less

    def normalise(self, images: Tensor, size: int | None = None) -> Tensor:
        """uint8 [B, S, S, 3] -> float32 [B, 3, size, size], channels_last; without `size` they are not resized."""
        mean, std = (torch.tensor(each, device=images.device).view(1, 3, 1, 1) * 255 for each in self.normalisation)
        images = images.permute(0, 3, 1, 2).float()
        if size and images.shape[-1] != size:
            images = torch.nn.functional.interpolate(images, (size, size), mode="bilinear", antialias=True)
        return ((images - mean) / std).contiguous(memory_format=torch.channels_last)


def build_xception(config: BuildConfig) -> Detector:
    return BackboneDetector(xception(config.weights), mean_bce)


def build_efficientnet(config: BuildConfig) -> Detector:
    return BackboneDetector(timm_model(backbones.EFFICIENTNET, config.weights, classes=1), mean_bce)


def build_vit(config: BuildConfig) -> Detector:
    net = timm_model(backbones.VIT, config.weights, classes=1, img_size=config.image_size)
    return BackboneDetector(net, mean_bce)


def build_univfd(config: BuildConfig) -> Detector:
    features = ClipFeatures(config.weights, config.image_size)
    return FrozenFeatureDetector(features, features.dim)


def build_f3net(config: BuildConfig) -> Detector:
    net = xception(config.weights, channels=12, dropout=0.5)
    return BackboneDetector(net, mean_bce, FrequencyBands(config.image_size))


def build_spsl(config: BuildConfig) -> Detector:
    return BackboneDetector(xception(config.weights, channels=4), mean_bce, append_phase_image)


def build_daw_fdd(config: BuildConfig) -> Detector:
    return BackboneDetector(xception(config.weights), GroupCvarBce(len(config.group_counts)))


def build_dag_fdd(config: BuildConfig) -> Detector:
    return BackboneDetector(xception(config.weights), cvar_bce)


DETECTORS = {
    "xception": DetectorSpec("Xception", "Chollet, CVPR 2017", build_xception),
    "efficientnet": DetectorSpec("EfficientNet-B4", "Tan and Le, ICML 2019", build_efficientnet),
    "vit": DetectorSpec(
        "ViT-B/16",
        "Dosovitskiy et al., ICLR 2021",
        build_vit,
        image_size=224,
        size_multiple=16,
        fixed_size=True,
        mild_perturbations=True,
    ),
    "univfd": DetectorSpec(
        "UnivFD",
        "Ojha et al., Towards Universal Fake Image Detectors, CVPR 2023",
        build_univfd,
        image_size=224,
        size_multiple=14,
        normalisation=CLIP,
        fixed_size=True,
        frozen_backbone=True,
        mild_perturbations=True,
    ),
    "core": DetectorSpec("CORE", "Ni et al., CORE, CVPRW 2022", lambda config: ConsistencyDetector(config.weights)),
    "f3net": DetectorSpec("F3Net", "Qian et al., Thinking in Frequency, ECCV 2020", build_f3net, fixed_size=True),
    "spsl": DetectorSpec("SPSL", "Liu et al., Spatial-Phase Shallow Learning, CVPR 2021", build_spsl),
    "srm": DetectorSpec(
        "SRM",
        "Luo et al., Generalizing Face Forgery Detection with High-frequency Features, CVPR 2021",
        lambda config: SRM(config.weights, config.image_size),
        fixed_size=True,
    ),
    "ucf": DetectorSpec(
        "UCF",
        "Yan et al., Uncovering Common Features, ICCV 2023",
        lambda config: UCF(config.weights, len(FAMILIES)),
        paired_batches=True,
    ),
    "daw_fdd": DetectorSpec(
        "DAW-FDD",
        "Ju et al., Improving Fairness in Deepfake Detection, WACV 2024",
        build_daw_fdd,
        uses_groups=True,
    ),
    "dag_fdd": DetectorSpec("DAG-FDD", "Ju et al., Improving Fairness in Deepfake Detection, WACV 2024", build_dag_fdd),
    "pg_fdd": DetectorSpec(
        "PG-FDD",
        "Lin et al., Preserving Fairness Generalization in Deepfake Detection, CVPR 2024",
        lambda config: PGFDD(config.weights, len(FAMILIES), group_counts=list(config.group_counts)),
        paired_batches=True,
        uses_groups=True,
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
    """Find a detector's key in DETECTORS, by any of its names, and its spec. Raises FairfaceError if it is unknown."""
    key = name.lower().replace("-", "_").replace("/", "")
    key = ALIASES.get(key, key)
    if key not in DETECTORS:
        raise FairfaceError(f"--model {name}: there is no such detector; choose one of {', '.join(DETECTORS)}")
    return key, DETECTORS[key]


def build_detector_network(name: str, config: BuildConfig, *, seed: int) -> Detector:
    """The network of the detector `name`, channels_last; what is not pretrained is a function of the seed.

    Raises WeightsUnavailable if pretrained weights are not available, and FairfaceError for an unsuitable image size.
    """
    spec = DETECTORS[name]
    if config.image_size % spec.size_multiple or config.image_size < MIN_IMAGE_SIZE:
        raise FairfaceError(
            f"--image-size {config.image_size}: {spec.title} takes {MIN_IMAGE_SIZE} pixels or more, in multiples of "
            f"{spec.size_multiple}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return spec.build(config).to(memory_format=torch.channels_last)
