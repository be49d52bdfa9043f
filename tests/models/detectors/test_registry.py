"""Which detectors can be selected, by which names, and what image sizes they take."""

import pytest

from models.detectors import ALIASES, DETECTORS, BuildConfig, Weights, build_detector_network, find_detector
from shards.errors import FairfaceError

FROM_SCRATCH = Weights(from_scratch=True)
BENCHMARK_NAMES = (
    "xception",
    "efficientnet",
    "core",
    "ucf",
    "srm",
    "f3net",
    "spsl",
    "daw_fdd",
    "dag_fdd",
    "fair_df_detector",
)


LATER = {"vfm", "gend", "effort", "npr"}


def test_detectors_are_found_by_the_names_of_the_benchmark():
    assert {find_detector(name)[0] for name in [*BENCHMARK_NAMES, "vit", "clip"]} == set(DETECTORS) - LATER
    assert find_detector("ViT-B/16")[0] == "vit"
    assert find_detector("DAW-FDD")[0] == "daw_fdd"
    assert set(ALIASES.values()) <= set(DETECTORS)
    with pytest.raises(FairfaceError, match="no such detector; choose one of xception"):
        find_detector("resnet")


def test_unsuitable_image_sizes_are_refused():
    with pytest.raises(FairfaceError, match="ViT-B/16 takes 64 pixels or more, in multiples of 16"):
        build_detector_network("vit", BuildConfig(FROM_SCRATCH, 100), seed=0)
    with pytest.raises(FairfaceError, match="NPR takes 64 pixels or more, in multiples of 2"):
        build_detector_network("npr", BuildConfig(FROM_SCRATCH, 65), seed=0)
    with pytest.raises(FairfaceError, match="64 pixels or more"):
        build_detector_network("xception", BuildConfig(FROM_SCRATCH, 32), seed=0)
