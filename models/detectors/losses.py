"""The detectors' losses over one batch. All shapes are static, so that they compile into one graph."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

BISECTION_STEPS = 50


def bce(logits: Tensor, target: Tensor, *, reduction: Literal["mean", "none"] = "mean") -> Tensor:
    """Binary cross entropy of logits [B] (0 or more: fake) and the target [B], 1 for fake."""
    return F.binary_cross_entropy_with_logits(logits.float(), target.float(), reduction=reduction)


def cvar(losses: Tensor, alpha: float, *, mask: Tensor | None = None) -> Tensor:
    """Conditional value at risk: the mean of the largest fraction `alpha` of the losses [N], the last counted in part.

    CVaR is min over l of l + mean(max(losses - l, 0)) / alpha (Rockafellar and Uryasev, J. Risk 2 (2000) 21-41). The
    minimum lies at one of the losses, so that it is exact without a search. `mask`, bool [N], selects the losses that
    are considered; the result is 0 if it selects none.
    """
    losses, mask = losses.float(), torch.ones_like(losses, dtype=torch.bool) if mask is None else mask
    order = losses.detach().masked_fill(~mask, -torch.inf).argsort(descending=True)
    tail = alpha * mask.sum()  # the number of losses that count, the last one in part
    rank = torch.arange(len(losses), device=losses.device)
    weights = (tail - rank).clamp(0, 1)
    return (weights * losses[order].where(mask[order], 0)).sum() / tail.clamp(min=1e-12)


def group_cvar(losses: Tensor, group: Tensor, *, groups: int, alpha: float) -> tuple[Tensor, Tensor]:
    """The CVaR of each group's losses, float32 [groups], and which groups are in the batch, bool [groups].

    `group` is int64 [N] in 0 to `groups` - 1.
    """
    masks = [group == number for number in range(groups)]
    group_losses = torch.stack([cvar(losses, alpha, mask=mask) for mask in masks])
    return group_losses, torch.stack([mask.any() for mask in masks])


def smoothed_cvar(losses: Tensor, mask: Tensor, *, alpha: float, temperature: float, penalty: float) -> Tensor:
    """PG-FDD's smooth CVaR of those losses [N] that `mask`, bool [N], selects.

    min over l of l + penalty / (2 alpha) l^2 + mean(temperature log(1 + exp((losses - l) / temperature))) / alpha. The
    minimum is found by bisection of the derivative, which is increasing; no gradient flows through l, as it is 0 there.
    """
    losses, count = losses.float(), mask.sum().clamp(min=1)
    values = losses.detach()
    low = values.where(mask, torch.inf).min() - 40 * temperature - penalty / alpha
    high = values.where(mask, -torch.inf).max() + 40 * temperature
    for _ in range(BISECTION_STEPS):
        middle = (low + high) / 2
        slope = (
            1 + penalty / alpha * middle - (((values - middle) / temperature).sigmoid() * mask).sum() / count / alpha
        )
        low, high = torch.where(slope < 0, middle, low), torch.where(slope < 0, high, middle)
    level = (low + high) / 2
    excess = (temperature * F.softplus((losses - level) / temperature) * mask).sum() / count
    return level + penalty / (2 * alpha) * level**2 + excess / alpha


def additive_margin(cosines: Tensor, target: Tensor, *, margin: float = 0.45, scale: float = 30.0) -> Tensor:
    """AM-Softmax (Wang et al., IEEE Signal Process. Lett. 25 (2018) 926-930).

    The cross entropy of scale x (cosine - margin of the true class), for cosines [B, 2] to the classes' directions.
    """
    margins = margin * F.one_hot(target, cosines.shape[1])
    return F.cross_entropy(scale * (cosines.float() - margins), target)


def label_distribution_aware(
    logits: Tensor, target: Tensor, *, counts: Tensor, margin: float = 0.5, scale: float = 30.0
) -> Tensor:
    """LDAM (Cao et al., NeurIPS 2019): the rarer the class, the larger its margin.

    Margins fall with the fourth root of the classes' `counts` [K]; the rarest class that occurs has `margin`. Faces
    with a target of -1 are ignored; the loss is 0 if all are.
    """
    margins = counts.clamp(min=1).float() ** -0.25
    margins = margin * margins / margins.where(counts > 0, 0).max().clamp(min=1e-12)
    known = target >= 0
    true_class = F.one_hot(target.clamp(min=0), logits.shape[1])
    face_losses = F.cross_entropy(
        scale * (logits.float() - margins * true_class), target, ignore_index=-1, reduction="none"
    )
    return face_losses.sum() / known.sum().clamp(min=1)


def consistency(features: Tensor, others: Tensor) -> Tensor:
    """CORE's loss of two views' features [B, D] of the same images: the mean of (1 - cosine)^2."""
    return ((1 - F.cosine_similarity(features.float(), others.float())) ** 2).mean()


def triplet(anchor: Tensor, positive: Tensor, negative: Tensor, *, margin: float) -> Tensor:
    """The mean of max(|anchor - positive| - |anchor - negative| + margin, 0) over rows [B, D]."""
    near, far = F.pairwise_distance(anchor, positive), F.pairwise_distance(anchor, negative)
    return (near - far + margin).clamp(min=0).mean()


def contrastive(common: Tensor, specific: Tensor, *, family: Tensor, margin: float = 3.0) -> Tensor:
    """UCF's contrastive loss of features [B, D], the first half of real images and the second of fakes.

    Common features are pulled towards those of the same target and away from those of the other target; specific
    features towards those of the same family, int64 [B]. The partners are random.
    """
    half = len(common) // 2
    real, fake = (torch.randperm(half, device=common.device) for _ in range(2))
    same_target = torch.cat([real, half + fake])
    same_family = shuffle_within_groups(family)
    loss = torch.zeros((), device=common.device)
    for features, partners in ((common, same_target), (specific, same_family)):
        (first, second), (first_partner, second_partner) = (
            features.float().chunk(2),
            features.float()[partners].chunk(2),
        )
        loss = loss + triplet(first, first_partner, second_partner, margin=margin)
        loss = loss + triplet(second, second_partner, first_partner, margin=margin)
    return loss


def shuffle_within_groups(group: Tensor) -> Tensor:
    """A random permutation of the positions in `group`, int64 [N], that maps each to one of the same group."""
    positions = torch.randperm(len(group), device=group.device)
    shuffled = positions[group[positions].argsort(stable=True)]  # by group, in random order
    ordered = group.argsort(stable=True)
    return torch.empty_like(ordered).scatter_(0, ordered, shuffled)


def uniformity(features: Tensor, *, temperature: float = 2.0) -> Tensor:
    """log mean exp(-t |x - y|^2) over all pairs of features of length 1, float32 [B, D]; low if they are spread out.

    Wang and Isola, Understanding Contrastive Representation Learning, ICML 2020.
    """
    pairs = torch.ones(len(features), len(features), device=features.device).triu(1)
    potentials = (-temperature * squared_distances(features)).exp() * pairs
    return (potentials.sum() / pairs.sum().clamp(min=1)).clamp(min=1e-6).log()


def alignment(features: Tensor, target: Tensor) -> Tensor:
    """The mean |x - y|^2 over the pairs of features of length 1, float32 [B, D], with the same target [B].

    Wang and Isola (as above), with faces of the same target in place of two views of one image.
    """
    pairs = (target[:, None] == target[None]).float().triu(1)
    return (squared_distances(features) * pairs).sum() / pairs.sum().clamp(min=1)


def squared_distances(features: Tensor) -> Tensor:
    """|x - y|^2 of all pairs of features of length 1, float32 [B, D] -> [B, B]."""
    with torch.autocast(features.device.type, enabled=False):
        return 2 - 2 * (features @ features.T).clamp(-1, 1)
