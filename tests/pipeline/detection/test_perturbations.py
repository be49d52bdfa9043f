"""The perturbations, checked against their definitions by an independent computation."""

import colorsys
import io
from functools import partial
from itertools import chain, repeat

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from pipeline.cli.options import PERTURBATION_NAMES
from pipeline.data.decoder import DecoderConfig, decode_batches
from pipeline.data.shard_set import ShardSet
from pipeline.detection.perturbations import PERTURBATIONS, RANDOM_NUMBERS, RANDOM_PERTURBATIONS, STRONG
from shards.workspace import Workspace

SIZE = 64


@pytest.fixture(scope="module")
def perturbed(packed):
    """`perturbed(name, random)`: the first eight faces, uint8 [8, S, S, 3], perturbed with the same random numbers."""
    shards, indices = ShardSet.open(Workspace(packed).shards), torch.arange(8)

    def perturb(name: str | None, random: list[float] | None = None) -> np.ndarray:
        numbers = None if random is None else np.resize(random, (shards.images, RANDOM_NUMBERS)).astype(np.float32)
        batches = decode_batches(
            shards,
            chain([indices], repeat(indices[:1])),
            image_size=SIZE,
            device=torch.device("cpu"),
            decoder=DecoderConfig(),
            prefetch_tars=True,
            perturb=partial(PERTURBATIONS[name], STRONG) if name else None,
            random_numbers=numbers,
        )
        return next(batches).numpy().copy()

    return perturb


def test_the_command_line_offers_all_of_them():
    assert tuple(PERTURBATIONS) == PERTURBATION_NAMES
    assert set(RANDOM_PERTURBATIONS) < set(PERTURBATIONS)


@pytest.mark.parametrize("random", [[0.9, 0.2, 0.7], [0.0, 1.0, 0.1], [0.5, 0.5, 0.5]])
def test_colours_are_shifted_in_hsv(perturbed, random):
    shift = 2 * np.array(random) - 1
    for face, shifted in zip(perturbed(None), perturbed("hue_saturation_value", random), strict=True):
        for pixel, result in zip(face[::7, ::7].reshape(-1, 3), shifted[::7, ::7].reshape(-1, 3), strict=True):
            hue, saturation, value = colorsys.rgb_to_hsv(*(pixel / 255))
            parts = (np.clip(x + s * 50 / 255, 0, 1) for x, s in ((saturation, shift[1]), (value, shift[2])))
            expected = colorsys.hsv_to_rgb((hue + shift[0] * 100 / 360) % 1, *parts)
            assert np.abs(255 * np.array(expected) - result).max() < 1.01


@pytest.mark.parametrize("random", [[1.0, 0.0], [0.0, 1.0], [0.25, 0.6], [0.5, 0.5]])
def test_contrast_and_brightness_are_changed(perturbed, random):
    contrast, brightness = 0.8 * (2 * np.array(random) - 1)
    expected = np.clip(perturbed(None).astype(float) * (1 + contrast) + 255 * brightness, 0, 255)
    assert np.abs(perturbed("brightness_contrast", [*random, 0]) - expected).max() < 1.01


@pytest.mark.parametrize(
    ("random", "start"), [((0, 0), (0, 0)), ((1, 0), (8, 0)), ((0, 1), (0, 8)), ((0.5, 0.5), (4, 4))]
)
def test_crops_are_parts_of_the_image(perturbed, random, start):
    x, y = start
    expected = perturbed(None)[:, y : y + 56, x : x + 56]
    assert np.array_equal(perturbed("random_crop", [*random, 0]), expected)


def test_a_rotation_by_zero_changes_nothing(perturbed):
    assert np.abs(perturbed("rotation", [0.5] * 3).astype(int) - perturbed(None)).max() <= 1


@pytest.mark.parametrize(("random", "angle"), [(1.0, 45), (0.0, -45), (0.75, 22.5)])
def test_a_rotation_is_that_of_pillow(perturbed, random, angle):
    for face, result in zip(perturbed(None), perturbed("rotation", [random] * 3), strict=True):
        padded = np.pad(face, ((40, 40), (40, 40), (0, 0)), "reflect")
        rotated = np.asarray(Image.fromarray(padded).rotate(angle, Image.BILINEAR))[40:-40, 40:-40]
        assert np.abs(rotated.astype(int) - result).mean() < 1.5


def test_blur_is_that_of_pillow(perturbed):
    for face, blurred in zip(perturbed(None), perturbed("gaussian_blur"), strict=True):
        expected = np.asarray(Image.fromarray(face).filter(ImageFilter.GaussianBlur(1.1))).astype(int)
        assert np.abs(expected - blurred)[3:-3, 3:-3].mean() < 1
        assert np.abs(face.astype(int) - blurred).mean() > 2 * np.abs(expected - blurred).mean()


def test_compression_is_that_of_pillow(perturbed):
    for face, compressed in zip(perturbed(None), perturbed("jpeg_compression"), strict=True):
        file = io.BytesIO()
        Image.fromarray(face).save(file, "JPEG", quality=60)
        expected = np.asarray(Image.open(file)).astype(int)
        assert np.abs(expected - compressed).mean() < 2
        assert np.abs(face.astype(int) - compressed).mean() > 1
