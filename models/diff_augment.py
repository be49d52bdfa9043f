"""DiffAugment (Zhao et al. 2020, arXiv:2006.10738): random, differentiable changes of colour and position.

The discriminator sees real and generated images only after such changes, so that it can't memorise a small set of real
images. The generator still learns to generate unchanged images, because its images are changed in the same way.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

RANDOM_NUMBERS = 5  # per image: brightness, saturation, contrast, vertical and horizontal shift
MAX_SHIFT = 1 / 8  # as a share of the side


def diff_augment(images: Tensor, uniform: Tensor) -> Tensor:
    """Augment float images [B, 3, S, S] in [-1, 1] with uniform random numbers from [0, 1), float32 [B, 5].

    The ranges are those of the authors' code: brightness +-0.5, saturation times 0 to 2, contrast times 0.5 to 1.5,
    shifts of up to an eighth of the side. Pixels that a shift moves into the image are 0.
    """
    brightness, saturation, contrast = uniform[:, :3].to(images.dtype)[:, :, None, None, None].unbind(1)
    images = images + (brightness - 0.5)
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * (2 * saturation)
    mean = images.mean((1, 2, 3), keepdim=True)
    return shift(mean + (images - mean) * (contrast + 0.5), uniform[:, 3:])


def shift(images: Tensor, uniform: Tensor) -> Tensor:
    """Shift each image by whole pixels, vertically and horizontally, by uniform random numbers [B, 2]; pad with 0."""
    count, channels, side, _ = images.shape
    bound = int(side * MAX_SHIFT)
    start = (uniform * (2 * bound + 1)).long()  # top left corner of the crop from the padded image, [B, 2]
    rows, columns = (start[:, axis, None] + torch.arange(side, device=images.device) for axis in (0, 1))
    padded = pad(images, [bound] * 4)
    width = padded.shape[3]
    index = (rows[:, :, None] * width + columns[:, None, :]).flatten(1)
    moved = padded.flatten(2).gather(2, index[:, None, :].expand(-1, channels, -1))
    return moved.view(count, channels, side, side)
