"""UCF and PG-FDD: features that all fakes share are parted from those of one family, from content and from groups."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.detectors import losses
from models.detectors.backbones import Weights, xception
from models.detectors.base import Detector, GroupAwareDetector, Labels

WIDTH = 512  # channels of an encoder's features; a half of them is common, a half specific
SPECIFIC, RECONSTRUCTED, CONTRASTED, FAIR = 0.1, 0.3, 0.05, 0.1  # weights of the losses beside the common one's
SMOOTHING, CURVATURE = 1e-3, 1e-4  # of PG-FDD's smooth worst half of the groups


class Encoder(nn.Module):
    """Xception's features in WIDTH channels: [B, 3, S, S] -> [B, WIDTH, s, s]."""

    def __init__(self, weights: Weights):
        super().__init__()
        self.net = xception(weights, classes=0)
        self.narrow = nn.Sequential(nn.Conv2d(2048, WIDTH, 1), nn.BatchNorm2d(WIDTH), nn.ReLU())

    def forward(self, images: Tensor) -> Tensor:
        return self.narrow(self.net.forward_features(images))


def part_of(features: int = WIDTH, wide: int = WIDTH // 2) -> nn.Sequential:
    """Three layers that take one kind of features out of all: [B, features, s, s] -> [B, wide, s, s]."""
    return nn.Sequential(
        nn.Conv2d(features, wide, 1), nn.LeakyReLU(), nn.Conv2d(wide, wide, 1), nn.LeakyReLU(), nn.Conv2d(wide, wide, 1)
    )


class Head(nn.Module):
    """What mean features say: [B, WIDTH / 2, s, s] -> logits [B, classes] and the means [B, WIDTH / 2]."""

    def __init__(self, classes: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(WIDTH // 2, WIDTH), nn.LeakyReLU(), nn.Dropout(0.2), nn.Linear(WIDTH, classes)
        )

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        means = features.mean((2, 3))
        return self.layers(means), means


def restyled(content: Tensor, style: Tensor) -> Tensor:
    """Features with each channel's mean and deviation those of `style` (Huang and Belongie, AdaIN, ICCV 2017)."""
    (spread, mean), (wanted_spread, wanted_mean) = (
        (x.float().var((2, 3), keepdim=True).add(1e-5).sqrt(), x.float().mean((2, 3), keepdim=True))
        for x in (content, style)
    )
    return (content - mean) / spread * wanted_spread + wanted_mean


class Decoder(nn.Module):
    """An image out of one face's content and the traces of a generator in another: [B, 3, size, size] in [-1, 1]."""

    def __init__(self):
        super().__init__()
        self.steps = nn.ModuleList(
            nn.Sequential(nn.Conv2d(wide, wide // 2, 3, padding=1), nn.ReLU(),
                          nn.Conv2d(wide // 2, wide // 2, 3, padding=1), nn.ReLU())
            for wide in (WIDTH, WIDTH // 2, WIDTH // 4)
        )  # fmt: skip
        self.drop, self.last = nn.Dropout(0.3), nn.Conv2d(WIDTH // 8, 3, 1)

    def forward(self, traces: Tensor, content: Tensor, size: int) -> Tensor:
        for number, step in enumerate(self.steps, 1):
            content = step(self.larger(restyled(content, traces)))
            if number < len(self.steps):
                traces = step(self.larger(traces))
        return F.interpolate(self.last(content), (size, size), mode="bilinear", align_corners=True).tanh()

    def larger(self, features: Tensor) -> Tensor:
        return self.drop(F.interpolate(features, scale_factor=2, mode="bilinear", align_corners=True))


class UCF(Detector):
    """UCF (Yan et al., ICCV 2023): a forgery encoder and a content encoder; the logit is of the common features.

    Loss: cross entropy of real and fake by the common features, plus 0.1 of that of the families by the specific ones,
    0.3 of the L1 distances of the four images that content and traces of a real and a fake make, and 0.05 of the
    contrastive loss.
    """

    def __init__(self, weights: Weights, families: int):
        super().__init__()
        self.forgery, self.content = Encoder(weights), Encoder(weights)
        self.common, self.specific = part_of(), part_of()
        self.says_common, self.says_family = Head(1), Head(families)
        self.decoder = Decoder()

    def forward(self, images: Tensor) -> Tensor:
        return self.says_common(self.common(self.forgery(images)))[0].squeeze(1)

    def learn(self, images: Tensor, labels: Labels) -> tuple[Tensor, Tensor]:
        features = self.forgery(images)
        common = self.common(features)
        logits, common_means = self.says_common(common)
        logits = logits.squeeze(1)
        return losses.bce(logits, labels.target) + self.parting(images, features, common, common_means, labels), logits

    def parting(self, images: Tensor, features: Tensor, common: Tensor, means: Tensor, labels: Labels) -> Tensor:
        """The losses that part the common from the specific, weighted."""
        specific = self.specific(features)
        said, specific_means = self.says_family(specific)
        # faces of unknown family teach nothing of families
        loss = SPECIFIC * F.cross_entropy(said.float(), labels.family, ignore_index=-1, reduction="sum")
        loss = loss / (labels.family >= 0).sum().clamp(min=1)
        loss = loss + RECONSTRUCTED * self.reconstruction(images, torch.cat([specific, common], 1))
        return loss + CONTRASTED * losses.contrastive(means, specific_means, labels.family)

    def reconstruction(self, images: Tensor, traces: Tensor) -> Tensor:
        """L1 of the images that each one's content makes with its own traces, and with those of its partner."""
        content, swapped = self.content(images), torch.cat(traces.chunk(2)[::-1])
        made = [self.decoder(one, content, images.shape[-1]).float() for one in (traces, swapped)]
        return 2 * sum(F.l1_loss(image, images) for image in made)  # the mean of each half, both summed


class PGFDD(UCF):
    """PG-FDD (Lin et al., Preserving Fairness Generalization in Deepfake Detection, CVPR 2024).

    It is UCF with a third encoder, which learns groups (LDAM loss); the logit is of its features in the style of the
    common ones. Beside UCF's losses and 0.1 of LDAM's: the smooth worst half of the groups by the worst 0.9 of their
    losses. The flattening of the loss landscape that the paper adds is left out, as it is in AI-Face's benchmark.
    """

    def __init__(self, weights: Weights, families: int, counts: list[int]):
        super().__init__(weights, families)
        self.says_common = Head(2)
        self.fairness, self.demographic = Encoder(weights), part_of()
        self.says_group, self.says_fused = Head(len(counts)), Head(1)
        self.register_buffer("counts", torch.tensor(counts), persistent=False)
        self.groups = GroupAwareDetector(len(counts))

    def fused(self, images: Tensor, common: Tensor) -> tuple[Tensor, Tensor]:
        """The logits [B], and the demographic features."""
        demographic = self.demographic(self.fairness(images))
        return self.says_fused(restyled(demographic, common))[0].squeeze(1), demographic

    def forward(self, images: Tensor) -> Tensor:
        return self.fused(images, self.common(self.forgery(images)))[0]

    def learn(self, images: Tensor, labels: Labels) -> tuple[Tensor, Tensor]:
        features = self.forgery(images)
        common = self.common(features)
        said, means = self.says_common(common)
        logits, demographic = self.fused(images, common)
        loss = F.cross_entropy(said.float(), labels.target) + self.parting(images, features, common, means, labels)
        said_group = self.says_group(demographic)[0]
        loss = loss + FAIR * losses.label_distribution_aware(said_group, labels.group, self.counts)
        each, there = self.groups.by_group(losses.bce(logits, labels.target, "none"), labels.group)
        return loss + losses.smoothed_cvar(each, there, self.groups.outer, SMOOTHING, CURVATURE), logits
