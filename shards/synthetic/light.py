"""Light and shadow on a synthetic face."""

from typing import TypeAlias

import numpy as np
from PIL import Image

from shards.synthetic.look import Look
from shards.synthetic.pen import Pen

Spot: TypeAlias = tuple[float, float, float, float, float]  # x, y, spread in x, spread in y, per mille of light


def apply_light(pen: Pen, look: Look, size: int) -> Image.Image:
    """The canvas reduced to `size` x `size`, with soft shadows on the skin and one light over the whole image."""
    room: list[Spot] = [
        (0.0, 0.4, 0.4, 0.5, look.side_light),
        (1.0, 0.4, 0.4, 0.5, -look.side_light),
        (0.5, 0.1, 0.4, 0.25, 70),
        (0.0, 1.0, 0.3, 0.4, -160),
        (1.0, 1.0, 0.3, 0.4, -160),
    ]
    cheeks: list[Spot] = [(look.face_x + side * 0.15, look.nose_y - 0.03, 0.055, 0.04, look.blush) for side in (-1, 1)]
    light, shadow, blush = light_fields(pen, size, room, skin_shadows(look), cheeks)
    red, green, blue, skin = (np.asarray(band).astype(np.float32) for band in pen.image.reduce(2).split())
    skin /= 255
    light = (1 + light) * np.float32(look.light) * (1 + shadow * skin)
    cool = light * (1 - blush * skin)
    bands = (
        np.minimum(band * factor + 0.5, 255).astype(np.uint8)
        for band, factor in ((red, light), (green, cool), (blue, cool))
    )
    return Image.merge("RGB", [Image.fromarray(band) for band in bands])


def skin_shadows(look: Look) -> list[Spot]:
    """Soft shadows (-) and highlights (+) on the skin."""
    middle, x = look.x, look.face_x
    eye, nose, mouth, chin = look.eye_y, look.nose_y, look.mouth_y, look.chin
    shine = 1 + 3 * (1 - sum(look.skin) / 765) ** 2  # on dark skin, highlights show the form
    spots: list[Spot] = [
        (middle, look.top, 0.3, 0.06, -140),
        (x, eye - 0.16, 0.13, 0.06, 50 * shine),
        (middle, chin + 0.03, 0.16, 0.03, -200),
        (middle, chin + 0.08, 0.2, 0.05, -120),
        (x, (eye + nose) / 2, 0.016, 0.08, 90 * shine),
        (x, nose - 0.025, 0.022, 0.017, 90 * shine),
        (x, nose + 0.018, 0.04, 0.012, -180),
        (x, nose + 0.045, 0.012, 0.02, -60),
        (x, mouth + 0.058, 0.05, 0.014, -140),
        (x, chin - 0.045, 0.05, 0.03, 50 * shine),
    ]
    for side in (-1, 1):
        spots += _side_shadows(look, side, shine=shine)
    for k in range(max(0, round(3.2 * look.folds - 0.6))):  # lines of the forehead, each lit on its lower edge
        y, depth = eye - 0.122 - 0.036 * k, 200 * look.folds
        spots += [(x, y, 0.085 - 0.008 * k, 0.006, -depth), (x, y + 0.014, 0.085, 0.006, depth / 2)]
    if look.beard == "stubble":
        spots += [(x, mouth + 0.07, 0.15, 0.05, -260), (x, mouth - 0.032, 0.08, 0.016, -230)]
    return spots


def _side_shadows(look: Look, side: int, *, shine: float) -> list[Spot]:
    """The spots of one half of the face: -1 left, 1 right."""
    middle, x, w, folds = look.x, look.face_x, look.width, look.folds
    eye, nose, mouth, chin = look.eye_y, look.nose_y, look.mouth_y, look.chin
    return [
        (middle + side * w * 1.03, 0.58, 0.055, 0.24, -290),
        (middle + side * w * 0.8, chin - 0.06, 0.08, 0.07, -140),
        (x + side * look.eye_gap, eye - 0.035, 0.055, 0.02, -110),
        (x + side * 0.055, eye - 0.005, 0.02, 0.035, -140),
        (x + side * 0.04, nose - 0.055, 0.014, 0.045, -110),
        (x + side * 0.16, nose - 0.035, 0.055, 0.04, 85 + 10 * shine),
        (x + side * 0.12, eye + 0.055, 0.045, 0.014, -30 - 90 * folds),
        (x + side * 0.115, nose + 0.05, 0.02, 0.04, -130 * folds),
        (x + side * 0.17, mouth + 0.01, 0.035, 0.06, -150 * folds),
    ]


def light_fields(pen: Pen, edge: int, *groups: list[Spot]) -> list[np.ndarray]:
    """The sum of the separable Gaussians of each group of spots, float32 [edge, edge].

    The Gaussians are rounded to whole numbers first, so that the sums are exact: the same on every machine and in any
    order. BLAS is avoided because its threads mostly wait for each other at this size.
    """
    x, y, sx, sy, amount = np.array([spot for group in groups for spot in group]).T[:, :, None]
    centres = (np.arange(edge) + 0.5) / edge
    gx = np.rint(127 * np.exp(-0.5 * (((centres - pen.dx) / pen.zoom - x) / sx) ** 2)).astype(np.float32)
    gy = np.rint(127 * np.exp(-0.5 * (((centres - pen.dy) / pen.zoom - y) / sy) ** 2)).astype(np.float32)
    gy *= np.rint(amount / 5)  # steps of half a per cent keep every sum below 2 ** 24
    ends = np.cumsum([len(group) for group in groups])
    slices = (slice(end - len(group), end) for end, group in zip(ends, groups, strict=True))
    return [np.einsum("ky,kx->yx", gy[part], gx[part]) / np.float32(127**2 * 200) for part in slices]
