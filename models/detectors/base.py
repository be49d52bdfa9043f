"""What every detector is: a network that gives a face one logit, and the loss that it learns by."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.detectors import losses
from models.detectors.backbones import ClipFeatures, Weights, xception


class Labels(NamedTuple):
    """What is known of a batch's faces, int64 [B] each."""

    target: Tensor  # 1: fake
    family: Tensor  # 0: real, then the families of generators; -1: unknown
    group: Tensor  # gender and skin group; -1: unknown


class Detector(nn.Module, ABC):
    """Images float32 [B, 3, S, S], normalised, to logits [B]: 0 or more says fake."""

    @abstractmethod
    def learn(self, images: Tensor, labels: Labels) -> tuple[Tensor, Tensor]:
        """The loss, and the logits [B] that it was found with."""


class BackboneDetector(Detector):
    """A network with one logit, and a loss of logits and labels; `view` is what it looks at instead of the pixels."""

    def __init__(self, net: nn.Module, loss: Callable[[Tensor, Labels], Tensor], view: Callable | None = None):
        super().__init__()
        self.net, self.loss = net, loss
        self.view = view or (lambda images: images)

    def forward(self, images: Tensor) -> Tensor:
        return self.net(self.view(images)).squeeze(1)

    def learn(self, images: Tensor, labels: Labels) -> tuple[Tensor, Tensor]:
        logits = self(images)
        return self.loss(logits, labels), logits


def cross_entropy(logits: Tensor, labels: Labels) -> Tensor:
    """The mean binary cross entropy."""
    return losses.bce(logits, labels.target)


def agnostic(logits: Tensor, labels: Labels, alpha: float = 0.5) -> Tensor:
    """DAG-FDD: the worst half of the losses, whoever is in it."""
    return losses.cvar(losses.bce(logits, labels.target, "none"), alpha)


class GroupAwareDetector:
    """DAW-FDD: the worst half of the groups, by the worst 0.9 of each one's losses; faces of no group are one, too."""

    def __init__(self, groups: int, inner: float = 0.9, outer: float = 0.5):
        self.groups, self.inner, self.outer = groups, inner, outer

    def __call__(self, logits: Tensor, labels: Labels) -> Tensor:
        each = losses.bce(logits, labels.target, "none")
        of_groups, there = self.by_group(each, labels.group)
        return losses.cvar(of_groups, self.outer, there)

    def by_group(self, each: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
        """The worst of each group's losses, the unknown group's last, and which groups there are."""
        return losses.group_cvar(each, torch.where(group < 0, self.groups, group), self.groups + 1, self.inner)


class FrozenClipDetector(Detector):
    """UnivFD: one linear layer on the features of a CLIP that stays as it is."""

    def __init__(self, features: ClipFeatures):
        super().__init__()
        self.features, self.head = features, nn.Linear(features.dim, 1)
        nn.init.normal_(self.head.weight, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            features = self.features(images)
        return self.head(features).squeeze(1)

    def learn(self, images: Tensor, labels: Labels) -> tuple[Tensor, Tensor]:
        logits = self(images)
        return losses.bce(logits, labels.target), logits


class ConsistencyDetector(Detector):
    """CORE: two views of every image are told apart alike, and have features in one direction."""

    def __init__(self, weights: Weights, weight: float = 1.0):
        super().__init__()
        self.net, self.weight = xception(weights), weight

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images).squeeze(1)

    def learn(self, images: Tensor, labels: Labels) -> tuple[Tensor, Tensor]:
        both = torch.cat([varied(images), varied(images)])
        features = self.net.forward_head(self.net.forward_features(both), pre_logits=True)
        logits = self.net.fc(features).squeeze(1)
        loss = losses.bce(logits, labels.target.repeat(2))
        return loss + self.weight * losses.consistency(*features.chunk(2)), logits[: len(images)]


def varied(images: Tensor) -> Tensor:
    """Random views [B, 3, S, S]: half are mirrored, a square of 1/1.3 to all of the side is cut out, a part erased."""
    count, size, device = len(images), images.shape[-1], images.device
    side = 1 / 1.3 + (1 - 1 / 1.3) * torch.rand(count, device=device)
    mirror = torch.where(torch.rand(count, device=device) < 0.5, -1.0, 1.0)
    shift = (2 * torch.rand(count, 2, device=device) - 1) * (1 - side)[:, None]
    zero = torch.zeros_like(side)
    rows = [torch.stack([mirror * side, zero, shift[:, 0]], 1), torch.stack([zero, side, shift[:, 1]], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), [count, 3, size, size], align_corners=False)
    images = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    # a rectangle of 2 to 20 % of the area, of half of them (Zhong et al., Random Erasing Data Augmentation, AAAI 2020)
    area, shape = 0.02 + 0.18 * torch.rand(count, device=device), torch.exp(torch.rand(count, device=device) - 0.5)
    extent = torch.stack([(area * shape).sqrt(), (area / shape).sqrt()], 1) * (
        torch.rand(count, 1, device=device) < 0.5
    )
    start = torch.rand(count, 2, device=device) * (1 - extent)
    places = (torch.arange(size, device=device) + 0.5) / size
    inside = [(places >= start[:, i, None]) & (places < (start + extent)[:, i, None]) for i in range(2)]
    return images.masked_fill((inside[0][:, :, None] & inside[1][:, None])[:, None], 0)
