"""A pen that draws in the unit frame, and the curves that it draws."""

from functools import cache
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw

from shards.synthetic.face import Colour
from shards.synthetic.look import Look

Point: TypeAlias = tuple[float, float]  # x, y in the unit frame


class Pen:
    """Draws in the unit frame on a canvas of `edge` x `edge` pixels.

    The fourth channel of the canvas is a mask of the skin, 0-255, which `light` shades.
    """

    def __init__(self, edge: int, look: Look):
        self.image = Image.new("RGBX", (edge, edge), (*look.background, 0))
        self.draw, self.edge, self.zoom = ImageDraw.Draw(self.image), edge, look.zoom
        self.dx, self.dy = 0.5 + look.shift[0] - 0.5 * look.zoom, 0.5 + look.shift[1] - 0.5 * look.zoom
        self.scale, self.origin = look.zoom * edge, np.array([self.dx * edge, self.dy * edge])

    def to_pixels(self, points: ArrayLike) -> np.ndarray:
        """Points [..., N, 2] of the unit frame in pixels, flattened as Pillow takes them: [..., 2 * N]."""
        pixels = np.asarray(points) * self.scale + self.origin
        return pixels.reshape(*pixels.shape[:-2], -1)

    def polygon(self, points: ArrayLike, colour: Colour, *, skin: int = 0) -> None:
        self.draw.polygon(self.to_pixels(points).tolist(), (*colour, skin))

    def ellipse(self, centre: Point, radii: Point, *, colour: Colour, skin: int = 0) -> None:
        (x, y), (rx, ry), e, z = centre, radii, self.edge, self.zoom
        x, y, rx, ry = (x * z + self.dx) * e, (y * z + self.dy) * e, rx * z * e, ry * z * e
        self.draw.ellipse((x - rx, y - ry, x + rx, y + ry), (*colour, skin))

    def line(self, points: ArrayLike, colour: Colour, *, width: float, skin: int = 0) -> None:
        self.draw.line(self.to_pixels(points).tolist(), (*colour, skin), max(1, round(width * self.edge)))


@cache
def unit_steps(steps: int) -> np.ndarray:
    """Equidistant numbers from 0 to 1."""
    return np.linspace(0, 1, steps)


def arc(start: Point, end: Point, *, bend: float, steps: int = 9) -> np.ndarray:
    """Points [steps, 2] of a parabola from `start` to `end`, `bend` below its chord in the middle."""
    return _arc_weights(steps) @ np.array([start, end, (0.0, bend)])


@cache
def _arc_weights(steps: int) -> np.ndarray:
    t = unit_steps(steps)
    return np.stack([1 - t, t, 4 * t * (1 - t)], 1)


def curve(*knots: Point, steps: int = 14) -> np.ndarray:
    """Points [steps, 2] of a smooth curve through `knots`: a Catmull-Rom spline."""
    return _curve_weights(len(knots), steps) @ np.array(knots)


@cache
def _curve_weights(knots: int, steps: int) -> np.ndarray:
    """Weights [steps, knots] of a Catmull-Rom spline."""
    position = unit_steps(steps) * (knots - 1)
    left = np.minimum(position.astype(int), knots - 2)
    t, weights = position - left, np.zeros((steps, knots))
    bases = (-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, -(t**2) + t**3)
    for offset, basis in enumerate(bases, -1):
        np.add.at(weights, (np.arange(steps), np.clip(left + offset, 0, knots - 1)), basis / 2)
    return weights


def bow(centre: Point, radii: Point, *, squareness: float, steps: int = 25) -> np.ndarray:
    """Points [steps, 2] of the upper half of a superellipse, from left to right."""
    return _bow_weights(squareness, steps) * radii + centre


@cache
def _bow_weights(squareness: float, steps: int) -> np.ndarray:
    angle = np.linspace(np.pi, 0, steps)
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack([np.sign(cos) * np.abs(cos) ** (2 / squareness), -(np.abs(sin) ** (2 / squareness))], 1)


def head_outline(look: Look, steps: int = 44) -> np.ndarray:
    """The closed contour of the head [2 * steps, 2]: round above; `jaw` and `taper` shape the lower half."""
    v = -np.cos(np.pi * unit_steps(steps))
    size = np.abs(v)
    skull, face = (1 - size**2.3) ** 0.455, (1 - size**look.jaw) ** 0.5 * (1 - look.taper * size)
    half = look.width * np.where(v < 0, skull, face)
    y = look.y + v * look.height
    return np.concatenate([np.stack([look.x + half, y], 1), np.stack([look.x - half, y], 1)[::-1]])
