"""Training objectives of backbone detectors: scalar losses of logits [B] and `Labels`."""

import torch
from torch import Tensor

from models.detectors import losses
from models.detectors.base import Labels


def mean_bce(logits: Tensor, labels: Labels) -> Tensor:
    """The mean binary cross entropy."""
    return losses.bce(logits, labels.target)


def cvar_bce(logits: Tensor, labels: Labels, *, alpha: float = 0.5) -> Tensor:
    """DAG-FDD: the mean of the largest fraction `alpha` of the losses, regardless of groups."""
    return losses.cvar(losses.bce(logits, labels.target, reduction="none"), alpha)


class GroupCvarBce:
    """DAW-FDD: the CVaR over groups of the CVaR within each group.

    Within a group the largest fraction `inner_alpha` of the losses counts, and among the groups the worst
    `outer_alpha`. Faces of unknown group form their own group.
    """

    def __init__(self, groups: int, *, inner_alpha: float = 0.9, outer_alpha: float = 0.5):
        self.groups, self.inner_alpha, self.outer_alpha = groups, inner_alpha, outer_alpha

    def __call__(self, logits: Tensor, labels: Labels) -> Tensor:
        face_losses = losses.bce(logits, labels.target, reduction="none")
        group_losses, present = self.group_losses(face_losses, labels.group)
        return losses.cvar(group_losses, self.outer_alpha, mask=present)

    def group_losses(self, face_losses: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
        """The CVaR of each group's losses, the unknown group last, and which groups are in the batch (bool)."""
        group = torch.where(group < 0, self.groups, group)
        return losses.group_cvar(face_losses, group, groups=self.groups + 1, alpha=self.inner_alpha)
