"""What the bytes of an image tell without decoding."""

import struct
import zlib

import pytest

from shards.containers import image_type, is_plainly_safe, png_pixels_fault, read_container, read_jpeg_header
from shards.image_check import inspect, inspect_and_convert, inspect_and_resize
from tests.shards.sample_images import (
    FORGIVEN,
    GOOD,
    HEIGHT,
    JPEG,
    ODD,
    PNG,
    WIDTH,
    encoded_image,
    png_chunk,
    png_header,
    png_with,
)


@pytest.mark.parametrize("name", GOOD | ODD)
def test_the_type_is_read_from_the_first_bytes(name):
    extension, data = (GOOD | ODD)[name]
    assert image_type(data) == extension
    assert read_container(data).fault is None


def test_container_faults_have_a_reason():
    faults = {name: read_container(data).fault for name, (_, data) in FORGIVEN.items() if image_type(data) != "tif"}
    assert faults == {name: reason for name, (reason, _) in FORGIVEN.items() if name in faults}


def with_frame(marker: int, bits: int = 8) -> bytes:
    start = JPEG.index(b"\xff\xc0")
    return JPEG[:start] + bytes([0xFF, marker]) + JPEG[start + 2 : start + 4] + bytes([bits]) + JPEG[start + 5 :]


@pytest.mark.parametrize(
    ("marker", "bits", "safe"),
    [(0xC0, 8, True), (0xC1, 8, True), (0xC2, 8, True), (0xC3, 8, False), (0xC9, 8, False), (0xC1, 12, False)],
)
def test_only_baseline_and_progressive_jpegs_of_8_bits_are_plainly_safe(marker, bits, safe):
    data = with_frame(marker, bits)
    header = read_jpeg_header(data)
    assert header
    assert (header.frame_marker, header.bits, header.components) == (marker, bits, 3)
    assert is_plainly_safe(data) is safe


@pytest.mark.parametrize(
    ("data", "safe"),
    [
        (PNG, True),
        (PNG + b"trailing bytes", True),
        (png_with(), True),
        (png_with(png_chunk(b"tEXt", b"a\0b")), True),
        (png_with(png_chunk(b"prVt", b"of a program of its own")), True),
        (png_with(png_chunk(b"acTL", struct.pack(">II", 1, 0))), False),
        (png_with(png_chunk(b"PLTE", bytes(769))), False),
        (png_with(png_chunk(b"PLTE", b"")), False),
        (png_with(png_header(WIDTH, HEIGHT)), False),  # twice
        (png_with(header=png_header(WIDTH, HEIGHT, colour_type=1)), False),
        (png_with(header=b""), False),
        (png_with(png_chunk(b"\0\1\2\3", b"")), False),
        (png_with()[:-12], False),
        (encoded_image("PNG", "P", bits=4), True),
    ],
)
def test_only_pngs_of_the_standards_chunks_are_plainly_safe(data, safe):
    assert is_plainly_safe(data) is safe


def png_of(rows: bytes, *, interlaced: bool = False) -> bytes:
    """A PNG of 40x30 RGB pixels with the given uncompressed content."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8, 2, 0, 0, interlaced))
    pixels = png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + pixels


@pytest.mark.parametrize(("interlaced", "size"), [(False, 30 * 121), (True, 3718)])
def test_missing_rows_of_a_png_are_found_and_black_ones_are_not(interlaced, size):
    assert png_pixels_fault(png_of(bytes(size), interlaced=interlaced)) is None
    assert inspect(png_of(bytes(size), interlaced=interlaced)).reason is None
    cut = png_of(bytes(size - 121), interlaced=interlaced)
    assert png_pixels_fault(cut) == "truncated"
    verdicts = inspect(cut), inspect_and_convert(cut)[0], inspect_and_resize(cut, 16, quality=90)[0]
    assert {verdict.reason for verdict in verdicts} == {"truncated"}
