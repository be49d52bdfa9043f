"""Decides whether DALI will be able to decode an image, and says why not: one bad image ends a DALI pipeline."""

import struct
import zlib
from io import BytesIO
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError

# What DALI's CPU and GPU decoders both take, and the extension under which it goes into a shard.
EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "BMP": "bmp", "TIFF": "tif"}
MAX_BYTES = 1 << 28
MAX_PIXELS = 1 << 26  # 67 million: a bound on decompression bombs, far above any face image


class Verdict(NamedTuple):
    """`reason` is None for a good image; otherwise `extension` is empty and the sizes are what was found out."""

    reason: str | None
    extension: str = ""
    width: int | None = None
    height: int | None = None


def inspect(data: bytes, max_pixels: int = MAX_PIXELS) -> Verdict:
    """Decodes an image once and judges it.

    JPEGs are decoded at an eighth of their size, which still reads every coded bit. Reasons: `empty`,
    `not_an_image`, `unsupported` (a format DALI does not take), `too_large`, `truncated`, `corrupt`.
    """
    if not data:
        return Verdict("empty")
    Image.MAX_IMAGE_PIXELS = None  # our own bound below comes before any pixel is decoded
    try:
        image = Image.open(BytesIO(data))
    except UnidentifiedImageError:
        return Verdict("not_an_image")
    except (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError):
        return Verdict("corrupt")
    with image:
        width, height = image.size
        if image.format not in EXTENSIONS or (getattr(image, "n_frames", 1) > 1 and image.format != "MPO"):
            return Verdict("unsupported", "", width, height)
        if width * height > max_pixels:
            return Verdict("too_large", "", width, height)
        try:
            image.draft("RGB", (1, 1))
            image.load()
        except (OSError, SyntaxError, ValueError, struct.error, zlib.error, IndexError) as error:
            short = "truncated" in str(error) or "end of file" in str(error).lower()
            return Verdict("truncated" if short else "corrupt", "", width, height)
    return Verdict(None, EXTENSIONS[image.format], width, height)
