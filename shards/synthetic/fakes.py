"""Real and fake faces among the synthetic ones: sensor noise on all, and on fakes the traces of their generators.

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
GRID = 4  # pixels between the traces of a generator's layers


def render_real(face: Face, size: int) -> Image.Image:
    """`face` with sensor noise, an RGB image of `size` x `size` pixels."""
    return to_image(photograph(face, size, rng=np.random.default_rng(face.seed)))


def render_fake(face: Face, size: int, *, folder: str) -> Image.Image:
    """`face` as the generator of `folder` would show it, a key of FAKES: an RGB image of `size` x `size` pixels."""
    rng = np.random.default_rng(face.seed)
    return to_image(FAKES[folder](photograph(face, size, rng=rng), face, rng))


def sample_folders(count: int, seed: int, *, fake_share: float) -> list[str]:
    """The folder of each of `count` faces, of which `fake_share` are spread evenly over the generators.

    The first N are the same for any count.
    """
    rng = random.Random(f"folders {seed}")
    return [rng.choice(list(FAKES)) if rng.random() < fake_share else REAL for _ in range(count)]


def photograph(face: Face, size: int, *, rng: np.random.Generator) -> np.ndarray:
    """`face` with the noise of a sensor, which grows with the root of the light; float32 [size, size, 3], 0-255."""
    pixels = np.asarray(render(face, size)).astype(np.float32)
    noise = np.float32(rng.uniform(*NOISE)) * np.sqrt(pixels / 255) * unit_noise(rng, size)
    return pixels + noise


def unit_noise(rng: np.random.Generator, size: int) -> np.ndarray:
    """Nearly normal noise of mean 0 and deviation 1, float32 [size, size, 3]: a sum of four uniform integers."""
    total = rng.integers(-128, 128, (4, size, size, 3), dtype=np.int16).sum(0)
    return (total + 2).astype(np.float32) / np.float32(2 * 256 / 12**0.5)


def to_image(pixels: np.ndarray) -> Image.Image:
    """Pixels [S, S, 3] as an image."""
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def resized(pixels: np.ndarray, size: int, *, resample: Image.Resampling) -> np.ndarray:
    """Pixels, float32 [S, S, 3], at another size."""
    return np.asarray(to_image(pixels).resize((size, size), resample)).astype(np.float32)


def inner_face(face: Face, size: int) -> np.ndarray:
    """A soft mask of the features, from the brows to below the mouth, float32 [size, size, 1], 0-1."""
    look = choose_look(face)
    pen = Pen(size, look)
    centre, height = (look.face_x, (look.eye_y + look.mouth_y) / 2), look.mouth_y - look.eye_y
    pen.ellipse(centre, (look.width * 0.78, height * 0.95), colour=look.skin, skin=255)
    mask = pen.image.getchannel(3).filter(ImageFilter.BoxBlur(size // 64))
    return np.asarray(mask)[..., None].astype(np.float32) / 255


def recolour(pixels: np.ndarray, face: Face, rng: np.random.Generator) -> np.ndarray:
    """Blend in features under another white balance, as of another picture (Li et al., Face X-ray, CVPR 2020)."""
    gains = 1 + rng.choice((-1, 1), 3) * rng.uniform(0.03, 0.09, 3)
    mask = inner_face(face, len(pixels))
    return pixels * (1 - mask) + pixels * gains.astype(np.float32) * mask


def blend_low_resolution(pixels: np.ndarray, face: Face, _: np.random.Generator) -> np.ndarray:
    """Blend in features that were synthesised at half the resolution (Li and Lyu, CVPRW 2019)."""
    mask, size = inner_face(face, len(pixels)), len(pixels)
    low = resized(pixels, size // 2, resample=Image.Resampling.BOX)
    return pixels * (1 - mask) + resized(low, size, resample=Image.Resampling.BILINEAR) * mask


def add_checkerboard(pixels: np.ndarray, _: Face, rng: np.random.Generator) -> np.ndarray:
    """Multiply by the uneven overlap of transposed convolutions (Odena et al., Distill 2016)."""
    pattern = 1 + rng.uniform(0.02, 0.05) * rng.choice((-1, 1), (GRID, GRID)).astype(np.float32)
    repeats = -(-len(pixels) // GRID)
    return pixels * np.tile(pattern, (repeats, repeats))[: len(pixels), : len(pixels), None]


def add_spectral_peaks(pixels: np.ndarray, _: Face, rng: np.random.Generator) -> np.ndarray:
    """Mix in the image upsampled from a grid: copies of its spectrum (Zhang et al., AutoGAN, WIFS 2019)."""
    size, share = len(pixels), np.float32(rng.uniform(0.15, 0.35))
    low = resized(pixels, size // GRID, resample=Image.Resampling.BOX)
    return pixels * (1 - share) + resized(low, size, resample=Image.Resampling.NEAREST) * share


def denoise(pixels: np.ndarray, _: Face, rng: np.random.Generator) -> np.ndarray:
    """Remove most of the noise, but no edges: diffusion lacks high frequencies (Corvi et al., CVPRW 2023)."""
    share = np.float32(rng.uniform(0.4, 0.8))
    smooth = np.asarray(to_image(pixels).filter(ImageFilter.MedianFilter(3))).astype(np.float32)
    return pixels * (1 - share) + smooth * share


def coarsen_noise(pixels: np.ndarray, face: Face, rng: np.random.Generator) -> np.ndarray:
    """Replace the noise by one of a latent grid: it is correlated over the pixels that are decoded together."""
    size = len(pixels)
    noise = unit_noise(rng, -(-size // 2)).repeat(2, 0).repeat(2, 1)[:size, :size]
    return np.asarray(render(face, size)).astype(np.float32) + np.float32(rng.uniform(*NOISE)) * noise


FAKES: dict[str, Artefact] = {  # family and method -> how its generator changes a face
    "deepfakes/Recoloured": recolour,
    "deepfakes/LowResolution": blend_low_resolution,
    "GANs/Checkerboard": add_checkerboard,
    "GANs/SpectralPeaks": add_spectral_peaks,
    "DMs/Denoised": denoise,
    "DMs/CoarseNoise": coarsen_noise,
}
