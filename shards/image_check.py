"""Decides whether and in which form an image is packed: one image that DALI can't decode would abort training.

An image that DALI surely decodes is packed unchanged; any other good image as a PNG of the pixels that Pillow decodes.
"""

import warnings
from collections.abc import Callable
from io import BytesIO
from typing import NamedTuple, TypeVar

from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from shards.containers import (
    Container,
    image_type,
    is_unsupported_image,
    png_pixels_fault,
    read_container,
)

T = TypeVar("T")
# The formats that are packed, and the extension of each in a shard.
EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "BMP": "bmp", "TIFF": "tif"}
PILLOW_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")  # MPO opens as JPEG; GIF, to name it when rejecting it
TIFF_MODES = {"1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I;16B"}
TIFF_CODECS = {"raw", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "packbits", "jpeg", "zstd"}
MAX_BYTES = 1 << 28
MAX_PIXELS = 1 << 26  # 67 million: a bound on decompression bombs, far above any face image
MAX_SIDE = (1 << 31) - 1  # largest size in pixels that fits into a column; a header may claim more
MAX_ASPECT = 8  # long side to short: the feed resizes the short side first, and a very long image would fill the memory
Image.MAX_IMAGE_PIXELS = None  # MAX_PIXELS is checked before any pixel is decoded
warnings.filterwarnings("ignore", module=r"PIL\.")  # an image's faults are in its verdict


class Verdict(NamedTuple):
    """The result of an image's check; `reason` is None for a good image, otherwise `extension` is empty.

    Reasons: `empty`, `not_an_image`, `unsupported` (a kind that is not packed), `too_large`, `too_narrow`,
    `truncated`, `corrupt`; the packer adds `unreadable`.
    """

    reason: str | None
    extension: str = ""
    width: int | None = None  # pixels, as coded, before `orientation`; of a re-encoded image: of the new one
    height: int | None = None
    orientation: int | None = None  # EXIF's, 1-8; 1 without EXIF; of a re-encoded image: of the old one


def inspect(data: bytes, max_pixels: int = MAX_PIXELS) -> Verdict:
    """Decode an image once, and return whether it is good.

    JPEGs are decoded at an eighth of their size, which still reads every coded bit. A container that Pillow tolerates
    and DALI does not counts as corrupt or truncated.
    """
    return examine(data, max_pixels, use=lambda image, _: decode(image))[0]


