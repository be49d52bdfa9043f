"""UnivFD (Ojha et al., Towards Universal Fake Image Detectors, CVPR 2023)."""

import torch
from torch import Tensor, nn

from models.detectors import losses
from models.detectors.backbones import ClipFeatures
from models.detectors.base import Detector, Labels


class FrozenClipDetector(Detector):
    """One linear layer on the image features of a frozen CLIP."""

    def __init__(self, features: ClipFeatures):
        super().__init__()
        self.features, self.head = features, nn.Linear(features.dim, 1)
        nn.init.normal_(self.head.weight, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            features = self.features(images)
        logits: Tensor = self.head(features)
        return logits.squeeze(1)

    def training_step(self, images: Tensor, labels: Labels) -> tuple[Tensor, Tensor]:
        logits = self(images)
        return losses.bce(logits, labels.target), logits
