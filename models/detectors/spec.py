"""What is known of a detector before its network is built: its input, how it is trained, and how it is built."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from models.detectors.backbones import Weights
from models.detectors.base import Detector, Normalisation

HALF: Normalisation = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@dataclass(frozen=True)
class BuildConfig:
    """The parameters that a network is built with."""

    weights: Weights
    image_size: int  # pixels
    group_counts: tuple[int, ...] | list[int] = (1,) * 6  # training images of each group
    backbone: str | None = None  # for detectors that take any; None: the detector's own
    is_resumed: bool = False  # whether the state of a checkpoint will be loaded


@dataclass(frozen=True)
class DetectorSpec:
    """A detector that can be selected by name."""

    title: str
    paper: str
    build: Callable[[BuildConfig], Detector]
    image_size: int = 256  # pixels of its input
    size_multiple: int = 1  # pixels; the image size must be a multiple of it
    normalisation: Normalisation = HALF
    fixed_size: bool = False  # accepts only images of the size that it was built for
    paired_batches: bool = False  # the first half of a batch is real and the second fake
    frozen_backbone: bool = False  # some weights are not trained, and are in no checkpoint
    frozen_features: bool = False  # a FrozenFeatureDetector: an image has the same features in every epoch
    uses_groups: bool = False  # its loss depends on the groups
    mild_perturbations: bool = False  # the benchmark perturbs this detector's test faces less
    backbone: str | None = None  # the default, for `find_backbone`; None: the backbone can't be chosen
    optimizer: str = "sgd"  # a key of OPTIMIZERS
    lr: float = 5e-4
    weight_decay: float = 5e-3

    def normalise(self, images: Tensor, size: int | None = None) -> Tensor:
        """uint8 [B, S, S, 3] -> float32 [B, 3, size, size], channels_last; without `size` they are not resized."""
        mean, std = (torch.tensor(each, device=images.device).view(1, 3, 1, 1) * 255 for each in self.normalisation)
        images = images.permute(0, 3, 1, 2).float()
        if size and images.shape[-1] != size:
            images = torch.nn.functional.interpolate(images, (size, size), mode="bilinear", antialias=True)
        return ((images - mean) / std).contiguous(memory_format=torch.channels_last)
