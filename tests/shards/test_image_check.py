"""Verdicts on images: which are packed, which are not and why, and what re-encoding makes of them."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from shards.containers import is_plainly_safe
from shards.image_check import Verdict, identify, inspect, inspect_and_convert, inspect_and_resize
from tests.shards.sample_images import BAD, FORGIVEN, GOOD, HUGE, ODD, encoded_image, rotated_image


def pixels(data: bytes, mode: str = "RGB") -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert(mode))


@pytest.mark.parametrize("name", GOOD)
def test_good_images_pass_with_their_real_type(name):
    extension, data = GOOD[name]
    assert inspect(data) == (None, extension, 40, 30, 6 if name == "turned" else 1)


@pytest.mark.parametrize("reason", BAD)
def test_bad_images_are_rejected_with_a_reason(reason):
    assert inspect(BAD[reason]).reason == reason
    assert inspect_and_convert(BAD[reason]) == (inspect(BAD[reason]), BAD[reason])


@pytest.mark.parametrize("name", FORGIVEN)
def test_what_pillow_forgives_and_dali_does_not_is_rejected(name):
    reason, data = FORGIVEN[name]
    assert inspect(data).reason == inspect_and_convert(data)[0].reason == reason


@pytest.mark.parametrize("start", [b"\0\0\0\x0cjP  \r\n\x87\n", b"\0\0\0\x1cftypavif", b"GIF89a"])
def test_images_of_other_kinds_are_called_unsupported(start):
    assert inspect(start + bytes(200)).reason == identify(start + bytes(200)).reason == "unsupported"


@pytest.mark.parametrize("name", HUGE)
def test_sizes_that_fit_into_no_column_become_null(name):
    assert inspect(HUGE[name]) == Verdict("too_large")
    assert inspect_and_convert(HUGE[name])[0] == Verdict("too_large")


@pytest.mark.parametrize("name", GOOD)
def test_jpeg_png_and_webp_keep_their_bytes(name):
    extension, data = GOOD[name]
    verdict, packed = inspect_and_convert(data)
    if extension in ("jpg", "png", "webp"):
        assert is_plainly_safe(data)
        assert packed is data
        assert verdict == inspect(data)
    else:
        assert (verdict.extension, packed[:4]) == ("png", b"\x89PNG")


@pytest.mark.parametrize("name", [*ODD, *(name for name in GOOD if GOOD[name][0] in ("bmp", "tif"))])
def test_what_is_not_plainly_safe_becomes_a_png_of_the_same_pixels(name):
    extension, data = (ODD | GOOD)[name]
    verdict, packed = inspect_and_convert(data)
    assert not is_plainly_safe(data)
    assert inspect(data) == (None, extension, 40, 30, 1)
    assert verdict == (None, "png", 40, 30, 1)
    assert is_plainly_safe(packed)
    assert np.array_equal(pixels(packed), pixels(data))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_converted_image_is_upright_and_has_no_orientation_of_its_own(orientation):
    verdict, packed = inspect_and_convert(rotated_image(orientation, "TIFF"))
    assert (verdict.width, verdict.height) == ((30, 40) if orientation > 4 else (40, 30))
    assert verdict.orientation == orientation
    image = Image.open(io.BytesIO(packed))
    assert (image.format, image.mode, image.size) == ("PNG", "RGB", (verdict.width, verdict.height))
    assert not {"exif", "icc_profile", "transparency"} & image.info.keys()


def test_a_converted_image_of_16_bits_keeps_its_8_highest():
    values = np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50
    file = io.BytesIO()
    Image.fromarray(values).save(file, "TIFF")
    _, packed = inspect_and_convert(file.getvalue())
    assert np.array_equal(pixels(packed)[..., 0], values >> 8)


def test_resized_images_of_16_bits_are_upright_too():
    image, exif = Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50), Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    image.save(file, "PNG", exif=exif)
    verdict, _ = inspect_and_resize(file.getvalue(), 30, quality=90)
    assert (verdict.width, verdict.height, verdict.orientation) == (30, 40, 6)


def test_a_bomb_is_rejected_before_it_is_decoded():
    bomb = encoded_image("PNG", "1", size=(3000, 3000))
    assert inspect(bomb, max_pixels=10**6)[:4] == ("too_large", "", 3000, 3000)


def test_unusual_kinds_of_tiff_are_rejected():
    assert inspect(encoded_image("TIFF", "F")).reason == "unsupported"
    assert inspect(encoded_image("TIFF", compression="lzma")).reason == "unsupported"


@given(st.sampled_from(sorted(GOOD | ODD)), st.integers(0, 10**6), st.binary(min_size=1, max_size=40))
def test_any_damage_is_a_verdict_and_never_an_exception(name, place, patch):
    data = bytearray((GOOD | ODD)[name][1])
    place %= len(data)
    data[place : place + len(patch)] = patch
    damaged = bytes(data)
    resized, converted = inspect_and_resize(damaged, 16, quality=90)[0], inspect_and_convert(damaged)[0]
    for verdict in (inspect(damaged), resized, converted, identify(damaged)):
        assert (verdict.reason is None) == bool(verdict.extension)


@pytest.mark.parametrize("name", GOOD)
def test_type_and_orientation_are_identified_without_decoding(name):
    extension, data = GOOD[name]
    assert identify(data) == Verdict(None, extension, orientation=6 if name == "turned" else 1)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", [1, 3, 8])
def test_orientation_is_found_in_every_format(kind, orientation):
    data = rotated_image(orientation, kind)
    assert inspect(data).orientation == identify(data).orientation == orientation


def test_what_no_decoder_knows_is_rejected_without_decoding():
    reasons = ["empty", "not_an_image", "unsupported"]
    assert [identify(BAD[reason]).reason for reason in reasons] == reasons


@pytest.mark.parametrize("name", GOOD)
def test_resizing_gives_a_small_upright_jpeg(name):
    verdict, small = inspect_and_resize(GOOD[name][1], 16, quality=90)
    size = (16, 21) if name == "turned" else (21, 16)
    assert verdict == (None, "jpg", *size, 6 if name == "turned" else 1)
    with Image.open(io.BytesIO(small)) as image:
        assert (image.format, image.mode, image.size, image.getexif().get(0x0112)) == ("JPEG", "RGB", size, None)
        assert np.asarray(image).std() > 5


def test_resizing_applies_the_orientation():
    _, small = inspect_and_resize(rotated_image(6), 30, quality=95)  # a quarter turn clockwise: left becomes up
    assert pixels(small)[:15].mean() > 240
    assert pixels(small)[25:].mean() < 15


def test_resizing_keeps_the_values_of_16_bits_and_never_enlarges():
    verdict, small = inspect_and_resize(GOOD["16-bit"][1], 64, quality=95)
    assert (verdict.width, verdict.height) == (40, 30)
    before = np.asarray(Image.open(io.BytesIO(GOOD["16-bit"][1]))) / 257
    assert abs(pixels(small, "L") - before).mean() < 6
