"""DiffAugment (Zhao et al. 2020, arXiv:2006.10738): random, differentiable changes of colour and position.

The discriminator sees real and generated images only after such a change, so that it can't learn a small set of real
images by heart. The generator learns to draw unchanged images.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

RANDOM_NUMBERS = 5  # per image: brightness, saturation, contrast, vertical and horizontal shift
MAX_SHIFT = 1 / 8  # of the side


def diff_augment(images: Tensor, uniform: Tensor) -> Tensor:
    """Change images [B, 3, S, S] in [-1, 1] by random numbers from [0, 1), float32 [B, 5]; pixels moved in are 0.

    Ranges are those of the authors' code: brightness +-0.5, saturation times 0 to 2, contrast times 0.5 to 1.5, shifts
    of up to an eighth of the side.
    """
    brightness, saturation, contrast = uniform[:, :3].to(images.dtype)[:, :, None, None, None].unbind(1)
    images = images + (brightness - 0.5)
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * (2 * saturation)
    mean = images.mean((1, 2, 3), keepdim=True)
    return shift(mean + (images - mean) * (contrast + 0.5), uniform[:, 3:])


def shift(images: Tensor, uniform: Tensor) -> Tensor:
    """Move each image by whole pixels, a function of uniform random numbers [B, 2]."""
    count, channels, side, _ = images.shape
    bound = int(side * MAX_SHIFT)
    start = (uniform * (2 * bound + 1)).long()  # in the padded image
    rows, columns = (start[:, axis, None] + torch.arange(side, device=images.device) for axis in (0, 1))
    padded = pad(images, [bound] * 4)
    width = padded.shape[3]
    index = (rows[:, :, None] * width + columns[:, None, :]).flatten(1)
    moved = padded.flatten(2).gather(2, index[:, None, :].expand(-1, channels, -1))
    return moved.view(count, channels, side, side)
