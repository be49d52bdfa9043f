"""Synthetic faces as real faces and fakes: all have sensor noise, and fakes the traces of their generators.

The traces are those that detectors of photographs rely on. Every function is a pure function of its arguments, and uses
only arithmetic that is the same on every machine.
"""

import random
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageFilter

from shards.synthetic.face import Face
from shards.synthetic.look import choose_look
from shards.synthetic.pen import Pen
from shards.synthetic.render import render

Artefact: TypeAlias = Callable[[np.ndarray, Face, np.random.Generator], np.ndarray]

VERSION = 1  # bumped when the rendered images change, so that older folders are rendered again
REAL = "Real/Synthetic"
NOISE = (2.0, 5.0)  # standard deviation of the sensor noise at full brightness, in grey levels
# The ranges that the strength of each fake's trace is sampled from, as a share of the image.
PALE = (0.5, 0.9)  # of the colour
SEAM = (0.3, 0.6)  # of the light
GRID = (0.03, 0.08)  # of the light
SMOOTH = (0.6, 1.0)  # of the finest detail


def render_real(face: Face, size: int) -> Image.Image:
    """`face` with sensor noise, an RGB image of `size` x `size` pixels."""
    return to_image(photograph(face, size, rng=np.random.default_rng(face.seed)))


def render_fake(face: Face, size: int, *, folder: str) -> Image.Image:
    """`face` with the trace of the generator `folder`, a key of FAKES: an RGB image of `size` x `size` pixels."""
    rng = np.random.default_rng(face.seed)
    return to_image(FAKES[folder](photograph(face, size, rng=rng), face, rng))


def sample_folders(count: int, seed: int, *, fake_share: float) -> list[str]:
    """The folder of each of `count` faces, of which `fake_share` are spread evenly over the generators.

    The first N are the same for any count.
    """
    rng = random.Random(f"folders {seed}")
    return [rng.choice(list(FAKES)) if rng.random() < fake_share else REAL for _ in range(count)]


def photograph(face: Face, size: int, *, rng: np.random.Generator) -> np.ndarray:
    """`face` with sensor noise, which grows with the square root of the light; float32 [size, size, 3], 0-255."""
    pixels = np.asarray(render(face, size)).astype(np.float32)
    noise = np.float32(rng.uniform(*NOISE)) * np.sqrt(pixels / 255) * unit_noise(rng, size)
    return pixels + noise


def unit_noise(rng: np.random.Generator, size: int) -> np.ndarray:
    """Nearly normal noise with mean 0 and variance 1, float32 [size, size, 3]: a sum of four uniform integers."""
    total = rng.integers(-128, 128, (4, size, size, 3), dtype=np.int16).sum(0)
    return (total + 2).astype(np.float32) / np.float32(2 * 256 / 12**0.5)


def to_image(pixels: np.ndarray) -> Image.Image:
    """Pixels [S, S, 3] as an image."""
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def inner_face(face: Face, size: int) -> np.ndarray:
    """A mask of the features, from the brows to below the mouth, float32 [size, size, 1], 0-1, with a narrow edge."""
    look = choose_look(face)
    pen = Pen(size, look)
    centre, height = (look.face_x, (look.eye_y + look.mouth_y) / 2), look.mouth_y - look.eye_y
    pen.ellipse(centre, (look.width * 0.78, height * 0.95), colour=look.skin, skin=255)
    mask = pen.image.getchannel(3).filter(ImageFilter.BoxBlur(size // 32))
    return np.asarray(mask)[..., None].astype(np.float32) / 255


def recolour(pixels: np.ndarray, face: Face, rng: np.random.Generator) -> np.ndarray:
    """Blend in features of paler colours, as of another picture (Li and Lyu, CVPRW 2019)."""
    mask = inner_face(face, len(pixels)) * np.float32(rng.uniform(*PALE))
    return pixels * (1 - mask) + pixels.mean(2, keepdims=True) * mask


def leave_seam(pixels: np.ndarray, face: Face, rng: np.random.Generator) -> np.ndarray:
    """Blend in features with a seam where both pictures are mixed (Li et al., Face X-ray, CVPR 2020)."""
    mask = inner_face(face, len(pixels))
    seam = 4 * mask * (1 - mask)
    return pixels * (1 - np.float32(rng.uniform(*SEAM)) * seam)


def add_checkerboard(pixels: np.ndarray, _: Face, rng: np.random.Generator) -> np.ndarray:
    """Multiply by the uneven overlap of transposed convolutions (Odena et al., Distill 2016)."""
    wave = square_wave(len(pixels))
    return pixels * (1 + np.float32(rng.uniform(*GRID)) * (wave[:, None] * wave)[..., None])


def add_stripes(pixels: np.ndarray, _: Face, rng: np.random.Generator) -> np.ndarray:
    """Multiply by stripes: peaks of the spectrum, as upsampling leaves them (Zhang et al., WIFS 2019)."""
    wave = square_wave(len(pixels))
    return pixels * (1 + np.float32(rng.uniform(*GRID) / 2) * (wave[:, None] + wave)[..., None])


def square_wave(size: int) -> np.ndarray:
    """-1 and 1 in turn, with a period of a sixteenth of the image, float32 [size]."""
    half = max(size // 32, 1)
    return (np.arange(size) // half % 2 * 2 - 1).astype(np.float32)


def denoise(pixels: np.ndarray, _: Face, rng: np.random.Generator) -> np.ndarray:
    """Remove most of the noise, but no edges: diffusion lacks high frequencies (Corvi et al., CVPRW 2023)."""
    share, width = np.float32(rng.uniform(*SMOOTH)), max(len(pixels) // 64, 1) * 2 + 1
    smooth = np.asarray(to_image(pixels).filter(ImageFilter.MedianFilter(width))).astype(np.float32)
    return pixels * (1 - share) + smooth * share


def decode_latents(pixels: np.ndarray, _: Face, rng: np.random.Generator) -> np.ndarray:
    """Resample through a smaller grid: a decoder of latents restores only part of the finest detail."""
    size, share = len(pixels), np.float32(rng.uniform(*SMOOTH))
    low = to_image(pixels).reduce(max(size // 32, 2))
    decoded = np.asarray(low.resize((size, size), Image.Resampling.BICUBIC)).astype(np.float32)
    return pixels * (1 - share) + decoded * share


FAKES: dict[str, Artefact] = {  # family and method -> how its generator changes a face
    "deepfakes/Recoloured": recolour,
    "deepfakes/Seam": leave_seam,
    "GANs/Checkerboard": add_checkerboard,
    "GANs/Stripes": add_stripes,
    "DMs/Denoised": denoise,
    "DMs/Latents": decode_latents,
}
