"""The registry of all detectors, the twelve of AI-Face's benchmark and later ones: how each is built."""

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn

from models.detectors import backbones
from models.detectors.backbones import ClipFeatures, timm_model, xception
from models.detectors.base import BackboneDetector, Detector, FrozenFeatureDetector
from models.detectors.core import ConsistencyDetector
from models.detectors.effort import ResidualSubspaceDetector
from models.detectors.foundation import build_encoder, find_backbone
from models.detectors.gend import LayerNormDetector
from models.detectors.input_transforms import FrequencyBands, append_phase_image
from models.detectors.npr import half_resnet50, neighbour_residuals
from models.detectors.objectives import GroupCvarBce, cvar_bce, mean_bce
from models.detectors.pg_fdd import PGFDD
from models.detectors.published import load_published, read_published
from models.detectors.spec import BuildConfig, DetectorSpec, Normalisation
from models.detectors.srm import SRM
from models.detectors.ucf import UCF
from shards.errors import FairfaceError, WeightsUnavailable

FAMILIES = ("Real", "deepfakes", "GANs", "DMs")  # AI-Face's; the position is the label
MIN_IMAGE_SIZE = 64  # pixels
IMAGENET: Normalisation = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP: Normalisation = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


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


def encoder(config: BuildConfig) -> tuple[nn.Module, int]:
    """Build the requested backbone; returns it and the width of its features."""
    assert config.backbone is not None
    return build_encoder(config.backbone, config.weights, image_size=config.image_size)


def build_npr(config: BuildConfig) -> Detector:
    if config.weights.tag_or_path:
        raise WeightsUnavailable(
            f"{config.weights.tag_or_path} is not a checkpoint of NPR's authors, and NPR has no pretrained backbone"
        )
    return BackboneDetector(half_resnet50(), mean_bce, neighbour_residuals)


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
        frozen_features=True,
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
    "vfm": DetectorSpec(
        "VFM",
        "Zhou et al., Simplicity Prevails, arXiv:2602.01738, 2026",
        lambda config: FrozenFeatureDetector(*encoder(config)),
        fixed_size=True,
        frozen_backbone=True,
        frozen_features=True,
        backbone="dinov3",
        optimizer="adamw",
        lr=1e-3,
        weight_decay=1e-2,
    ),
    "gend": DetectorSpec(
        "GenD",
        "Yermakov et al., Deepfake Detection that Generalizes Across Benchmarks, WACV 2026",
        lambda config: LayerNormDetector(*encoder(config)),
        fixed_size=True,
        frozen_backbone=True,
        backbone="clip",
        optimizer="adamw",
        lr=3e-4,
        weight_decay=0.0,
    ),
    "effort": DetectorSpec(
        "Effort",
        "Yan et al., Orthogonal Subspace Decomposition for Generalizable AI-Generated Image Detection, ICML 2025",
        lambda config: ResidualSubspaceDetector(*encoder(config), decompose=not config.is_resumed),
        fixed_size=True,
        frozen_backbone=True,
        backbone="clip",
        optimizer="adam",
        lr=2e-4,
        weight_decay=5e-4,
    ),
    "npr": DetectorSpec(
        "NPR",
        "Tan et al., Rethinking the Up-Sampling Operations in CNN-based Generative Network, CVPR 2024",
        build_npr,
        size_multiple=2,
        normalisation=IMAGENET,
        optimizer="adam",
        lr=2e-4,
        weight_decay=0.0,
    ),
}
OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
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


@lru_cache
def resolve_spec(name: str, backbone: str | None = None) -> DetectorSpec:
    """The spec of the detector `name` with a backbone, by default its own, which sets the input and is in the title.

    Raises FairfaceError for an unknown backbone, and for a detector whose backbone can't be chosen.
    """
    spec = DETECTORS[name]
    if spec.backbone is None:
        if backbone:
            raise FairfaceError(f"--backbone {backbone}: the backbone of {spec.title} can't be chosen")
        return spec
    chosen = backbone or spec.backbone
    found = find_backbone(chosen)
    return replace(
        spec,
        title=f"{spec.title} ({chosen})",
        backbone=chosen,
        image_size=found.image_size,
        size_multiple=found.size_multiple,
        normalisation=found.normalisation,
    )


def build_detector_network(name: str, config: BuildConfig, *, seed: int) -> Detector:
    """The network of the detector `name`, channels_last; what is not pretrained is a function of the seed.

    Raises WeightsUnavailable if pretrained weights are not available, and FairfaceError for an unsuitable image size.
    """
    spec = resolve_spec(name, config.backbone)
    if config.image_size % spec.size_multiple or config.image_size < MIN_IMAGE_SIZE:
        raise FairfaceError(
            f"--image-size {config.image_size}: {spec.title} takes {MIN_IMAGE_SIZE} pixels or more, in multiples of "
            f"{spec.size_multiple}"
        )
    path, published = config.weights.tag_or_path or "", None
    if Path(path).is_file() and (published := read_published(name, Path(path))):
        weights = published.weights
        config = replace(config, weights=replace(weights, tag_or_path=path) if weights.state is not None else weights)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = spec.build(replace(config, backbone=spec.backbone))
        if published:
            load_published(net, published, source=path)
        return net.to(memory_format=torch.channels_last)
