"""A small convolutional network with one head per annotated attribute, and the labeller that uses it."""

import itertools
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.clip import weights_hash
from models.precision import bf16_is_fast
from shards.attributes import Attribute

NAME = "classifier"  # prefix of these labellers' names, and the method of their labels
WIDTHS = (32, 64, 128, 256)  # channels of the residual blocks; each but the first halves the side of its input
INPUT_SIZE = 64  # pixels; larger images are downscaled, so that the time to fit does not depend on the generator


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016, arXiv:1512.03385) with average pooling.

    The scale of the last normalisation starts at 0, so that the block is initially its shortcut (Goyal et al. 2017,
    arXiv:1706.02677, section 5.1).
    """

    def __init__(self, channels: int, out_channels: int, *, stride: int):
        super().__init__()
        last = nn.BatchNorm2d(out_channels)
        nn.init.zeros_(last.weight)
        self.residual = nn.Sequential(
            nn.Conv2d(channels, out_channels, 3, stride, 1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False),
            last,
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or channels != out_channels:
            pool = nn.AvgPool2d(stride)  # a strided 1x1 convolution would skip three quarters of the pixels
            self.shortcut = nn.Sequential(
                pool, nn.Conv2d(channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.residual(x) + self.shortcut(x))


class FaceClassifier(nn.Module):
    """Logits of several attributes from images; `classes` maps each attribute to its number of classes."""

    mean: Tensor
    std: Tensor

    def __init__(self, classes: Mapping[str, int], *, widths: Sequence[int] | None = None):
        super().__init__()
        widths = widths or WIDTHS
        self.register_buffer("mean", torch.full((1, 3, 1, 1), 127.5))  # of the images that it is fitted to
        self.register_buffer("std", torch.full((1, 3, 1, 1), 64.0))
        stem = [nn.Conv2d(3, widths[0], 3, 2, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU(inplace=True)]
        blocks = [ResidualBlock(widths[0], widths[0], stride=1)]
        blocks += [ResidualBlock(a, b, stride=2) for a, b in itertools.pairwise(widths)]
        self.body = nn.Sequential(*stem, *blocks)
        self.heads = nn.ModuleDict({name: nn.Linear(widths[-1], count) for name, count in classes.items()})

    @property
    def dim(self) -> int:
        """The width D of the embeddings."""
        return next(iter(self.heads.values())).in_features  # type: ignore[return-value]

    def fit_standardisation(self, images: Tensor) -> None:
        """Set the mean and standard deviation of each channel to those of uint8 images [N, 3, S, S]."""
        counts = torch.stack([torch.bincount(images[:, i].flatten(), minlength=256) for i in range(3)]).double()
        levels, total = torch.arange(256, device=images.device, dtype=torch.float64), counts.sum(1)
        mean = counts @ levels / total
        variance = counts @ levels.square() / total - mean.square()
        self.mean.copy_(mean.view(1, 3, 1, 1))
        self.std.copy_(variance.clamp(min=1).sqrt().view(1, 3, 1, 1))

    def standardise(self, pixels: Tensor) -> Tensor:
        """Float images [B, 3, S, S] in 0-255, standardised, channels_last."""
        return ((pixels - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def embed(self, images: Tensor) -> Tensor:
        """The embeddings of standardised images [B, 3, S, S]: the mean over all positions, float32 [B, D]."""
        return self.body(images).mean((2, 3)).float()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """The logits of each head, float32 [B, K], for standardised images [B, 3, S, S]."""
        embeddings = self.embed(images)
        return {name: head(embeddings) for name, head in self.heads.items()}


def uses_bf16(device: torch.device) -> bool:
    """Whether bfloat16 is faster for a network this small: on a GPU only.

    Even with a processor's AMX, the fit was 0.7 to 1.0 times as fast as in float32.
    """
    return device.type == "cuda" and bf16_is_fast(device)


class ClassifierLabeller:
    """A fitted classifier as a labeller, with the interface of `models.clip.Labeller`.

    `thresholds` are the probabilities below which a label is unsure, by attribute. A class that is not
    fitted has probability 0.
    """

    method = NAME

    def __init__(
        self,
        model: FaceClassifier,
        attributes: Mapping[str, Attribute],
        *,
        fitted_classes: Mapping[str, Sequence[str]],
        thresholds: Mapping[str, float],
        device: str | torch.device = "cpu",
    ):
        """`fitted_classes` are the classes of each head, a subset of its attribute's."""
        self.attributes = {name: attributes[name] for name in fitted_classes}
        self.thresholds = dict(thresholds)
        self.device = torch.device(device)
        order = [[name, *classes] for name, classes in fitted_classes.items()]
        self.name = f"{NAME}@{weights_hash(model, order, self.thresholds)}"
        self.model = model.to(self.device).to(memory_format=torch.channels_last).eval()
        self.dim, self.size = model.dim, INPUT_SIZE
        self.bf16 = uses_bf16(self.device)
        self.columns = {
            name: torch.tensor([attributes[name].names.index(item) for item in classes], device=self.device)
            for name, classes in fitted_classes.items()
        }

    @torch.inference_mode()
    def label(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Class probabilities and embeddings of uint8 images [B, 3, S, S], on the labeller's device.

        Returns {attribute: float32 [B, K]} for each of its `attributes`, with rows that sum to 1, and embeddings of
        length 1, float16 [B, D]. Both are means over the image and its mirror image.
        """
        pixels = self.model.standardise(downscale_images(images.to(self.device, non_blocking=True)))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            embeddings = (self.model.embed(pixels) + self.model.embed(pixels.flip(3))) / 2
        probabilities = {}
        for name, columns in self.columns.items():
            fitted = self.model.heads[name](embeddings).softmax(1)
            shape = len(images), len(self.attributes[name].names)
            probabilities[name] = fitted.new_zeros(shape).index_copy_(1, columns, fitted)
        return probabilities, F.normalize(embeddings, dim=-1).half()


def downscale_images(images: Tensor) -> Tensor:
    """Uint8 images [B, 3, S, S] as float32 in 0-255; those larger than INPUT_SIZE are downscaled with antialiasing."""
    pixels = images.float()
    if max(pixels.shape[2:]) > INPUT_SIZE:
        pixels = F.interpolate(pixels, (INPUT_SIZE, INPUT_SIZE), mode="bilinear", antialias=True)
    return pixels
