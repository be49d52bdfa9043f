"""Inspects an image's bytes without decoding: its type, faults of its container, whether DALI surely decodes it."""

import zlib
from collections.abc import Iterator
from typing import NamedTuple

MAGIC_BYTES = {b"\x89PNG\r\n\x1a\n": "png", b"BM": "bmp", b"II*\0": "tif", b"MM\0*": "tif"}
UNSUPPORTED_MAGIC_BYTES = (b"GIF8", b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")  # GIF and JPEG 2000; AVIF has "ftyp"

START_OF_SCAN, ADOBE_SEGMENT = 0xDA, 0xEE
BASELINE_AND_PROGRESSIVE = (0xC0, 0xC1, 0xC2)  # frame markers; the others up to 0xCF are lossless or arithmetic
NO_FRAME_MARKERS = (0xC4, 0xC8, 0xCC)  # Huffman tables, reserved, arithmetic coding conditions

PNG_BIT_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}  # by colour type
PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
WHOLE_IMAGE = ((0, 0, 1, 1),)
ADAM7_PASSES = (  # first column and row, steps between columns and rows
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
ANIMATION_CHUNKS = (b"acTL", b"fcTL", b"fdAT")


def image_type(data: bytes) -> str | None:
    """The extension of an image's type by its first bytes, such as `jpg`; None for a type that is not packed."""
    if data.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "webp"
    return next((extension for start, extension in MAGIC_BYTES.items() if data.startswith(start)), None)


def is_unsupported_image(data: bytes) -> bool:
    """Whether the first bytes are those of a GIF, JPEG 2000, AVIF or HEIC."""
    return data.startswith(UNSUPPORTED_MAGIC_BYTES) or data[4:8] == b"ftyp"


class Container(NamedTuple):
    """Whether DALI will decode an image that Pillow decodes, judged by its container.

    `fault` is `corrupt` or `truncated` if DALI would refuse the container: Pillow accepts bytes between a JPEG's
    segments, and PNGs with wrong checksums or without an end. `plainly_safe` images are of a kind that DALI also
    decodes, to the same pixels: baseline and progressive JPEGs of 8 bits, ordinary PNGs and still WebPs. DALI 2.4
    fails on run-length and 16-bit BMPs, signed TIFFs, PNGs whose animation has no frames, and similar files. One known
    exception could only be found by decompressing every PNG twice: a PNG with all of its pixels whose compressed
    stream does not end.
    """

    fault: str | None
    plainly_safe: bool


def read_container(data: bytes) -> Container:
    """Check the container of an image."""
    kind = image_type(data)
    if kind == "jpg":
        header = read_jpeg_header(data)
        return Container(None, header.is_plain()) if header else Container("corrupt", False)
    if kind == "png":
        return Container(png_fault(data), is_plain_png(data))
    return Container(None, kind == "webp" and is_still_webp(data))


def is_plainly_safe(data: bytes) -> bool:
    """Whether an image that Pillow decodes is of a kind that DALI also decodes, to the same pixels."""
    return read_container(data).plainly_safe


class JpegHeader(NamedTuple):
    """The header of a JPEG, up to its first scan."""

    frame_marker: int
    bits: int  # of a sample
    components: int
    has_adobe_segment: bool  # which says how four components are stored

    def is_plain(self) -> bool:
        known_colours = self.components in (1, 3) or (self.components == 4 and self.has_adobe_segment)
        return self.frame_marker in BASELINE_AND_PROGRESSIVE and self.bits == 8 and known_colours


def read_jpeg_header(data: bytes) -> JpegHeader | None:
    """The header of a JPEG whose segments follow each other up to its first scan, with nothing in between; else None.

    A header without a frame has zeros.
    """
    at, end, frame, adobe = 2, len(data) - 4, None, False
    while at <= end and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == START_OF_SCAN:
            if frame is None or frame > end - 6:
                return JpegHeader(0, 0, 0, adobe)
            return JpegHeader(data[frame + 1], data[frame + 4], data[frame + 9], adobe)
        if marker == 0xFF:  # fill bytes are allowed
            at += 1
        elif 0xC0 <= marker <= 0xFE and not 0xD0 <= marker <= 0xD9:
            if marker <= 0xCF and marker not in NO_FRAME_MARKERS:
                frame = at
            elif marker == ADOBE_SEGMENT and data.startswith(b"Adobe", at + 4):
                adobe = True
            at += 2 + (data[at + 2] << 8 | data[at + 3])
        else:
            return None
    return None


def png_fault(data: bytes) -> str | None:
    """`corrupt` for a PNG with a wrong checksum, `truncated` for one without its end, else None."""
    for name, start, end in png_chunks(data):
        if end + 4 > len(data):
            return "truncated"
        if zlib.crc32(data[start - 4 : end]) != int.from_bytes(data[end : end + 4]):
            return "corrupt"
        if name == b"IEND":
            return None
    return "truncated"


def png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(name, start, end) of each chunk's content; the last one may reach beyond the end of `data`."""
    at = 8
    while at + 12 <= len(data):
        start = at + 8
        end = start + int.from_bytes(data[at : at + 4])
        yield data[at + 4 : at + 8], start, end
        at = end + 4


def is_plain_png(data: bytes) -> bool:
    """Whether a PNG has the standard's chunks in their order and no animation."""
    critical: list[bytes] = []  # adjacent IDAT chunks count as one
    previous = b""
    for name, start, end in png_chunks(data):
        if name == b"IHDR" and not is_plain_png_header(data[start:end]):
            return False
        if name in ANIMATION_CHUNKS or not name.isalpha():
            return False
        if not name[0] & 0x20 and not (
            name == previous == b"IDAT"
        ):  # an upper-case letter marks a chunk that decoders must know
            critical.append(name)
        if name == b"PLTE" and not (0 < end - start <= 768 and (end - start) % 3 == 0):
            return False
        previous = name
        if name == b"IEND":
            break
    has_palette = b"PLTE" in critical
    needs_palette = data[25:26] == b"\3"  # the colour type
    expected = [b"IHDR", *([b"PLTE"] if has_palette else []), b"IDAT", b"IEND"]
    return critical == expected and (has_palette or not needs_palette)


def is_plain_png_header(header: bytes) -> bool:
    """Whether an IHDR chunk has one of the standard's colour types, compression, filter and interlace methods."""
    if len(header) != 13:
        return False
    depth, colour_type, compression, filtering, interlace = header[8:]
    return depth in PNG_BIT_DEPTHS.get(colour_type, ()) and (compression, filtering) == (0, 0) and interlace < 2


def png_pixels_fault(data: bytes) -> str | None:
    """Whether the compressed pixels of a PNG are `corrupt`, or `truncated` (fewer than its header says); else None.

    Pillow tolerates both where the stream ends with a row, and leaves the rest black; DALI does not. It takes about
    half the time of decoding the image.
    """
    header = next((data[start:end] for name, start, end in png_chunks(data) if name == b"IHDR"), b"")
    if not is_plain_png_header(header):
        return "corrupt"
    width, height = int.from_bytes(header[:4]), int.from_bytes(header[4:8])
    bits = header[8] * PNG_CHANNELS[header[9]]
    expected = 0  # bytes: each row of each pass has a byte for its filter
    for left, top, step_x, step_y in ADAM7_PASSES if header[12] else WHOLE_IMAGE:
        columns, rows = -(-(width - left) // step_x), -(-(height - top) // step_y)
        expected += max(rows, 0) * (1 + (columns * bits + 7) // 8) if columns > 0 else 0
    coded = b"".join(data[start:end] for name, start, end in png_chunks(data) if name == b"IDAT")
    try:
        pixels = zlib.decompressobj().decompress(coded, expected) if expected else b""
    except zlib.error:
        return "corrupt"
    return "truncated" if len(pixels) < expected else None


def is_still_webp(data: bytes) -> bool:
    """Whether a WebP has no animation, not even one of a single frame."""
    name = data[12:16]
    return name in (b"VP8 ", b"VP8L") or (name == b"VP8X" and len(data) > 20 and not data[20] & 2)
