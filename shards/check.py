"""Decides whether DALI will be able to decode an image, and says why not: one bad image ends a DALI pipeline."""

from io import BytesIO
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError

# What DALI's CPU and GPU decoders both take, and the extension under which it goes into a shard.
EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "BMP": "bmp", "TIFF": "tif"}
OPENED = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")  # MPO opens as JPEG; GIF, to name it when refusing it
TIFF_MODES = {"1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I;16B"}
TIFF_CODECS = {"raw", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "packbits", "jpeg", "zstd"}
MAX_BYTES = 1 << 28
MAX_PIXELS = 1 << 26  # 67 million: a bound on decompression bombs, far above any face image
MAX_ASPECT = 8  # long side to short: the feed resizes the short side first, and a ribbon would fill the memory


class Verdict(NamedTuple):
    """`reason` is None for a good image; otherwise `extension` is empty and the sizes are what was found out."""

    reason: str | None
    extension: str = ""
    width: int | None = None
    height: int | None = None


def inspect(data: bytes, max_pixels: int = MAX_PIXELS) -> Verdict:
    """Decodes an image once and judges it.

    JPEGs are decoded at an eighth of their size, which still reads every coded bit. Reasons: `empty`,
    `not_an_image`, `unsupported` (a kind that DALI does not take), `too_large`, `too_narrow`, `truncated`, `corrupt`.
    """
    if not data:
        return Verdict("empty")
    Image.MAX_IMAGE_PIXELS = None  # our own bound below comes before any pixel is decoded
    width = height = None
    try:
        with Image.open(BytesIO(data), formats=OPENED) as image:
            width, height = image.size
            if reason := refusal(image, max_pixels):
                return Verdict(reason, "", width, height)
            image.draft("RGB", (1, 1))
            image.load()
            return Verdict(None, EXTENSIONS[image.format], width, height)
    except UnidentifiedImageError:
        return Verdict("not_an_image")
    except Exception as error:  # Pillow's decoders raise a dozen types for bytes that somebody broke
        short = "truncated" in str(error) or "end of file" in str(error).lower()
        return Verdict("truncated" if short else "corrupt", "", width, height)


def refusal(image: Image.Image, max_pixels: int) -> str | None:
    """Why an image that can be opened can't be used, from its header alone."""
    width, height = image.size
    if image.format not in EXTENSIONS or (image.format != "MPO" and getattr(image, "n_frames", 1) > 1):
        return "unsupported"
    if image.format == "TIFF" and (image.mode not in TIFF_MODES or image.info.get("compression") not in TIFF_CODECS):
        return "unsupported"
    if width * height > max_pixels:
        return "too_large"
    return "too_narrow" if max(width, height) > MAX_ASPECT * min(width, height) else None
