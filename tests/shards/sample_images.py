"""Small images of every kind that people have: good ones, odd ones and broken ones."""

import io
import os
import signal
import struct
import zlib

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 40, 30


def encoded_image(
    kind: str = "JPEG", mode: str = "RGB", *, size: tuple[int, int] = (WIDTH, HEIGHT), **options: object
) -> bytes:
    """Noise in the given file format and Pillow mode."""
    file = io.BytesIO()
    noise = Image.effect_noise(size, 80)
    noise = Image.fromarray(np.asarray(noise).astype(np.uint16) * 257) if mode == "I;16" else noise.convert(mode)
    noise.save(file, kind, **options)
    return file.getvalue()


def rotated_image(orientation: int, kind: str = "JPEG") -> bytes:
    """An image of 40x30 whose left half is white, with an EXIF orientation."""
    image = Image.new("RGB", (WIDTH, HEIGHT))
    image.paste((255, 255, 255), (0, 0, 20, 30))
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    image.save(file, kind, exif=exif)
    return file.getvalue()


def replace_byte(data: bytes, place: int, byte: int) -> bytes:
    return data[:place] + bytes([byte]) + data[place + 1 :]


def png_chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png_header(width: int, height: int, colour_type: int = 2, compression: int = 0) -> bytes:
    return png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour_type, compression, 0, 0))


