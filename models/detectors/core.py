"""CORE (Ni et al., CORE, CVPRW 2022)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from models.detectors import losses
from models.detectors.backbones import Weights, xception
from models.detectors.base import Detector, Labels

MIN_CROP_SIDE = 1 / 1.3  # of the image's side
MIN_ERASED_AREA, ERASED_AREA_RANGE = 0.02, 0.18  # of the image's area


class ConsistencyDetector(Detector):
    """An Xception that classifies two random views of every image and is trained to give both similar features."""

    def __init__(self, weights: Weights, *, consistency_weight: float = 1.0):
        super().__init__()
        self.net, self.consistency_weight = xception(weights), consistency_weight

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(images)
        return logits.squeeze(1)

    def training_step(self, images: Tensor, labels: Labels) -> tuple[Tensor, Tensor]:
        views = torch.cat([random_views(images), random_views(images)])
        features = self.net.forward_head(self.net.forward_features(views), pre_logits=True)
        logits = self.net.fc(features).squeeze(1)
        loss = losses.bce(logits, labels.target.repeat(2))
        return loss + self.consistency_weight * losses.consistency(*features.chunk(2)), logits[: len(images)]


def random_views(images: Tensor) -> Tensor:
    """One random view of each image, [B, 3, S, S].

    Half of them are mirrored, a square with 1/1.3 to 1 of the side is cropped and resized, and a rectangle is erased
    in half of them.
    """
    count, size, device = len(images), images.shape[-1], images.device
    side = MIN_CROP_SIDE + (1 - MIN_CROP_SIDE) * torch.rand(count, device=device)
    mirror = torch.where(torch.rand(count, device=device) < 0.5, -1.0, 1.0)
    shift = (2 * torch.rand(count, 2, device=device) - 1) * (1 - side)[:, None]
    zero = torch.zeros_like(side)
    rows = [torch.stack([mirror * side, zero, shift[:, 0]], 1), torch.stack([zero, side, shift[:, 1]], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), [count, 3, size, size], align_corners=False)
    images = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    return images.masked_fill(erased_rectangles(count, size, device)[:, None], 0)


def erased_rectangles(count: int, size: int, device: torch.device) -> Tensor:
    """Masks of the erased pixels, bool [count, size, size]: a rectangle of 2 to 20 % of the area in half of them.

    Zhong et al., Random Erasing Data Augmentation, AAAI 2020.
    """
    area = MIN_ERASED_AREA + ERASED_AREA_RANGE * torch.rand(count, device=device)
    aspect = torch.exp(torch.rand(count, device=device) - 0.5)
    extent = torch.stack([(area * aspect).sqrt(), (area / aspect).sqrt()], 1) * (
        torch.rand(count, 1, device=device) < 0.5
    )
    start = torch.rand(count, 2, device=device) * (1 - extent)
    pixels = (torch.arange(size, device=device) + 0.5) / size
    rows, columns = ((pixels >= start[:, i, None]) & (pixels < (start + extent)[:, i, None]) for i in range(2))
    return rows[:, :, None] & columns[:, None]
