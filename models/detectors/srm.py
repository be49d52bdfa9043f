"""SRM (Luo et al., Generalizing Face Forgery Detection with High-frequency Features, CVPR 2021)."""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from models.detectors import losses
from models.detectors.backbones import Weights, xception
from models.detectors.base import Detector, Labels
from models.detectors.input_transforms import ChannelNoiseResidual, NoiseResidual

SCALE = 30.0  # of the cosines in AM-Softmax


def middle_flow_side(image_size: int) -> int:
    """The side of the feature maps in Xception's middle flow."""
    side = (image_size - 3) // 2 - 1  # two unpadded layers of 3x3, the first of stride 2
    for _ in range(3):
        side = (side - 1) // 2 + 1
    return side


class CrossAttention(nn.Module):
    """Dual cross-modality attention: each stream adds values of the other, weighted by how similar their positions are.

    Both streams are [B, channels, side, side].
    """

    def __init__(self, channels: int, side: int, *, reduction: int = 8):
        super().__init__()
        reduced = channels // reduction
        self.keys = nn.ModuleList(nn.Conv2d(channels, reduced, 1) for _ in range(2))
        self.shared = nn.Conv2d(reduced, reduced, 1)
        self.weigh = nn.ModuleList(nn.Linear(side**2, side**2) for _ in range(2))
        self.values = nn.ModuleList(nn.Conv2d(channels, channels, 1) for _ in range(2))
        self.gain = nn.Parameter(torch.zeros(2))  # of the added values; none at first
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.xavier_normal_(layer.weight, gain=0.02)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        x_key, y_key = (self.shared(key(stream)).flatten(2) for key, stream in zip(self.keys, (x, y), strict=True))
        similarity = x_key.transpose(1, 2) @ y_key  # [B, positions of x, positions of y]
        both = (similarity, similarity.transpose(1, 2))
        attentions = [weigh(each).softmax(-1) for weigh, each in zip(self.weigh, both, strict=True)]
        from_y, from_x = (
            (value(stream).flatten(2) @ attention.transpose(1, 2)).view_as(stream)
            for value, stream, attention in zip(self.values, (y, x), attentions, strict=True)
        )
        return x + self.gain[0] * from_y, y + self.gain[1] * from_x


class ResidualAttention(nn.Module):
    """Residual guided spatial attention: a map in (0, 1) of where the noise matters, [B, 3, S, S] -> [B, 1, s, s]."""

    def __init__(self) -> None:
        super().__init__()
        self.extract = nn.Sequential(
            nn.Conv2d(3, 32, 3, 2, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 64, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
        )  # fmt: skip
        self.score = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, a=1)

    def forward(self, noise: Tensor) -> Tensor:
        features = self.extract(noise)
        scores: Tensor = self.score(torch.cat([features.mean(1, keepdim=True), features.amax(1, keepdim=True)], 1))
        return scores.sigmoid()


class Fusion(nn.Module):
    """Mixes both streams, each channel weighted by its mean and its maximum: 2 x [B, C, s, s] -> [B, C, s, s]."""

    def __init__(self, channels: int, *, reduction: int = 16):
        super().__init__()
        mix = nn.Conv2d(2 * channels, channels, 1, bias=False)
        self.mix = nn.Sequential(mix, nn.BatchNorm2d(channels), nn.ReLU())
        squeeze = nn.Conv2d(channels, channels // reduction, 1, bias=False)
        expand = nn.Conv2d(channels // reduction, channels, 1, bias=False)
        self.weigh = nn.Sequential(squeeze, nn.ReLU(), expand)
        nn.init.kaiming_normal_(mix.weight, a=1)
        for layer in (squeeze, expand):
            nn.init.xavier_normal_(layer.weight, gain=0.02)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        mixed: Tensor = self.mix(torch.cat([x, y], 1))
        means, maxima = mixed.mean((2, 3), keepdim=True), mixed.amax((2, 3), keepdim=True)
        weights: Tensor = self.weigh(means) + self.weigh(maxima)
        return mixed * weights.sigmoid()


class SRM(Detector):
    """Two Xceptions that attend to each other, one of the pixels and one of their noise residuals.

    Loss: AM-Softmax, which classifies by the cosines to the directions of real and fake; the logit is the difference of
    the scaled cosines.
    """

    def __init__(self, weights: Weights, image_size: int):
        super().__init__()
        self.pixels, self.noise = xception(weights, classes=0), xception(weights, classes=0)
        self.residuals = NoiseResidual()
        self.early_residuals = nn.ModuleList([ChannelNoiseResidual(32), ChannelNoiseResidual(64)])
        self.residual_attention = ResidualAttention()
        self.norm = nn.Sequential(nn.BatchNorm2d(64), nn.ReLU())
        self.cross_attention = nn.ModuleList(CrossAttention(728, middle_flow_side(image_size)) for _ in range(2))
        self.fusion, self.directions = Fusion(2048), nn.Linear(2048, 2, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        return scaled_difference(self.cosines(images))

    def training_step(self, images: Tensor, labels: Labels) -> tuple[Tensor, Tensor]:
        cosines = self.cosines(images)
        loss = losses.additive_margin(cosines, labels.target, scale=SCALE)
        return loss, scaled_difference(cosines)

    def cosines(self, images: Tensor) -> Tensor:
        """The cosines to the directions of real and fake, float32 [B, 2]."""
        noise = self.residuals(images)
        x, y = self.entry_flow(images, noise)
        x = self.norm(x * (1 + self.residual_attention(noise)))
        for (start, end), attention in zip(pairwise((1, 4, 8)), self.cross_attention, strict=True):
            x, y = self.run_blocks(x, y, numbers=range(start, end))
            x, y = attention(x, y)
        x, y = self.run_blocks(x, y, numbers=range(8, 13))
        for number in (3, 4):
            x, y = run_layer(self.pixels, x, number=number), run_layer(self.noise, y, number=number)
        features = self.fusion(x, y).mean((2, 3))
        return nn.functional.normalize(features.float()) @ nn.functional.normalize(self.directions.weight.float()).T

    def entry_flow(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Both streams after the first two layers, each of which adds residuals of pixel features to the noise."""
        x, y = images, noise
        for number, residual in enumerate(self.early_residuals, 1):
            x, y = run_layer(self.pixels, x, number=number), run_layer(self.noise, y, number=number)
            y = (y + residual(x)).relu()
        return x, y

    def run_blocks(self, x: Tensor, y: Tensor, *, numbers: range) -> tuple[Tensor, Tensor]:
        """Both streams after these of Xception's twelve blocks."""
        for number in numbers:
            x = getattr(self.pixels, f"block{number}")(x)
        for number in numbers:
            y = getattr(self.noise, f"block{number}")(y)
        return x, y


def run_layer(net: Any, images: Tensor, *, number: int) -> Tensor:
    """One of Xception's four layers outside its blocks."""
    for part in ("conv", "bn", "act"):
        images = getattr(net, f"{part}{number}")(images)
    return images


def scaled_difference(cosines: Tensor) -> Tensor:
    """Logits [B] of cosines [B, 2]."""
    return SCALE * (cosines[:, 1] - cosines[:, 0])