def inspect_and_convert(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[Verdict, bytes]:
    """The verdict, and the bytes to pack: the original ones if DALI surely decodes them, otherwise an upright RGB PNG.

    A rejected image keeps its original bytes.
    """
    verdict, encoded = examine(
        data, max_pixels, use=lambda image, container: decode(image) if container.plainly_safe else encode_png(image)
    )
    return re_encoded(verdict, "png", encoded, data)


def inspect_and_resize(data: bytes, size: int, *, quality: int, max_pixels: int = MAX_PIXELS) -> tuple[Verdict, bytes]:
    """The verdict, and the image as an upright RGB JPEG whose shorter side has `size` pixels or fewer.

    It is resized with the feed's antialiased triangle filter. A rejected image keeps its original bytes.
    """
    verdict, encoded = examine(data, max_pixels, use=lambda image, _: encode_resized(image, size, quality=quality))
    return re_encoded(verdict, "jpg", encoded, data)


class Encoded(NamedTuple):
    """An image that was encoded again."""

    data: bytes
    size: tuple[int, int]  # width, height


def re_encoded(verdict: Verdict, extension: str, encoded: Encoded | None, data: bytes) -> tuple[Verdict, bytes]:
    """The verdict on an image, and its new bytes; `data` if it was not encoded again."""
    if encoded is None:
        return verdict, data
    return Verdict(None, extension, *encoded.size, verdict.orientation), encoded.data


def identify(data: bytes) -> Verdict:
    """The verdict without decoding: the type by the first bytes, and the orientation by EXIF if there is any."""
    if not data:
        return Verdict("empty")
    extension = image_type(data)
    if extension is None:
        return Verdict("unsupported" if is_unsupported_image(data) else "not_an_image")
    has_exif = {
        "jpg": lambda: data.find(b"Exif\0\0", 0, 1024) >= 0,
        "webp": lambda: b"EXIF" in data,
        "tif": lambda: True,
    }.get(extension, lambda: b"eXIf" in data)
    if not has_exif():
        return Verdict(None, extension, orientation=1)
    try:
        with Image.open(BytesIO(data), formats=PILLOW_FORMATS) as image:
            return Verdict(None, extension, orientation=exif_orientation(image))
    except Exception:  # whether it can be decoded does not matter here
        return Verdict(None, extension)


def examine(data: bytes, max_pixels: int, *, use: Callable[[Image.Image, Container], T]) -> tuple[Verdict, T | None]:
    """Open an image, and reject it or let `use` decode it; return the verdict and the result of `use`."""
    if not data:
        return Verdict("empty"), None
    size: tuple[int | None, int | None] = None, None
    try:
        with Image.open(BytesIO(data), formats=PILLOW_FORMATS) as image:
            size = header_size(image)
            container = read_container(data)
            if reason := rejection_reason(image, max_pixels) or container.fault:
                return Verdict(reason, "", *size), None
            verdict = Verdict(None, EXTENSIONS[str(image.format)], *size, exif_orientation(image))
            result = use(image, container)
            if image.format == "PNG" and ends_black(image) and (reason := png_pixels_fault(data)):
                return Verdict(reason, "", *size), None
            return verdict, result
    except UnidentifiedImageError:
        return Verdict("unsupported" if is_unsupported_image(data) else "not_an_image"), None
    except Exception as error:  # Pillow's decoders raise a dozen types for damaged bytes
        short = "truncated" in str(error) or "end of file" in str(error).lower()
        return Verdict("truncated" if short else "corrupt", "", *size), None


def header_size(image: Image.Image) -> tuple[int | None, int | None]:
    """Width and height of an opened image; None if its header claims more than fits into a column."""
    return image.size if all(0 <= side <= MAX_SIDE for side in image.size) else (None, None)


def rejection_reason(image: Image.Image, max_pixels: int) -> str | None:
    """The reason why an image is rejected by its header alone; None if it is not."""
    width, height = image.size
    if image.format not in EXTENSIONS or (image.format != "MPO" and getattr(image, "n_frames", 1) > 1):
        return "unsupported"
    if image.format == "TIFF":
        known = image.mode in TIFF_MODES and image.info.get("compression") in TIFF_CODECS
        if not known or ExifTags.Base.BitsPerSample not in image.tag_v2:  # type: ignore[attr-defined]
            return "unsupported"
    if width * height > max_pixels:
        return "too_large"
    return "too_narrow" if max(width, height) > MAX_ASPECT * min(width, height) else None


def exif_orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1-8; 1 if there is none that can be read."""
    if image.format != "TIFF" and "exif" not in image.info:
        return 1
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # broken EXIF is no reason to reject good pixels
        return 1
    return orientation if orientation in range(1, 9) else 1


def ends_black(image: Image.Image) -> bool:
    """Whether the last two rows of a decoded image are zero, as if pixels (even of an interlaced one) were missing."""
    width, height = image.size
    return not any(image.crop((0, max(height - 2, 0), width, height)).tobytes())


def decode(image: Image.Image) -> None:
    image.draft("RGB", (1, 1))
    image.load()


def upright_rgb(image: Image.Image) -> Image.Image:
    """The decoded image in 8-bit RGB, with EXIF's orientation applied."""
    if exif_orientation(image) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        import numpy as np  # imported here because 16 bits are rare, and every worker process would load it

        image.load()
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")


def encode_png(image: Image.Image) -> Encoded:
    """Encode the upright image as a PNG, without loss."""
    image = upright_rgb(image)
    file = BytesIO()
    image.info.clear()  # colour profile and transparency would be written, too
    image.save(file, "PNG")
    return Encoded(file.getvalue(), image.size)


def encode_resized(image: Image.Image, size: int, *, quality: int) -> Encoded:
    """Encode the upright image as a JPEG; the shorter side has `size` pixels unless it is smaller."""
    image.draft("RGB", (2 * size, 2 * size))  # a JPEG is decoded at twice the size or more, and filtered from there
    image = upright_rgb(image)
    scale = size / min(image.size)
    if scale < 1:
        width, height = (max(1, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    file = BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Encoded(file.getvalue(), image.size)
