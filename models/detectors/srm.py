"""SRM: one Xception looks at the pixels, another one at noise residuals, and each attends to the other."""

import torch
from torch import Tensor, nn

from models.detectors import losses
from models.detectors.backbones import Weights, xception
from models.detectors.base import Detector, Labels
from models.detectors.input_transforms import ChannelNoiseResidual, NoiseResidual

SCALE = 30.0


def middle_side(size: int) -> int:
    """The side of Xception's feature maps in its middle, of images of `size`."""
    side = (size - 3) // 2 - 1  # two unpadded layers of 3x3, the first of stride 2
    for _ in range(3):
        side = (side - 1) // 2 + 1
    return side


class CrossAttention(nn.Module):
    """Dual cross-modality attention: each stream takes up values of the other by how alike their places are."""

    def __init__(self, channels: int, side: int, ratio: int = 8):
        super().__init__()
        inner = channels // ratio
        self.keys = nn.ModuleList(nn.Conv2d(channels, inner, 1) for _ in range(2))
        self.shared = nn.Conv2d(inner, inner, 1)
        self.weigh = nn.ModuleList(nn.Linear(side**2, side**2) for _ in range(2))
        self.values = nn.ModuleList(nn.Conv2d(channels, channels, 1) for _ in range(2))
        self.share = nn.Parameter(torch.zeros(2))  # of what is taken up: nothing at first
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.xavier_normal_(layer.weight, gain=0.02)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        one, other = (self.shared(key(stream)).flatten(2) for key, stream in zip(self.keys, (x, y), strict=True))
        alike = one.transpose(1, 2) @ other  # [B, places of x, places of y]
        of_y, of_x = (weigh(a).softmax(-1) for weigh, a in zip(self.weigh, (alike, alike.transpose(1, 2)), strict=True))
        from_y, from_x = (
            (value(stream).flatten(2) @ attention.transpose(1, 2)).view_as(stream)
            for value, stream, attention in zip(self.values, (y, x), (of_y, of_x), strict=True)
        )
        return x + self.share[0] * from_y, y + self.share[1] * from_x


class NoiseGuided(nn.Module):
    """Residual guided spatial attention: where the noise says so, the pixels' features count up to double."""

    def __init__(self):
        super().__init__()
        self.look = nn.Sequential(
            nn.Conv2d(3, 32, 3, 2, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 64, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
        )  # fmt: skip
        self.map = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, a=1)

    def forward(self, noise: Tensor) -> Tensor:
        seen = self.look(noise)
        return self.map(torch.cat([seen.mean(1, keepdim=True), seen.amax(1, keepdim=True)], 1)).sigmoid()


class Fusion(nn.Module):
    """Both streams mixed, each channel weighted by what its mean and its maximum say."""

    def __init__(self, channels: int, ratio: int = 16):
        super().__init__()
        self.mix = nn.Sequential(nn.Conv2d(2 * channels, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU())
        inner = channels // ratio
        self.weigh = nn.Sequential(
            nn.Conv2d(channels, inner, 1, bias=False), nn.ReLU(), nn.Conv2d(inner, channels, 1, bias=False)
        )
        nn.init.kaiming_normal_(self.mix[0].weight, a=1)
        for layer in (self.weigh[0], self.weigh[2]):
            nn.init.xavier_normal_(layer.weight, gain=0.02)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        mixed = self.mix(torch.cat([x, y], 1))
        means, peaks = mixed.mean((2, 3), keepdim=True), mixed.amax((2, 3), keepdim=True)
        return mixed * (self.weigh(means) + self.weigh(peaks)).sigmoid()


class SRM(Detector):
    """Luo et al., Generalizing Face Forgery Detection with High-frequency Features, CVPR 2021; loss: AM-Softmax.

    The classes are told apart by cosines, as that loss has it; the logit is the difference of the scaled cosines.
    """

    def __init__(self, weights: Weights, size: int):
        super().__init__()
        self.pixels, self.noise = xception(weights, classes=0), xception(weights, classes=0)
        self.residuals = NoiseResidual()
        self.early = nn.ModuleList([ChannelNoiseResidual(32), ChannelNoiseResidual(64)])
        self.guide, self.after = NoiseGuided(), nn.Sequential(nn.BatchNorm2d(64), nn.ReLU())
        self.attend = nn.ModuleList(CrossAttention(728, middle_side(size)) for _ in range(2))
        self.fuse, self.classes = Fusion(2048), nn.Linear(2048, 2, bias=False)

    def cosines(self, images: Tensor) -> Tensor:
        """[B, 2]: to the directions of real and fake."""
        noise = self.residuals(images)
        x, y = images, noise
        for number, early in enumerate(self.early, 1):
            x, y = (self.layer(net, number, stream) for net, stream in ((self.pixels, x), (self.noise, y)))
            y = (y + early(x)).relu()
        x = self.after(x * (1 + self.guide(noise)))
        for first, last, attend in ((1, 3, self.attend[0]), (4, 7, self.attend[1]), (8, 12, None)):
            x, y = (self.blocks(net, first, last, stream) for net, stream in ((self.pixels, x), (self.noise, y)))
            if attend:
                x, y = attend(x, y)
        for number in (3, 4):
            x, y = (self.layer(net, number, stream) for net, stream in ((self.pixels, x), (self.noise, y)))
        features = self.fuse(x, y).mean((2, 3))
        return nn.functional.normalize(features.float()) @ nn.functional.normalize(self.classes.weight.float()).T

    @staticmethod
    def layer(net: nn.Module, number: int, images: Tensor) -> Tensor:
        """One of the backbone's four layers outside its blocks."""
        for part in ("conv", "bn", "act"):
            images = getattr(net, f"{part}{number}")(images)
        return images

    @staticmethod
    def blocks(net: nn.Module, first: int, last: int, images: Tensor) -> Tensor:
        for number in range(first, last + 1):
            images = getattr(net, f"block{number}")(images)
        return images

    def forward(self, images: Tensor) -> Tensor:
        cosines = self.cosines(images)
        return SCALE * (cosines[:, 1] - cosines[:, 0])

    def learn(self, images: Tensor, labels: Labels) -> tuple[Tensor, Tensor]:
        cosines = self.cosines(images)
        loss = losses.additive_margin(cosines, labels.target, scale=SCALE)
        return loss, SCALE * (cosines[:, 1] - cosines[:, 0])
