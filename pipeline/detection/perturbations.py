"""What happens to pictures on their way through the world, done to faces by DALI before a detector sees them.

Kinds and strengths are those of AI-Face's benchmark, which has them of albumentations; a step of chance is uniform.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

SHIFT = 50  # of hue in steps of 2 degrees, of saturation and value in 255ths, either way
CROP = 7 / 8  # of the side: 224 of 256 pixels
RANDOM_NUMBERS = 3  # numbers of chance that a face gets


@dataclass(frozen=True)
class Strength:
    """How much is done; a blur's deviation is OpenCV's for its window, 0.3 ((window - 1) / 2 - 1) + 0.8."""

    window: int  # pixels
    sigma: float
    quality: int  # of JPEG
    contrast: float  # and brightness, either way
    angle: float  # degrees, either way


STRONG = Strength(5, 1.1, 60, 0.8, 45)
MILD = Strength(3, 0.8, 80, 0.4, 30)  # for ViT and UnivFD


def gaussian_blur(how: Strength, fn: Any, types: Any, images: Any, chance: Any, size: int) -> Any:
    return fn.gaussian_blur(images, window_size=how.window, sigma=how.sigma)


def jpeg_compression(how: Strength, fn: Any, types: Any, images: Any, chance: Any, size: int) -> Any:
    return fn.jpeg_compression_distortion(images, quality=how.quality)


def hue_saturation_value(how: Strength, fn: Any, types: Any, images: Any, chance: Any, size: int) -> Any:
    """Hue, saturation and value moved: to HSV and back, as OpenCV defines it."""
    from nvidia.dali import math

    pixels = fn.cast(images, dtype=types.FLOAT) / 255.0
    red, green, blue = (pixels[:, :, i : i + 1] for i in range(3))
    value = math.max(math.max(red, green), blue)
    span = value - math.min(math.min(red, green), blue)
    some = math.max(span, 1e-6)
    # which channel is the largest: the first of equal ones
    is_red, is_green = fn.cast(red >= value, dtype=types.FLOAT), fn.cast(green >= value, dtype=types.FLOAT)
    is_green = is_green * (1.0 - is_red)
    is_blue = 1.0 - is_red - is_green
    sixth = (
        is_red * (green - blue) / some + is_green * (2.0 + (blue - red) / some) + is_blue * (4.0 + (red - green) / some)
    )
    move = (chance.gpu() if images.device == "gpu" else chance) * 2.0 - 1.0
    sixth = sixth + move[0] * (SHIFT * 2 / 60)
    saturation = math.clamp(span / math.max(value, 1e-6) + move[1] * (SHIFT / 255), 0.0, 1.0)
    value = math.clamp(value + move[2] * (SHIFT / 255), 0.0, 1.0)

    def channel(first: float) -> Any:
        place = sixth + first + 6.0  # 6 more: the sixths lie from -3 to 6
        place = place - 6.0 * math.floor(place / 6.0)
        return value - value * saturation * math.clamp(math.min(place, 4.0 - place), 0.0, 1.0)

    mixed = fn.cat(channel(5.0), channel(3.0), channel(1.0), axis=2)
    return fn.cast(math.floor(mixed * 255.0 + 0.5), dtype=types.UINT8)


def brightness_contrast(how: Strength, fn: Any, types: Any, images: Any, chance: Any, size: int) -> Any:
    """image (1 + c) + b, both of them up to `how.contrast`, of black 0 and white 1."""
    move = (chance * 2.0 - 1.0) * how.contrast
    return fn.brightness_contrast(images, contrast_center=0.0, contrast=1.0 + move[0], brightness_shift=move[1])


def random_crop(how: Strength, fn: Any, types: Any, images: Any, chance: Any, size: int) -> Any:
    side = round(size * CROP)
    return fn.crop(images, crop=(side, side), crop_pos_x=chance[0], crop_pos_y=chance[1])


def rotation(how: Strength, fn: Any, types: Any, images: Any, chance: Any, size: int) -> Any:
    """About the centre; what comes in from outside is the face mirrored, without its outermost pixels."""
    edge = size // 4  # a square's corner reaches 0.21 of its side beyond it

    def mirrored(images: Any, axis: int) -> Any:
        flip = {"horizontal": 1} if axis else {"horizontal": 0, "vertical": 1}
        take = (lambda a, b: images[:, a:b]) if axis else (lambda a, b: images[a:b])
        before, after = take(1, edge + 1), take(size - edge - 1, size - 1)
        return fn.cat(fn.flip(before, **flip), images, fn.flip(after, **flip), axis=axis)

    wide = mirrored(mirrored(images, 0), 1)
    turned = fn.rotate(wide, angle=(chance[0] * 2.0 - 1.0) * how.angle, keep_size=True, interp_type=types.INTERP_LINEAR)
    return fn.crop(turned, crop=(size, size))


RANDOM_PERTURBATIONS = ("hue_saturation_value", "brightness_contrast", "random_crop", "rotation")
PERTURBATIONS: dict[str, Callable] = {
    "gaussian_blur": gaussian_blur,
    "jpeg_compression": jpeg_compression,
    "hue_saturation_value": hue_saturation_value,
    "brightness_contrast": brightness_contrast,
    "random_crop": random_crop,
    "rotation": rotation,
}
