"""Renders synthetic faces."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from shards.synthetic import features, hair
from shards.synthetic.face import Face
from shards.synthetic.light import apply_light
from shards.synthetic.look import choose_look
from shards.synthetic.pen import Pen

LAYERS = (  # from back to front
    hair.draw_hair_behind,
    features.draw_neck,
    features.draw_head,
    features.draw_beard,
    features.draw_nose,
    features.draw_mouth,
    features.draw_wrinkles,
    features.draw_eyes,
    hair.draw_hair_in_front,
    features.draw_glasses_and_earrings,
)


def render(face: Face, size: int = 128) -> Image.Image:
    """`face` as an RGB image of `size` x `size` pixels, drawn at twice the size; a pure function of both."""
    look = choose_look(face)
    pen = Pen(2 * size, look)
    for draw in LAYERS:
        draw(pen, look)
    return apply_light(pen, look, size)


def render_reduced(faces: Sequence[Face], size: int) -> np.ndarray:
    """Faces at 128 pixels, reduced by an antialiased triangle filter (Pillow's): uint8 [N, size, size, 3]."""
    return np.stack([np.asarray(render(face).resize((size, size), Image.Resampling.BILINEAR)) for face in faces])


def save_reduced(path: Path, faces: Sequence[Face], size: int) -> None:
    """Save the result of `render_reduced` as a .npy file."""
    np.save(path, render_reduced(faces, size))
