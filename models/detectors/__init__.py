"""The twelve detectors of AI-Face's benchmark, each a backbone with an input transform and a loss."""

from models.detectors.backbones import Weights
from models.detectors.base import Detector, FrozenFeatureDetector, Labels
from models.detectors.registry import (
    ALIASES,
    DETECTORS,
    FAMILIES,
    BuildConfig,
    DetectorSpec,
    build_detector_network,
    find_detector,
)

__all__ = [
    "ALIASES",
    "DETECTORS",
    "FAMILIES",
    "BuildConfig",
    "Detector",
    "DetectorSpec",
    "FrozenFeatureDetector",
    "Labels",
    "Weights",
    "build_detector_network",
    "find_detector",
]
