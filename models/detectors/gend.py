"""GenD (Yermakov et al., Deepfake Detection that Generalizes Across Benchmarks, WACV 2026)."""

import torch.nn.functional as F
from torch import Tensor, nn

from models.detectors import losses
from models.detectors.base import Detector, Labels
from shards.errors import FairfaceError

UNIFORMITY_WEIGHT, ALIGNMENT_WEIGHT = 0.5, 0.1  # relative to the cross entropy, as in the authors' configurations


class LayerNormDetector(Detector):
    """An encoder of which only the LayerNorms are trained, and a linear layer on its features scaled to length 1.

    The loss is the cross entropy, plus 0.5 times the uniformity of the features on the sphere and 0.1 times the
    alignment of those with the same target. Raises FairfaceError for an encoder without LayerNorm.
    """

    def __init__(self, encoder: nn.Module, width: int):
        super().__init__()
        self.encoder, self.head = encoder.requires_grad_(False), nn.Linear(width, 1)
        norms = [module for module in encoder.modules() if isinstance(module, nn.LayerNorm)]
        if not norms:
            raise FairfaceError("GenD trains the LayerNorms of its backbone, but this one has none: choose a ViT")
        for norm in norms:
            norm.requires_grad_(True)

    def unit_features(self, images: Tensor) -> Tensor:
        """The encoder's features, scaled to length 1: float32 [B, width]."""
        return F.normalize(self.encoder(images).float(), dim=1)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.unit_features(images))
        return logits.squeeze(1)

    def training_step(self, images: Tensor, labels: Labels) -> tuple[Tensor, Tensor]:
        features = self.unit_features(images)
        logits: Tensor = self.head(features).squeeze(1)
        loss = losses.bce(logits, labels.target) + UNIFORMITY_WEIGHT * losses.uniformity(features)
        return loss + ALIGNMENT_WEIGHT * losses.alignment(features, labels.target), logits
