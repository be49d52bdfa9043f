"""Skin tone from pixels: colour arithmetic against published values, the patch on synthetic faces of known tone."""

import pytest
import torch

from models import skin
from pipeline.labelling.embedded_fit import render_faces
from shards.synthetic import face

COLOURS = torch.tensor([list(colour) for colour in skin.MONK], dtype=torch.uint8)


@pytest.fixture(scope="module")
def faces():
    """200 synthetic faces, uint8 [200, 64, 64, 3], and their tones."""
    images, classes = render_faces(200, seed=31, progress=False)
    return images.movedim(1, -1), classes[:, 2] + 1


def uniform_images(colours, size):
    """Images [B, size, size, 3], each of a single one of `colours` [B, 3]."""
    return colours[:, None, None].expand(-1, size, size, -1)


# --- colour ---


@pytest.mark.parametrize(
    ("rgb", "expected"),
    [  # from Lindbloom's calculator and MATLAB's rgb2lab, for sRGB and D65
        ((255, 255, 255), (100, 0, 0)),
        ((0, 0, 0), (0, 0, 0)),
        ((128, 128, 128), (53.585, 0, 0)),
        ((255, 0, 0), (53.241, 80.092, 67.203)),
        ((0, 255, 0), (87.735, -86.183, 83.179)),
        ((0, 0, 255), (32.297, 79.188, -107.860)),
        ((255, 255, 0), (97.139, -21.554, 94.478)),
        ((0, 255, 255), (91.113, -48.088, -14.131)),
        ((255, 0, 255), (60.324, 98.234, -60.825)),
        ((1, 1, 1), (0.2742, 0, 0)),  # both linear segments: (29/3)^3 / 12.92 / 255
    ],
)
def test_lab_of_published_colours(rgb, expected):
    for dtype in (torch.uint8, torch.float32):
        lab = skin.lab(torch.tensor(rgb, dtype=dtype))
        assert lab.dtype == torch.float32
        assert lab.tolist() == pytest.approx(expected, abs=2e-3)


def test_lab_keeps_the_shape():
    rgb = torch.randint(0, 256, (2, 5, 4, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    lab = skin.lab(rgb)
    assert lab.shape == rgb.shape
    assert torch.equal(lab[1, 3, 2], skin.lab(rgb[1, 3, 2]))


def test_typology_angle_of_values_computed_by_hand():
    lab = torch.tensor([[70.0, 5.0, 20.0], [50 + 20 * 3**0.5, -9.0, 20.0], [40.0, 5.0, 10.0], [60.0, 0.0, 0.0]])
    assert skin.typology_angle(lab).tolist() == pytest.approx([45, 60, -45, 90], abs=1e-4)


def test_the_tones_are_those_of_synthetic_faces_and_ordered_by_their_angle():
    assert [tuple(colour) for colour in skin.MONK] == list(face.TONES.values())
    lab = skin.lab(COLOURS)
    assert torch.dist(lab[0], lab[1]).item() == pytest.approx(2.74, abs=0.01)
    assert lab[2, 0] > lab[1, 0]  # tone 3 is lighter than tone 2
    angles = skin.typology_angle(lab)
    assert torch.equal(angles, angles.sort(descending=True).values)  # nevertheless the angle orders all of them


# --- the patch ---


@pytest.mark.parametrize("size", [1, 7, 32, 33, 64, 128])
def test_a_uniform_image_has_its_own_tone(size):
    images = uniform_images(COLOURS, size)
    tones, angles = skin.read_skin(images)
    assert tones.tolist() == list(range(1, 11))
    assert (tones.dtype, angles.dtype) == (torch.int64, torch.float32)
    assert torch.equal(skin.patch(images), COLOURS.float())
    assert torch.equal(angles, skin.typology_angle(skin.lab(COLOURS)))


@pytest.mark.parametrize("size", [32, 64, 128])
def test_only_the_bridge_of_the_nose_is_read(size):
    images = uniform_images(COLOURS[[1]], size).clone()
    images[:, 14 * size // 32 : 20 * size // 32, 15 * size // 32 : 17 * size // 32] = COLOURS[6]
    assert skin.read_skin(images)[0].tolist() == [7]
    images[:, 15 * size // 32 : 17 * size // 32] = 20  # glasses across a third of it
    assert skin.read_skin(images)[0].tolist() == [7]


def test_the_median_of_an_even_number_of_pixels_is_the_mean_of_the_middle_two():
    images = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
    images[:, 17:20] = 101  # six of the patch's twelve pixels
    assert skin.patch(images).tolist() == [[50.5] * 3]


def test_tones_and_groups_of_synthetic_faces_are_read_accurately(faces):
    images, truth = faces
    tones, angles = skin.read_skin(images)
    group_ends = torch.tensor([3, 6])  # light is tones 1-3, medium 4-6, dark 7-10
    assert (tones == truth).float().mean() > 0.95  # 0.99 of 1,600 others
    assert (torch.bucketize(tones, group_ends) == torch.bucketize(truth, group_ends)).float().mean() > 0.98
    by_tone = [angles[truth == tone].mean().item() for tone in range(1, 11)]
    assert by_tone == sorted(by_tone, reverse=True)


def test_the_other_images_of_a_batch_do_not_matter(faces):
    images = faces[0][:50]
    expected = skin.read_skin(images)
    for size in (1, 7, 32):
        parts = zip(*(skin.read_skin(batch) for batch in images.split(size)), strict=True)
        assert all(torch.equal(a, torch.cat(b)) for a, b in zip(expected, parts, strict=True))
    assert all(torch.equal(a, b.flip(0)) for a, b in zip(expected, skin.read_skin(images.flip(0)), strict=True))
    assert [len(part) for part in skin.read_skin(images[:0])] == [0, 0]


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(2, 64, 64, 3),
        torch.zeros(2, 64, 64, 3, dtype=torch.int64),
        torch.zeros(2, 3, 64, 64, dtype=torch.uint8),
        torch.zeros(64, 64, 3, dtype=torch.uint8),
        torch.zeros(2, 64, 48, 3, dtype=torch.uint8),
        torch.zeros(2, 64, 64, 4, dtype=torch.uint8),
        torch.zeros(2, 0, 0, 3, dtype=torch.uint8),
    ],
    ids=lambda images: f"{images.dtype}{list(images.shape)}",
)
def test_images_of_another_shape_or_type_are_refused(images):
    for function in (skin.read_skin, skin.patch):
        with pytest.raises(ValueError, match=r"expected uint8 images \[B, S, S, 3\], got torch"):
            function(images)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is available")
def test_a_gpu_computes_the_same(faces):
    tones, angles = skin.read_skin(faces[0].cuda())
    expected = skin.read_skin(faces[0])
    assert torch.equal(tones.cpu(), expected[0])
    assert torch.allclose(angles.cpu(), expected[1], atol=1e-4)
