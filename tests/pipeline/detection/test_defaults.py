"""The options that a detector is trained with where none are requested."""

import pytest

from pipeline.detection.defaults import SKETCH_STEPS, build_options


@pytest.mark.parametrize(
    ("model", "preset", "expected"),
    [
        ("xception", "benchmark", (None, 256, 5e-4, 5e-3)),
        ("xception", "sketch", (None, 64, 5e-3, 5e-3)),
        ("vfm", "benchmark", (None, 256, 1e-3, 1e-2)),
        ("gend", "benchmark", (None, 224, 3e-4, 0)),
        ("effort", "sketch", ("pe-tiny", 64, 2e-3, 5e-4)),
        ("npr", "benchmark", (None, 256, 2e-4, 0)),
    ],
)
def test_detectors_have_the_learning_rates_of_their_papers(sampled, model, preset, expected):
    options = build_options(sampled, model, preset=preset, overrides={})
    found = (options.backbone, options.image_size, options.lr, options.weight_decay)
    assert found == pytest.approx(expected)
    assert options.from_scratch  # the faces are synthetic


def test_a_sketch_trains_on_as_few_faces_as_documented(sampled):
    assert SKETCH_STEPS * build_options(sampled, "vfm", preset="sketch", overrides={}).batch_size == 4800


def test_a_requested_backbone_determines_the_input(sampled):
    options = build_options(sampled, "gend", preset="sketch", overrides={"backbone": "clip"})
    assert (options.backbone, options.image_size) == ("clip", 70)
    assert options.spec.normalisation[0][0] == 0.48145466
    assert build_options(sampled, "npr", preset="sketch", overrides={"backbone": "clip"}).backbone is None
