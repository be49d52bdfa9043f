"""What is done to faces, against what it is defined to be, found another way."""

import colorsys
import io
from functools import partial
from itertools import chain, repeat

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from pipeline.cli.main import POSTPROCESSED
from pipeline.data.loader import DecoderConfig, decode_batches
from pipeline.data.shard_set import ShardSet
from pipeline.detection.perturbations import PERTURBATIONS, RANDOM_NUMBERS, RANDOM_PERTURBATIONS, STRONG

CPU = torch.device("cpu")
SIZE = 64


@pytest.fixture(scope="module")
def changed(packed):
    """`change(name, chances)` of the first eight faces, uint8 [8, S, S, 3]."""
    shards, numbers = ShardSet.open(packed / "shards"), torch.arange(8)

    def change(name: str | None, chances: np.ndarray | None = None) -> np.ndarray:
        batches = chain([numbers], repeat(numbers[:1]))
        every = None if chances is None else np.resize(chances, (shards.images, RANDOM_NUMBERS)).astype(np.float32)
        done = name and partial(PERTURBATIONS[name], STRONG)
        return next(decode_batches(shards, batches, SIZE, CPU, DecoderConfig(), True, done, every)).numpy().copy()

    return change


def test_the_command_line_knows_them_all():
    assert tuple(PERTURBATIONS) == POSTPROCESSED
    assert set(RANDOM_PERTURBATIONS) < set(PERTURBATIONS)


def test_colours_move_in_hsv(changed):
    plain = changed(None)
    for chance in ([0.9, 0.2, 0.7], [0.0, 1.0, 0.1], [0.5, 0.5, 0.5]):
        move = 2 * np.array(chance) - 1
        found = changed("hue_saturation_value", np.array(chance))
        for face, ours in zip(plain, found, strict=True):
            for pixel, moved in zip(face[::7, ::7].reshape(-1, 3), ours[::7, ::7].reshape(-1, 3), strict=True):
                hue, saturation, value = colorsys.rgb_to_hsv(*(pixel / 255))
                parts = (np.clip(x + m * 50 / 255, 0, 1) for x, m in ((saturation, move[1]), (value, move[2])))
                wanted = colorsys.hsv_to_rgb((hue + move[0] * 100 / 360) % 1, *parts)
                assert np.abs(255 * np.array(wanted) - moved).max() < 1.01


def test_contrast_and_brightness(changed):
    plain = changed(None).astype(float)
    for chance in ([1.0, 0.0], [0.0, 1.0], [0.25, 0.6], [0.5, 0.5]):
        contrast, brightness = 0.8 * (2 * np.array(chance) - 1)
        wanted = np.clip(plain * (1 + contrast) + 255 * brightness, 0, 255)
        assert np.abs(changed("brightness_contrast", np.array([*chance, 0])) - wanted).max() < 1.01


def test_crops_are_parts(changed):
    plain = changed(None)
    for chance, start in (((0, 0), (0, 0)), ((1, 0), (8, 0)), ((0, 1), (0, 8)), ((0.5, 0.5), (4, 4))):
        x, y = start
        wanted = plain[:, y : y + 56, x : x + 56]
        assert np.array_equal(changed("random_crop", np.array([*chance, 0])), wanted)


def test_a_turn_by_nothing_is_nothing_and_a_turn_is_that_of_pillow(changed):
    plain = changed(None)
    assert np.abs(changed("rotation", np.full(3, 0.5)).astype(int) - plain).max() <= 1
    for chance, angle in ((1.0, 45), (0.0, -45), (0.75, 22.5)):
        found = changed("rotation", np.full(3, chance))
        for face, ours in zip(plain, found, strict=True):
            wide = np.pad(face, ((40, 40), (40, 40), (0, 0)), "reflect")
            turned = np.asarray(Image.fromarray(wide).rotate(angle, Image.BILINEAR))[40:-40, 40:-40]
            assert np.abs(turned.astype(int) - ours).mean() < 1.5


def test_blur_and_compression_are_those_of_pillow(changed):
    plain = changed(None)
    blurred, compressed = changed("gaussian_blur"), changed("jpeg_compression")
    for face, soft, packed in zip(plain, blurred, compressed, strict=True):
        wanted = np.asarray(Image.fromarray(face).filter(ImageFilter.GaussianBlur(1.1))).astype(int)
        assert np.abs(wanted - soft)[3:-3, 3:-3].mean() < 1
        assert np.abs(face.astype(int) - soft).mean() > 2 * np.abs(wanted - soft).mean()
        file = io.BytesIO()
        Image.fromarray(face).save(file, "JPEG", quality=60)
        wanted = np.asarray(Image.open(file)).astype(int)
        assert np.abs(wanted - packed).mean() < 2
        assert np.abs(face.astype(int) - packed).mean() > 1
