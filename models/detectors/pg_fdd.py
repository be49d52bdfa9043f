"""PG-FDD (Lin et al., Preserving Fairness Generalization in Deepfake Detection, CVPR 2024)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from models.detectors import losses
from models.detectors.backbones import Weights
from models.detectors.base import Labels
from models.detectors.encoders import Encoder, Head, adaptive_instance_norm, feature_branch
from models.detectors.objectives import GroupCvarBce
from models.detectors.ucf import UCF

GROUP_WEIGHT = 0.1  # of the LDAM loss, relative to the loss of the common features
TEMPERATURE, PENALTY = 1e-3, 1e-4  # of the smoothed CVaR over groups


class PGFDD(UCF):
    """UCF with a third encoder that learns the groups (LDAM loss).

    The logit is computed from the demographic features, restyled by the common ones. The loss is the sum of UCF's
    losses, 0.1 times LDAM's, and the smoothed CVaR over groups (0.5) of the CVaR within each group (0.9). The paper's
    flattening of the loss landscape is left out, as in AI-Face's benchmark.
    """

    group_counts: Tensor

    def __init__(self, weights: Weights, families: int, *, group_counts: list[int]):
        super().__init__(weights, families)
        self.common_head = Head(2)  # replaces UCF's, which is still initialised to keep the random stream
        self.demographic_encoder, self.demographic_branch = Encoder(weights), feature_branch()
        self.group_head, self.fused_head = Head(len(group_counts)), Head(1)
        self.register_buffer("group_counts", torch.tensor(group_counts), persistent=False)
        self.group_objective = GroupCvarBce(len(group_counts))

    def forward(self, images: Tensor) -> Tensor:
        return self.fused_logits(images, self.common_branch(self.forgery_encoder(images)))[0]

    def fused_logits(self, images: Tensor, common: Tensor) -> tuple[Tensor, Tensor]:
        """The logits [B], and the demographic features."""
        demographic = self.demographic_branch(self.demographic_encoder(images))
        logits = self.fused_head(adaptive_instance_norm(demographic, common))[0]
        return logits.squeeze(1), demographic

    def training_step(self, images: Tensor, labels: Labels) -> tuple[Tensor, Tensor]:
        features = self.forgery_encoder(images)
        common = self.common_branch(features)
        common_logits, common_means = self.common_head(common)
        logits, demographic = self.fused_logits(images, common)
        separation = self.separation_loss(images, labels, features=features, common=common, common_means=common_means)
        loss = F.cross_entropy(common_logits.float(), labels.target) + separation
        group_logits = self.group_head(demographic)[0]
        loss = loss + GROUP_WEIGHT * losses.label_distribution_aware(
            group_logits, labels.group, counts=self.group_counts
        )
        return loss + self.fairness_loss(logits, labels), logits

    def fairness_loss(self, logits: Tensor, labels: Labels) -> Tensor:
        """The smoothed CVaR over groups."""
        face_losses = losses.bce(logits, labels.target, reduction="none")
        group_losses, present = self.group_objective.group_losses(face_losses, labels.group)
        alpha = self.group_objective.outer_alpha
        return losses.smoothed_cvar(group_losses, present, alpha=alpha, temperature=TEMPERATURE, penalty=PENALTY)
