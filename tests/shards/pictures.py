"""Small pictures of every kind that people have, good and broken ones."""

import io

import numpy as np
from PIL import Image


def picture(kind: str = "JPEG", mode: str = "RGB", size: tuple[int, int] = (40, 30), **options) -> bytes:
    file = io.BytesIO()
    noise = Image.effect_noise(size, 80)
    noise = Image.fromarray(np.asarray(noise).astype(np.uint16) * 257) if mode == "I;16" else noise.convert(mode)
    noise.save(file, kind, **options)
    return file.getvalue()


def turned(orientation: int, kind: str = "JPEG") -> bytes:
    """A picture of 40x30 whose left half is white, with an EXIF orientation."""
    image = Image.new("RGB", (40, 30))
    image.paste((255, 255, 255), (0, 0, 20, 30))
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    image.save(file, kind, exif=exif)
    return file.getvalue()


def damaged(data: bytes, place: int, byte: int) -> bytes:
    return data[:place] + bytes([byte]) + data[place + 1 :]


JPEG, PNG = picture(), picture("PNG")
FORGIVEN = {  # by Pillow, not by DALI: (reason, bytes)
    "a byte between segments": ("corrupt", JPEG[:20] + b"x" + JPEG[20:]),
    "a png without its end": ("truncated", PNG[:-12]),
    "a png cut in its end": ("truncated", PNG[:-3]),
    "a wrong checksum": ("corrupt", damaged(PNG, len(PNG) - 14, PNG[-14] ^ 1)),
    "a tiff of bits": ("unsupported", picture("TIFF", "1")),
}
GOOD = {  # name: (extension, bytes)
    "jpeg": ("jpg", picture()),
    "progressive": ("jpg", picture(progressive=True)),
    "grey": ("jpg", picture(mode="L")),
    "cmyk": ("jpg", picture(mode="CMYK")),
    "rgba": ("png", picture("PNG", "RGBA")),
    "palette": ("png", picture("PNG", "P")),
    "16-bit": ("png", picture("PNG", "I;16")),
    "webp": ("webp", picture("WEBP")),
    "bmp": ("bmp", picture("BMP")),
    "tiff": ("tif", picture("TIFF")),
    "turned": ("jpg", turned(6)),
}
BAD = {  # reason: bytes
    "empty": b"",
    "not_an_image": b"<html>no image</html>",
    "truncated": picture(size=(300, 300))[:5000],
    "unsupported": picture("GIF", "P"),
    "too_narrow": picture("PNG", size=(2, 600)),
    "corrupt": damaged(PNG, len(PNG) // 2, PNG[len(PNG) // 2] ^ 0xFF),
}
