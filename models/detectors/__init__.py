"""Detectors of generated faces: the twelve of AI-Face's benchmark, and later ones on foundation models."""

from models.detectors.backbones import Weights
from models.detectors.base import Detector, FrozenFeatureDetector, Labels
from models.detectors.registry import (
    ALIASES,
    DETECTORS,
    FAMILIES,
    OPTIMIZERS,
    build_detector_network,
    find_detector,
    resolve_spec,
)
from models.detectors.spec import BuildConfig, DetectorSpec

__all__ = [
    "ALIASES",
    "DETECTORS",
    "FAMILIES",
    "OPTIMIZERS",
    "BuildConfig",
    "Detector",
    "DetectorSpec",
    "FrozenFeatureDetector",
    "Labels",
    "Weights",
    "build_detector_network",
    "find_detector",
    "resolve_spec",
]