def png_with(before_pixels: bytes = b"", header: bytes = png_header(WIDTH, HEIGHT), channels: int = 3) -> bytes:
    """A PNG of a gradient, with further chunks before its pixels."""
    pixels = b"".join(b"\0" + bytes((x + y) % 200 for x in range(WIDTH * channels)) for y in range(HEIGHT))
    chunks = header + before_pixels + png_chunk(b"IDAT", zlib.compress(pixels)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def bmp(bits: int, compression: int, pixels: bytes, palette: bytes = b"", width: int = WIDTH) -> bytes:
    start = 14 + 40 + len(palette)
    file_header = b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start)
    sizes = (40, width, HEIGHT, 1, bits, compression, len(pixels), 0, 0, len(palette) // 4, 0)
    return file_header + struct.pack("<IIIHHIIIIII", *sizes) + palette + pixels


def tiff(tags: dict[int, tuple[int, int]], pixels: bytes, width: int = WIDTH) -> bytes:
    """An uncompressed grey TIFF of 8 bits; `tags`: number -> (type, value), in addition to the necessary ones."""
    necessary = {256: (4, width), 257: (4, HEIGHT), 258: (3, 8), 259: (3, 1), 262: (3, 1), 273: (4, 8)}
    necessary |= {277: (3, 1), 278: (4, HEIGHT), 279: (4, len(pixels))}
    entries = [struct.pack("<HHII", number, kind, 1, v) for number, (kind, v) in sorted((necessary | tags).items())]
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + struct.pack("<I", 0)
    return b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + directory


def webp_animation() -> bytes:
    """A WebP animation of a single frame."""
    still = encoded_image("WEBP")[12:]
    size = struct.pack("<I", WIDTH - 1)[:3] + struct.pack("<I", HEIGHT - 1)[:3]
    frame = bytes(6) + size + struct.pack("<I", 100)[:3] + b"\0" + still
    chunks = [(b"VP8X", b"\2\0\0\0" + size), (b"ANIM", bytes(6)), (b"ANMF", frame)]
    body = b"WEBP" + b"".join(name + struct.pack("<I", len(content)) + content for name, content in chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def crash_on_bmp(data: bytes) -> None:
    """End the process as a decoder does whose memory is corrupt."""
    if data.startswith(b"BM"):
        os.kill(os.getpid(), signal.SIGSEGV)


def without_adobe_segment(cmyk: bytes) -> bytes:
    start = cmyk.index(b"Adobe") - 4
    return cmyk[:start] + cmyk[start + 16 :]


FRAME = struct.pack(">IIIIIHHBB", 0, WIDTH, HEIGHT, 0, 0, 1, 10, 0, 0)
JPEG, PNG = encoded_image(), encoded_image("PNG")
GREY_PIXELS = bytes(range(200)) * (WIDTH * HEIGHT // 200)
RUNS = b"".join(bytes([WIDTH, y]) + b"\0\0" for y in range(HEIGHT)) + b"\0\1"  # run-length code
FORGIVEN = {  # by Pillow, not by DALI: (reason, bytes)
    "a byte between segments": ("corrupt", JPEG[:20] + b"x" + JPEG[20:]),
    "a png without its end": ("truncated", PNG[:-12]),
    "a png cut in its end": ("truncated", PNG[:-3]),
    "a wrong checksum": ("corrupt", replace_byte(PNG, len(PNG) - 14, PNG[-14] ^ 1)),
    "a tiff of bits": ("unsupported", encoded_image("TIFF", "1")),
}
GOOD = {  # name: (extension of the file, bytes)
    "jpeg": ("jpg", encoded_image()),
    "progressive": ("jpg", encoded_image(progressive=True)),
    "grey": ("jpg", encoded_image(mode="L")),
    "cmyk": ("jpg", encoded_image(mode="CMYK")),
    "rgba": ("png", encoded_image("PNG", "RGBA")),
    "palette": ("png", encoded_image("PNG", "P")),
    "16-bit": ("png", encoded_image("PNG", "I;16")),
    "webp": ("webp", encoded_image("WEBP")),
    "bmp": ("bmp", encoded_image("BMP")),
    "tiff": ("tif", encoded_image("TIFF")),
    "turned": ("jpg", rotated_image(6)),
}
ODD = {  # that Pillow decodes; DALI 2.4 fails on all but the last four: (extension of the file, bytes)
    "run-length bmp of 4 bits": ("bmp", bmp(4, 2, RUNS, bytes(i * 4 for i in range(64)))),
    "16-bit bmp": ("bmp", bmp(16, 0, bytes(range(240)) * (WIDTH * HEIGHT * 2 // 240))),
    "signed tiff": ("tif", tiff({339: (3, 2)}, GREY_PIXELS)),
    "animated png without frames": ("png", png_with(png_chunk(b"acTL", bytes(8)))),
    "png with an unknown critical chunk": ("png", png_with(png_chunk(b"ABCD", b"x"))),
    "png without a palette": ("png", png_with(header=png_header(WIDTH, HEIGHT, colour_type=3), channels=1)),
    "png of another compression": ("png", png_with(header=png_header(WIDTH, HEIGHT, compression=1))),
    "run-length bmp of 8 bits": ("bmp", bmp(8, 1, RUNS, bytes(i // 4 for i in range(1024)))),
    "animated png of one frame": ("png", png_with(png_chunk(b"acTL", b"\0\0\0\1\0\0\0\0") + png_chunk(b"fcTL", FRAME))),
    "animated webp": ("webp", webp_animation()),
    "cmyk jpeg without Adobe's segment": ("jpg", without_adobe_segment(encoded_image(mode="CMYK"))),
}
DALI_FAILS_ON = [*ODD][:-4]
HUGE = {  # whose header claims more pixels than a column of 32 bits holds
    "png": b"\x89PNG\r\n\x1a\n" + png_header(2**31 + 5, 30) + PNG[33:],
    "bmp": bmp(24, 0, bytes(100), width=2**32 - 1),
    "tiff": tiff({}, GREY_PIXELS, width=2**32 - 1),
}
BAD = {  # reason: bytes
    "empty": b"",
    "not_an_image": b"<html>no image</html>",
    "truncated": encoded_image(size=(300, 300))[:5000],
    "unsupported": encoded_image("GIF", "P"),
    "too_narrow": encoded_image("PNG", size=(2, 600)),
    "corrupt": replace_byte(PNG, len(PNG) // 2, PNG[len(PNG) // 2] ^ 0xFF),
}
