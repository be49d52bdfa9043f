"""The interface of a detector: a network with one logit per face, and the loss that it is trained with."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.detectors import losses

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]  # each channel's mean and standard deviation, in [0, 1]


class Labels(NamedTuple):
    """The labels of a batch of faces, int64 [B] each."""

    target: Tensor  # 1: fake, 0: real
    family: Tensor  # 0: real, then the families of generators; -1: unknown
    group: Tensor  # gender x skin group; -1: unknown


class Detector(nn.Module, ABC):
    """Maps normalised images, float32 [B, 3, S, S], to logits [B]; a face with a logit of 0 or more is called fake."""

    @abstractmethod
    def training_step(self, images: Tensor, labels: Labels) -> tuple[Tensor, Tensor]:
        """Return the loss, a scalar, and the logits [B] that it was computed from."""


class BackboneDetector(Detector):
    """A backbone with one logit, trained with a loss of the logits and labels.

    `input_transform` maps the images to the backbone's input; the default passes them on unchanged.
    """

    def __init__(
        self,
        net: nn.Module,
        loss: Callable[[Tensor, Labels], Tensor],
        input_transform: Callable[[Tensor], Tensor] | None = None,
    ):
        super().__init__()
        self.net, self.loss = net, loss
        self.input_transform = input_transform or nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(self.input_transform(images))
        return logits.squeeze(1)

    def training_step(self, images: Tensor, labels: Labels) -> tuple[Tensor, Tensor]:
        logits = self(images)
        return self.loss(logits, labels), logits


class FrozenFeatureDetector(Detector):
    """A linear layer on the features of a frozen backbone, float32 [B, 3, S, S] -> [B, width].

    An image has the same features in every epoch. They are rounded to float16, so that training on stored features
    gives the same head as training on images.
    """

    def __init__(self, features: nn.Module, width: int):
        super().__init__()
        self.features, self.head = features.requires_grad_(False), nn.Linear(width, 1)
        nn.init.normal_(self.head.weight, std=0.02)

    def train(self, mode: bool = True) -> "FrozenFeatureDetector":
        """Switch the head to training or evaluation mode; the backbone stays in evaluation mode."""
        super().train(mode)
        self.features.eval()
        return self

    @torch.no_grad()
    def extract_features(self, images: Tensor) -> Tensor:
        """The features of normalised images, float16 [B, width]."""
        features: Tensor = self.features(images)
        return features.half()

    def logits_from_features(self, features: Tensor) -> Tensor:
        """The logits, float32 [B], of features float16 [B, width]."""
        with torch.autocast(features.device.type, enabled=False):  # in bfloat16, different logits would become equal
            logits: Tensor = self.head(features.float())
        return logits.squeeze(1)

    def training_step_from_features(self, features: Tensor, labels: Labels) -> tuple[Tensor, Tensor]:
        """What `training_step` returns for the images with these `features`, float16 [B, width]."""
        logits = self.logits_from_features(features)
        return losses.bce(logits, labels.target), logits

    def forward(self, images: Tensor) -> Tensor:
        return self.logits_from_features(self.extract_features(images))

    def training_step(self, images: Tensor, labels: Labels) -> tuple[Tensor, Tensor]:
        return self.training_step_from_features(self.extract_features(images), labels)
