"""The interface of a detector: a network with one logit per face, and the loss that it is trained with."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn


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
