"""The encoders, feature branches, heads and decoder that UCF and PG-FDD share."""

import torch.nn.functional as F
from torch import Tensor, nn

from models.detectors.backbones import Weights, xception

WIDTH = 512  # channels of an encoder's features
BRANCH_WIDTH = WIDTH // 2  # channels of the features that a branch extracts


class Encoder(nn.Module):
    """Xception's features, reduced to WIDTH channels: [B, 3, S, S] -> [B, WIDTH, s, s]."""

    def __init__(self, weights: Weights):
        super().__init__()
        self.net = xception(weights, classes=0)
        self.reduce = nn.Sequential(nn.Conv2d(2048, WIDTH, 1), nn.BatchNorm2d(WIDTH), nn.ReLU())

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.reduce(self.net.forward_features(images))
        return features


def feature_branch() -> nn.Sequential:
    """Three layers that extract one kind of features: [B, WIDTH, s, s] -> [B, BRANCH_WIDTH, s, s]."""
    return nn.Sequential(
        nn.Conv2d(WIDTH, BRANCH_WIDTH, 1), nn.LeakyReLU(),
        nn.Conv2d(BRANCH_WIDTH, BRANCH_WIDTH, 1), nn.LeakyReLU(),
        nn.Conv2d(BRANCH_WIDTH, BRANCH_WIDTH, 1),
    )  # fmt: skip


class Head(nn.Module):
    """Classifies mean features: [B, BRANCH_WIDTH, s, s] -> logits [B, classes] and the means [B, BRANCH_WIDTH]."""

    def __init__(self, classes: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(BRANCH_WIDTH, WIDTH), nn.LeakyReLU(), nn.Dropout(0.2), nn.Linear(WIDTH, classes)
        )

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        means = features.mean((2, 3))
        return self.layers(means), means


def adaptive_instance_norm(content: Tensor, style: Tensor) -> Tensor:
    """`content` with each channel's mean and deviation replaced by those of `style`, both [B, C, s, s].

    Huang and Belongie, AdaIN, ICCV 2017.
    """
    content_deviation, content_mean = channel_statistics(content)
    style_deviation, style_mean = channel_statistics(style)
    return (content - content_mean) / content_deviation * style_deviation + style_mean


def channel_statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """Each channel's deviation and mean over all positions, float32 [B, C, 1, 1]."""
    features = features.float()
    return features.var((2, 3), keepdim=True).add(1e-5).sqrt(), features.mean((2, 3), keepdim=True)


class Decoder(nn.Module):
    """Reconstructs an image from the content of one face and the traces of a generator in another.

    Both are [B, WIDTH, s, s]; the image is [B, 3, size, size] in [-1, 1].
    """

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(wide, wide // 2, 3, padding=1), nn.ReLU(),
                          nn.Conv2d(wide // 2, wide // 2, 3, padding=1), nn.ReLU())
            for wide in (WIDTH, WIDTH // 2, WIDTH // 4)
        )  # fmt: skip
        self.drop, self.last = nn.Dropout(0.3), nn.Conv2d(WIDTH // 8, 3, 1)

    def forward(self, traces: Tensor, content: Tensor, size: int) -> Tensor:
        for number, block in enumerate(self.blocks, 1):
            content = block(self.upsample(adaptive_instance_norm(content, traces)))
            if number < len(self.blocks):
                traces = block(self.upsample(traces))
        return F.interpolate(self.last(content), (size, size), mode="bilinear", align_corners=True).tanh()

    def upsample(self, features: Tensor) -> Tensor:
        """Twice the size, with dropout."""
        upsampled: Tensor = self.drop(F.interpolate(features, scale_factor=2, mode="bilinear", align_corners=True))
        return upsampled
