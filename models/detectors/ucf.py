"""UCF (Yan et al., Uncovering Common Features, ICCV 2023)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from models.detectors import losses
from models.detectors.backbones import Weights
from models.detectors.base import Detector, Labels
from models.detectors.encoders import Decoder, Encoder, Head, feature_branch

FAMILY_WEIGHT, RECONSTRUCTION_WEIGHT, CONTRASTIVE_WEIGHT = 0.1, 0.3, 0.05  # relative to the loss of the common features


class UCF(Detector):
    """Separates forgery features that all families of generators share from those of one family and from content.

    The logit is computed from the common features. The loss is the cross entropy of real and fake by the common
    features, plus 0.1 times that of the families by the specific features, 0.3 times the L1 distances of the four
    images reconstructed from content and traces of a real face and a fake, and 0.05 times the contrastive loss.
    """

    def __init__(self, weights: Weights, families: int):
        super().__init__()
        self.forgery_encoder, self.content_encoder = Encoder(weights), Encoder(weights)
        self.common_branch, self.specific_branch = feature_branch(), feature_branch()
        self.common_head, self.family_head = Head(1), Head(families)
        self.decoder = Decoder()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.common_head(self.common_branch(self.forgery_encoder(images)))[0]
        return logits.squeeze(1)

    def training_step(self, images: Tensor, labels: Labels) -> tuple[Tensor, Tensor]:
        features = self.forgery_encoder(images)
        common = self.common_branch(features)
        logits, common_means = self.common_head(common)
        logits = logits.squeeze(1)
        separation = self.separation_loss(images, labels, features=features, common=common, common_means=common_means)
        return losses.bce(logits, labels.target) + separation, logits

    def separation_loss(
        self, images: Tensor, labels: Labels, *, features: Tensor, common: Tensor, common_means: Tensor
    ) -> Tensor:
        """The weighted sum of the losses that separate common from specific features; they ignore unknown families."""
        specific = self.specific_branch(features)
        family_logits, specific_means = self.family_head(specific)
        family_loss = F.cross_entropy(family_logits.float(), labels.family, ignore_index=-1, reduction="sum")
        loss = FAMILY_WEIGHT * family_loss
        loss = loss / (labels.family >= 0).sum().clamp(min=1)
        loss = loss + RECONSTRUCTION_WEIGHT * self.reconstruction_loss(images, torch.cat([specific, common], 1))
        return loss + CONTRASTIVE_WEIGHT * losses.contrastive(common_means, specific_means, family=labels.family)

    def reconstruction_loss(self, images: Tensor, traces: Tensor) -> Tensor:
        """L1 of the images reconstructed from each content with its own traces, and with those of its partner.

        The first half of the batch is real and the second fake; a face's partner has its position in the other half.
        """
        content, swapped = self.content_encoder(images), torch.cat(traces.chunk(2)[::-1])
        own, other = (self.decoder(each, content, images.shape[-1]).float() for each in (traces, swapped))
        return 2 * (F.l1_loss(own, images) + F.l1_loss(other, images))  # the mean of each half, both summed
