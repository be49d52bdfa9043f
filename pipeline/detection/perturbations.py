"""Image perturbations of AI-Face's robustness benchmark, in DALI.

Kinds and strengths are those of the benchmark, which uses albumentations. Every perturbation is a function of

    strength  the `Strength` of the benchmark for the detector
    fn, types DALI's modules (passed in, so that DALI is imported only where it is used)
    images    DALI's uint8 images, [size, size, 3] each
    random    DALI's float32 [RANDOM_NUMBERS] of each image, uniform in [0, 1); None for those that need none
    size      the side of the images in pixels

and returns DALI's perturbed uint8 images.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

HSV_SHIFT = 50  # largest shift: of hue in steps of 2 degrees, of saturation and value in 255ths
CROP = 7 / 8  # side of the crop relative to the image's: 224 of 256 pixels
RANDOM_NUMBERS = 3  # per face


@dataclass(frozen=True)
class Strength:
    """How strong the perturbations are."""

    window: int  # pixels of the blur
    sigma: float  # pixels of the blur; OpenCV's for the window, 0.3 ((window - 1) / 2 - 1) + 0.8
    quality: int  # of JPEG
    contrast: float  # largest change of contrast and brightness
    angle: float  # largest rotation, degrees


STRONG = Strength(window=5, sigma=1.1, quality=60, contrast=0.8, angle=45)
MILD = Strength(window=3, sigma=0.8, quality=80, contrast=0.4, angle=30)  # for ViT and UnivFD

PerturbationFunction = Callable[[Strength, Any, Any, Any, Any, int], Any]


def gaussian_blur(strength: Strength, fn: Any, types: Any, images: Any, random: Any, size: int) -> Any:
    return fn.gaussian_blur(images, window_size=strength.window, sigma=strength.sigma)


def jpeg_compression(strength: Strength, fn: Any, types: Any, images: Any, random: Any, size: int) -> Any:
    return fn.jpeg_compression_distortion(images, quality=strength.quality)


def hue_saturation_value(strength: Strength, fn: Any, types: Any, images: Any, random: Any, size: int) -> Any:
    """Shift hue, saturation and value: converts to HSV and back, as OpenCV defines it."""
    from nvidia.dali import math

    shift = (random.gpu() if images.device == "gpu" else random) * 2.0 - 1.0
    hue, saturation, value = rgb_to_hsv(fn.cast(images, dtype=types.FLOAT) / 255.0, fn=fn, types=types)
    hue = hue + shift[0] * (HSV_SHIFT * 2 / 60)
    saturation = math.clamp(saturation + shift[1] * (HSV_SHIFT / 255), 0.0, 1.0)
    value = math.clamp(value + shift[2] * (HSV_SHIFT / 255), 0.0, 1.0)
    pixels = hsv_to_rgb((hue, saturation, value), fn=fn)
    return fn.cast(math.floor(pixels * 255.0 + 0.5), dtype=types.UINT8)


def rgb_to_hsv(pixels: Any, *, fn: Any, types: Any) -> tuple[Any, Any, Any]:
    """Hue in sixths of a turn (-1 to 5), saturation and value in [0, 1], of RGB in [0, 1]."""
    from nvidia.dali import math

    red, green, blue = (pixels[:, :, i : i + 1] for i in range(3))
    value = math.max(math.max(red, green), blue)
    span = value - math.min(math.min(red, green), blue)
    divisor = math.max(span, 1e-6)
    # which channel is the largest: the first of equal ones
    is_red, is_green = fn.cast(red >= value, dtype=types.FLOAT), fn.cast(green >= value, dtype=types.FLOAT)
    is_green = is_green * (1.0 - is_red)
    is_blue = 1.0 - is_red - is_green
    hue = (
        is_red * (green - blue) / divisor
        + is_green * (2.0 + (blue - red) / divisor)
        + is_blue * (4.0 + (red - green) / divisor)
    )
    return hue, span / math.max(value, 1e-6), value


def hsv_to_rgb(hsv: tuple[Any, Any, Any], *, fn: Any) -> Any:
    """RGB in [0, 1] of hue in sixths of a turn (-3 to 7), saturation and value in [0, 1]."""
    from nvidia.dali import math

    hue, saturation, value = hsv

    def channel(offset: float) -> Any:
        sixth = hue + offset + 6.0  # 6 more, so that it is positive
        sixth = sixth - 6.0 * math.floor(sixth / 6.0)
        return value - value * saturation * math.clamp(math.min(sixth, 4.0 - sixth), 0.0, 1.0)

    return fn.cat(channel(5.0), channel(3.0), channel(1.0), axis=2)


def brightness_contrast(strength: Strength, fn: Any, types: Any, images: Any, random: Any, size: int) -> Any:
    """image (1 + c) + b, with c and b up to `strength.contrast` either way, where black is 0 and white 1."""
    change = (random * 2.0 - 1.0) * strength.contrast
    return fn.brightness_contrast(images, contrast_center=0.0, contrast=1.0 + change[0], brightness_shift=change[1])


def random_crop(strength: Strength, fn: Any, types: Any, images: Any, random: Any, size: int) -> Any:
    """Crop a random square; the result is smaller, [CROP size, CROP size, 3]."""
    side = round(size * CROP)
    return fn.crop(images, crop=(side, side), crop_pos_x=random[0], crop_pos_y=random[1])


def rotation(strength: Strength, fn: Any, types: Any, images: Any, random: Any, size: int) -> Any:
    """Rotate about the centre; the corners are filled by reflection, which does not repeat the outermost pixels."""
    edge = size // 4  # the corner of a rotated square reaches 0.21 of its side beyond it

    def pad_by_reflection(images: Any, axis: int) -> Any:
        flip = {"horizontal": 1} if axis else {"horizontal": 0, "vertical": 1}
        cut = (lambda a, b: images[:, a:b]) if axis else (lambda a, b: images[a:b])
        before, after = cut(1, edge + 1), cut(size - edge - 1, size - 1)
        return fn.cat(fn.flip(before, **flip), images, fn.flip(after, **flip), axis=axis)

    padded = pad_by_reflection(pad_by_reflection(images, 0), 1)
    angle = (random[0] * 2.0 - 1.0) * strength.angle
    rotated = fn.rotate(padded, angle=angle, keep_size=True, interp_type=types.INTERP_LINEAR)
    return fn.crop(rotated, crop=(size, size))


RANDOM_PERTURBATIONS = ("hue_saturation_value", "brightness_contrast", "random_crop", "rotation")
PERTURBATIONS: dict[str, PerturbationFunction] = {
    "gaussian_blur": gaussian_blur,
    "jpeg_compression": jpeg_compression,
    "hue_saturation_value": hue_saturation_value,
    "brightness_contrast": brightness_contrast,
    "random_crop": random_crop,
    "rotation": rotation,
}
