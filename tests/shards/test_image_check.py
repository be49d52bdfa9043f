"""Verdicts on images: what DALI will decode, what it will not and why, and what re-encoding makes of it."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from shards.image_check import Verdict, identify, inspect, inspect_and_resize
from tests.shards.pictures import BAD, FORGIVEN, GOOD, picture, turned


@pytest.mark.parametrize("name", GOOD)
def test_good_images_pass_with_their_real_type(name):
    extension, data = GOOD[name]
    assert inspect(data) == (None, extension, 40, 30, 6 if name == "turned" else 1)


@pytest.mark.parametrize("reason", BAD)
def test_bad_images_are_rejected_with_a_reason(reason):
    assert inspect(BAD[reason]).reason == reason


@pytest.mark.parametrize("name", FORGIVEN)
def test_what_pillow_forgives_and_dali_does_not_is_rejected(name):
    reason, data = FORGIVEN[name]
    assert inspect(data).reason == reason


@pytest.mark.parametrize("start", [b"\0\0\0\x0cjP  \r\n\x87\n", b"\0\0\0\x1cftypavif", b"GIF89a"])
def test_images_of_other_kinds_are_called_unsupported(start):
    assert inspect(start + bytes(200)).reason == identify(start + bytes(200)).reason == "unsupported"


def test_16_bits_are_turned_too():
    image, exif = Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50), Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    image.save(file, "PNG", exif=exif)
    verdict, _ = inspect_and_resize(file.getvalue(), 30, 90)
    assert (verdict.width, verdict.height, verdict.orientation) == (30, 40, 6)


def test_a_bomb_is_rejected_before_it_is_decoded():
    assert inspect(picture("PNG", "1", (3000, 3000)), max_pixels=10**6)[:4] == ("too_large", "", 3000, 3000)


def test_kinds_of_tiff_that_dali_cannot_decode_are_rejected():
    assert inspect(picture("TIFF", "F")).reason == "unsupported"
    assert inspect(picture("TIFF", compression="lzma")).reason == "unsupported"


@given(st.sampled_from(sorted(GOOD)), st.integers(0, 10**6), st.binary(min_size=1, max_size=40))
def test_any_damage_is_a_verdict_never_a_traceback(name, place, patch):
    data = bytearray(GOOD[name][1])
    place %= len(data)
    data[place : place + len(patch)] = patch
    for verdict in (inspect(bytes(data)), inspect_and_resize(bytes(data), 16, 90)[0], identify(bytes(data))):
        assert (verdict.reason is None) == bool(verdict.extension)


@pytest.mark.parametrize("name", GOOD)
def test_a_glance_tells_type_and_orientation_without_decoding(name):
    extension, data = GOOD[name]
    assert identify(data) == Verdict(None, extension, orientation=6 if name == "turned" else 1)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", [1, 3, 8])
def test_orientation_is_found_in_every_kind(kind, orientation):
    data = turned(orientation, kind)
    assert inspect(data).orientation == identify(data).orientation == orientation


def test_a_glance_refuses_what_no_decoder_knows():
    assert [identify(BAD[reason]).reason for reason in ("empty", "not_an_image", "unsupported")] == [
        "empty",
        "not_an_image",
        "unsupported",
    ]


@pytest.mark.parametrize("name", GOOD)
def test_shrinking_gives_a_small_upright_jpeg(name):
    verdict, small = inspect_and_resize(GOOD[name][1], 16, 90)
    size = (16, 21) if name == "turned" else (21, 16)
    assert verdict == (None, "jpg", *size, 6 if name == "turned" else 1)
    with Image.open(io.BytesIO(small)) as image:
        assert (image.format, image.mode, image.size, image.getexif().get(0x0112)) == ("JPEG", "RGB", size, None)
        assert np.asarray(image).std() > 5


def test_shrinking_turns_the_pixels():
    _, small = inspect_and_resize(turned(6), 30, 95)  # a quarter turn clockwise: what was left is up
    pixels = np.asarray(Image.open(io.BytesIO(small)))
    assert pixels[:15].mean() > 240
    assert pixels[25:].mean() < 15


def test_shrinking_keeps_16_bits_meaning_and_never_enlarges():
    verdict, small = inspect_and_resize(GOOD["16-bit"][1], 64, 95)
    assert (verdict.width, verdict.height) == (40, 30)
    before = np.asarray(Image.open(io.BytesIO(GOOD["16-bit"][1]))) / 257
    assert abs(np.asarray(Image.open(io.BytesIO(small)).convert("L")) - before).mean() < 6
