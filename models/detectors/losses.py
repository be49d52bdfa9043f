"""The losses of the detectors, on logits and labels of one batch. All shapes are static, so that they compile."""

import torch
import torch.nn.functional as F
from torch import Tensor


def bce(logits: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """Binary cross entropy of logits [B] (0 or more: fake) and the target [B], 1 for fake."""
    return F.binary_cross_entropy_with_logits(logits.float(), target.float(), reduction=reduction)


def cvar(losses: Tensor, alpha: float, among: Tensor | None = None) -> Tensor:
    """The mean of the largest `alpha` of the losses [N], or of those `among` (bool [N]); the last one counts in part.

    That is the conditional value at risk, min over l of l + mean(max(losses - l, 0)) / alpha (Rockafellar and Uryasev,
    J. Risk 2 (2000) 21-41), at its minimum, which lies at one of the losses: no search is needed. 0 among none.
    """
    losses, among = losses.float(), torch.ones_like(losses, dtype=torch.bool) if among is None else among
    order = losses.detach().masked_fill(~among, -torch.inf).argsort(descending=True)
    room = alpha * among.sum()  # of losses that count, whole or in part
    before = torch.arange(len(losses), device=losses.device)
    weights = (room - before).clamp(0, 1)
    return (weights * losses[order].where(among[order], 0)).sum() / room.clamp(min=1e-12)


def group_cvar(losses: Tensor, group: Tensor, groups: int, alpha: float) -> tuple[Tensor, Tensor]:
    """`worst` of each group's losses [groups], and which groups there are, bool [groups]; group is int64 [N]."""
    members = [group == number for number in range(groups)]
    each = torch.stack([cvar(losses, alpha, one) for one in members])
    return each, torch.stack([one.any() for one in members])


def smoothed_cvar(losses: Tensor, among: Tensor, alpha: float, tau: float, weight: float) -> Tensor:
    """PG-FDD's smooth `worst` of the losses [N] `among` (bool [N]).

    min over l of l + weight / (2 alpha) l^2 + mean(tau log(1 + exp((losses - l) / tau))) / alpha. The minimum is found
    by bisection of the derivative, which rises; no gradient flows through l, for there it is 0.
    """
    losses, count = losses.float(), among.sum().clamp(min=1)
    fixed = losses.detach()
    low = fixed.where(among, torch.inf).min() - 40 * tau - weight / alpha
    high = fixed.where(among, -torch.inf).max() + 40 * tau
    for _ in range(50):
        middle = (low + high) / 2
        slope = 1 + weight / alpha * middle - (((fixed - middle) / tau).sigmoid() * among).sum() / count / alpha
        low, high = torch.where(slope < 0, middle, low), torch.where(slope < 0, high, middle)
    level = (low + high) / 2
    over = (tau * F.softplus((losses - level) / tau) * among).sum() / count
    return level + weight / (2 * alpha) * level**2 + over / alpha


def additive_margin(cosines: Tensor, target: Tensor, margin: float = 0.45, scale: float = 30.0) -> Tensor:
    """AM-Softmax of cosines [B, 2] to the classes' directions: cross entropy of scale (cosine - the true one's margin).

    Wang et al., IEEE Signal Process. Lett. 25 (2018) 926-930.
    """
    margins = margin * F.one_hot(target, cosines.shape[1])
    return F.cross_entropy(scale * (cosines.float() - margins), target)


def label_distribution_aware(
    logits: Tensor, target: Tensor, counts: Tensor, margin: float = 0.5, scale: float = 30.0
) -> Tensor:
    """LDAM (Cao et al., NeurIPS 2019): margins [K] fall with the fourth root of `counts`, the rarest has `margin`.

    Targets of -1 are left out; 0 where there are no others.
    """
    margins = counts.clamp(min=1).float() ** -0.25
    margins = margin * margins / margins.where(counts > 0, 0).max().clamp(min=1e-12)
    known = target >= 0
    wanted = F.one_hot(target.clamp(min=0), logits.shape[1])
    each = F.cross_entropy(scale * (logits.float() - margins * wanted), target, ignore_index=-1, reduction="none")
    return each.sum() / known.sum().clamp(min=1)


def consistency(features: Tensor, others: Tensor) -> Tensor:
    """CORE's loss of two views' features [B, D] of the same images: the mean of (1 - cosine)^2."""
    return ((1 - F.cosine_similarity(features.float(), others.float())) ** 2).mean()


def triplet(anchor: Tensor, positive: Tensor, negative: Tensor, margin: float) -> Tensor:
    """The mean of max(|anchor - positive| - |anchor - negative| + margin, 0) over rows [B, D]."""
    near, far = F.pairwise_distance(anchor, positive), F.pairwise_distance(anchor, negative)
    return (near - far + margin).clamp(min=0).mean()


def contrastive(common: Tensor, specific: Tensor, family: Tensor, margin: float = 3.0) -> Tensor:
    """UCF's contrastive loss of features [B, D] whose first half is of real images, and family int64 [B].

    Common features are nearer to others of their target than of the other one; specific ones nearer to others of
    their family. Which ones is random.
    """
    half = len(common) // 2
    real, fake = (torch.randperm(half, device=common.device) for _ in range(2))
    alike = torch.cat([real, half + fake])
    within = shuffled_within(family)
    loss = 0
    for features, partners in ((common, alike), (specific, within)):
        (one, other), (near, near_other) = features.float().chunk(2), features.float()[partners].chunk(2)
        loss = loss + triplet(one, near, near_other, margin) + triplet(other, near_other, near, margin)
    return loss


def shuffled_within(group: Tensor) -> Tensor:
    """A random permutation of the places of `group`, int64 [N], that maps every place to one of the same group."""
    places = torch.randperm(len(group), device=group.device)
    mixed = places[group[places].argsort(stable=True)]  # by group, in random order
    ordered = group.argsort(stable=True)
    return torch.empty_like(ordered).scatter_(0, ordered, mixed)
