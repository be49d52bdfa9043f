"""NPR (Tan et al., Rethinking the Up-Sampling Operations in CNN-based Generative Network, CVPR 2024)."""

from typing import Any

import timm
from torch import Tensor, nn

WIDTH = 512  # channels after the second of ResNet-50's four stages


def neighbour_residuals(images: Tensor) -> Tensor:
    """Neighbouring pixel relationships: each pixel minus the upper left one of its 2 x 2 block, times 2/3.

    float32 [B, 3, S, S] -> [B, 3, S, S]; S is even.
    """
    corners = images[..., ::2, ::2].repeat_interleave(2, -2).repeat_interleave(2, -1)
    return (images - corners) * (2 / 3)


def half_resnet50() -> Any:
    """The first two stages of ResNet-50, with a first layer of 3x3 filters and one logit, as in the authors' code."""
    net = timm.create_model("resnet50", num_classes=1, zero_init_last=False)
    net.conv1 = nn.Conv2d(3, 64, 3, stride=2, padding=1, bias=False)
    nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    net.layer3 = net.layer4 = nn.Identity()
    net.fc = nn.Linear(WIDTH, 1)
    return net
