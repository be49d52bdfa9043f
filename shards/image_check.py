"""Decides whether DALI will be able to decode an image, and says why not: one bad image ends a DALI pipeline."""

import zlib
from collections.abc import Callable
from io import BytesIO
from typing import Any, NamedTuple

from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

# What DALI's CPU and GPU decoders both take, and the extension under which it goes into a shard.
EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "BMP": "bmp", "TIFF": "tif"}
PILLOW_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")  # MPO opens as JPEG; GIF, to name it when refusing it
MAGIC_BYTES = {b"\x89PNG\r\n\x1a\n": "png", b"BM": "bmp", b"II*\0": "tif", b"MM\0*": "tif"}
UNSUPPORTED_MAGIC_BYTES = (
    b"GIF8",
    b"\0\0\0\x0cjP  ",
    b"\xff\x4f\xff\x51",
)  # images too: GIF and JPEG 2000; AVIF has "ftyp"
TIFF_MODES = {"1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I;16B"}
TIFF_CODECS = {"raw", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "packbits", "jpeg", "zstd"}
MAX_BYTES = 1 << 28
MAX_PIXELS = 1 << 26  # 67 million: a bound on decompression bombs, far above any face image
MAX_ASPECT = 8  # long side to short: the feed resizes the short side first, and a ribbon would fill the memory
Image.MAX_IMAGE_PIXELS = None  # our own bound comes before any pixel is decoded


class Verdict(NamedTuple):
    """`reason` is None for a good image; otherwise `extension` is empty and the rest is what was found out."""

    reason: str | None
    extension: str = ""
    width: int | None = None  # as coded, before `orientation`
    height: int | None = None
    orientation: int | None = None  # EXIF's, 1-8; 1 where the image says nothing


def inspect(data: bytes, max_pixels: int = MAX_PIXELS) -> Verdict:
    """Decodes an image once and judges it.

    JPEGs are decoded at an eighth of their size, which still reads every coded bit. Reasons: `empty`,
    `not_an_image`, `unsupported` (a kind that DALI does not take), `too_large`, `too_narrow`, `truncated`, `corrupt`.
    What Pillow forgives and DALI does not counts as corrupt: bytes between a JPEG's segments, a PNG's checksums and
    end.
    """
    return examine(data, max_pixels, decode)[0]


def inspect_and_resize(data: bytes, size: int, quality: int, max_pixels: int = MAX_PIXELS) -> tuple[Verdict, bytes]:
    """The verdict, and the image again as an upright RGB JPEG whose shorter side is `size` pixels or fewer.

    The verdict's width and height are those of the new image, its orientation that of the old. Filtered as the feed
    filters: by an antialiased triangle.
    """
    verdict, new = examine(data, max_pixels, lambda image: encode_resized(image, size, quality))
    if verdict.reason:
        return verdict, b""
    coded, (width, height) = new
    return Verdict(None, "jpg", width, height, verdict.orientation), coded


def identify(data: bytes) -> Verdict:
    """The verdict of one who does not decode: by the first bytes, and the orientation by EXIF if there is any."""
    if data.startswith(b"\xff\xd8\xff"):
        extension, said = "jpg", data.find(b"Exif\0\0", 0, 1024) >= 0
    elif not data:
        return Verdict("empty")
    elif extension := next((extension for start, extension in MAGIC_BYTES.items() if data.startswith(start)), None):
        said = extension == "tif" or b"eXIf" in data
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        extension, said = "webp", b"EXIF" in data
    else:
        return Verdict(
            "unsupported" if data.startswith(UNSUPPORTED_MAGIC_BYTES) or data[4:8] == b"ftyp" else "not_an_image"
        )
    if not said:
        return Verdict(None, extension, orientation=1)
    try:
        with Image.open(BytesIO(data), formats=PILLOW_FORMATS) as image:
            return Verdict(None, extension, orientation=exif_orientation(image))
    except Exception:  # nobody asked whether it can be decoded
        return Verdict(None, extension)


