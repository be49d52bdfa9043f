"""PNG files have the pixels that were encoded."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.gan.png import encode_png, filter_rows


@pytest.mark.parametrize("side", [1, 5, 32])
def test_a_file_has_exactly_the_encoded_pixels(side):
    images = torch.randint(0, 256, (3, side, side, 3), dtype=torch.uint8)
    images[1], images[2, :, : side // 2] = 200, 0
    for pixels, rows in zip(images, filter_rows(images), strict=True):
        image = Image.open(io.BytesIO(encode_png(rows)))
        assert (image.format, image.mode) == ("PNG", "RGB")
        assert np.array_equal(np.asarray(image), pixels.numpy())
        Image.open(io.BytesIO(encode_png(rows))).verify()  # the checksums of the chunks