def examine(data: bytes, max_pixels: int, use: Callable[[Image.Image], Any]) -> tuple[Verdict, Any]:
    """Opens an image, refuses it or lets `use` decode it; the verdict, and what `use` returned."""
    if not data:
        return Verdict("empty"), None
    size = None, None
    try:
        with Image.open(BytesIO(data), formats=PILLOW_FORMATS) as image:
            size = image.size
            if reason := rejection_reason(image, max_pixels):
                return Verdict(reason, "", *size), None
            if reason := container_fault(data, image.format):
                return Verdict(reason, "", *size), None
            orientation = exif_orientation(image)
            return Verdict(None, EXTENSIONS[image.format], *size, orientation), use(image)
    except UnidentifiedImageError:
        return Verdict(
            "unsupported" if data.startswith(UNSUPPORTED_MAGIC_BYTES) or data[4:8] == b"ftyp" else "not_an_image"
        ), None
    except Exception as error:  # Pillow's decoders raise a dozen types for bytes that somebody broke
        short = "truncated" in str(error) or "end of file" in str(error).lower()
        return Verdict("truncated" if short else "corrupt", "", *size), None


def container_fault(data: bytes, kind: str) -> str | None:
    """Why DALI would refuse the container of an image that Pillow opens; None for a sound one."""
    if kind in ("JPEG", "MPO"):
        return None if has_contiguous_segments(data) else "corrupt"
    if kind != "PNG":
        return None
    at = 8
    while at + 12 <= len(data):  # every chunk: length, name, content, checksum
        end = at + 8 + int.from_bytes(data[at : at + 4])
        if zlib.crc32(data[at + 4 : end]) != int.from_bytes(data[end : end + 4]) and end + 4 <= len(data):
            return "corrupt"
        if data[at + 4 : at + 8] == b"IEND" and end + 4 <= len(data):
            return None
        at = end + 4
    return "truncated"


def has_contiguous_segments(data: bytes) -> bool:
    """Whether a JPEG's segments follow each other from its start to its first scan, with nothing in between."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xDA:
            return True
        if marker == 0xFF:  # fill bytes are allowed
            at += 1
        elif 0xC0 <= marker <= 0xFE and not 0xD0 <= marker <= 0xD9:
            at += 2 + (data[at + 2] << 8 | data[at + 3])
        else:
            return False
    return False


def rejection_reason(image: Image.Image, max_pixels: int) -> str | None:
    """Why an image that can be opened can't be used, from its header alone."""
    width, height = image.size
    if image.format not in EXTENSIONS or (image.format != "MPO" and getattr(image, "n_frames", 1) > 1):
        return "unsupported"
    if image.format == "TIFF":
        known = image.mode in TIFF_MODES and image.info.get("compression") in TIFF_CODECS
        if not known or ExifTags.Base.BitsPerSample not in image.tag_v2:
            return "unsupported"
    if width * height > max_pixels:
        return "too_large"
    return "too_narrow" if max(width, height) > MAX_ASPECT * min(width, height) else None


def exif_orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1-8; 1 where there is none, or none that can be read."""
    if image.format != "TIFF" and "exif" not in image.info:
        return 1
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # broken EXIF beside good pixels is no reason to lose the image
        return 1
    return orientation if orientation in range(1, 9) else 1


def decode(image: Image.Image) -> None:
    image.draft("RGB", (1, 1))
    image.load()


def encode_resized(image: Image.Image, size: int, quality: int) -> tuple[bytes, tuple[int, int]]:
    """JPEG bytes of the upright image, shorter side `size` unless it is smaller, and its (width, height)."""
    image.draft("RGB", (2 * size, 2 * size))  # a JPEG is decoded at twice the size or more, and filtered from there
    if exif_orientation(image) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        import numpy as np  # 16 bits are rare, and every worker process would load it

        image.load()
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    image = image.convert("RGB")
    scale = size / min(image.size)
    if scale < 1:
        image = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.BILINEAR)
    coded = BytesIO()
    image.save(coded, "JPEG", quality=quality)
    return coded.getvalue(), image.size
