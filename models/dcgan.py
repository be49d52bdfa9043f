"""DCGAN (Radford et al. 2016, arXiv:1511.06434): the networks and their initial weights."""

import copy
import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn.functional import fold
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.nn.utils.parametrizations import spectral_norm

IMAGE_SIZES = (32, 64, 128)
LEAKY_SLOPE = 0.2


class Generator(nn.Module):
    """Latents [B, latent_dim] and, if there are `classes`, int64 [B] -> images [B, 3, S, S] in [-1, 1].

    S is `image_size`. Transposed convolutions of kernel 4 double the side, starting from 4x4; the widest layer has
    `width * S / 8` channels (paper, section 3: no pooling, no hidden fully connected layer, BatchNorm and ReLU, tanh
    at the end). The class is appended to the latent as a one-hot vector (Mirza and Osindero 2014, arXiv:1411.1784).
    """

    def __init__(self, latent_dim: int = 128, width: int = 64, *, image_size: int = 64, classes: int = 0):
        super().__init__()
        self.latent_dim, self.image_size, self.classes = latent_dim, image_size, classes
        channels = [width * 2**i for i in reversed(range(doublings(image_size)))]
        layers = block(FromPoint(latent_dim + classes, channels[0], 4, 1, 0, bias=False), nn.ReLU(True))
        for wide, narrow in itertools.pairwise(channels):
            layers += block(nn.ConvTranspose2d(wide, narrow, 4, 2, 1, bias=False), nn.ReLU(True))
        self.net = nn.Sequential(*layers, nn.ConvTranspose2d(width, 3, 4, 2, 1, bias=False), nn.Tanh())
        self.apply(initialise)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        if self.classes:
            assert labels is not None
            one_hot = labels[:, None] == torch.arange(self.classes, device=labels.device)
            z = torch.cat([z, one_hot.to(z.dtype)], 1)
        return self.net(z[:, :, None, None])


class Discriminator(nn.Module):
    """Images [B, 3, S, S] in [-1, 1] and, if there are `classes`, int64 [B] -> logits [B] of being real.

    The mirror image of the generator, with LeakyReLU 0.2. The published network ends in a sigmoid; here the sigmoid is
    part of the loss, which is exact for large logits. A class adds the inner product of its embedding with the
    features, summed over their positions (Miyato and Koyama 2018, arXiv:1802.05637, equation 6).

    `norm` is `batch`, as published; `none`, with which the logit of an image does not depend on the rest of the batch,
    as a gradient penalty requires; or `spectral`, which divides each weight matrix by its largest singular value
    (Miyato et al. 2018, arXiv:1802.05957). Without BatchNorm, nothing rescales the features; the convolutions then have
    biases, and their weights are initialised as in He et al. (2015, arXiv:1502.01852, equation 15).
    """

    def __init__(self, width: int = 64, image_size: int = 64, *, classes: int = 0, norm: str = "batch"):
        super().__init__()
        channels = [width * 2**i for i in range(doublings(image_size))]
        has_batch_norm = norm == "batch"
        layers = [nn.Conv2d(3, width, 4, 2, 1, bias=not has_batch_norm), leaky_relu()]
        for narrow, wide in itertools.pairwise(channels):
            convolution = nn.Conv2d(narrow, wide, 4, 2, 1, bias=not has_batch_norm)
            layers += block(convolution, leaky_relu()) if has_batch_norm else [convolution, leaky_relu()]
        self.net = nn.Sequential(*layers, ToPoint(channels[-1], 1, 4, 1, 0, bias=False))
        self.embedding = nn.Embedding(classes, channels[-1]) if classes else None
        self.apply(initialise if has_batch_norm else initialise_without_norm)
        if norm == "spectral":
            for module in self.modules():
                if isinstance(module, nn.Conv2d | nn.Embedding):
                    spectral_norm(module)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        features = self.net[:-1](images)
        logits = self.net[-1](features).flatten()
        if self.embedding is None:
            return logits
        return logits + (self.embedding(labels) * features.sum((2, 3))).sum(1)


def doublings(image_size: int) -> int:
    """How often the side doubles from 4 to `image_size`. Raises ValueError for a size that is not supported."""
    if image_size not in IMAGE_SIZES:
        raise ValueError(f"image size {image_size}: choose one of {', '.join(map(str, IMAGE_SIZES))}")
    return int(math.log2(image_size)) - 2


class FromPoint(nn.ConvTranspose2d):
    """The transposed convolution of [B, C, 1, 1] as a matrix product: 5 times as fast on a CPU."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        return (input.flatten(1) @ self.weight.flatten(1)).unflatten(1, self.weight.shape[1:])


class ToPoint(nn.Conv2d):
    """The convolution of [B, C, k, k] with a kernel of the same size, as a matrix product: [B, O, 1, 1]."""

    def forward(self, input: Tensor) -> Tensor:
        return (input.flatten(1) @ self.weight.flatten(1).T)[:, :, None, None]


class ToImage(nn.Module):
    """The generator's last layer for inference: a matrix product whose 4x4 patches are summed where they overlap.

    Nearly twice as fast on a CPU as the transposed convolution, which is optimised for many more channels than three.
    """

    def __init__(self, convolution: nn.ConvTranspose2d):
        super().__init__()
        self.weight = convolution.weight

    def forward(self, x: Tensor) -> Tensor:
        patches = self.weight.flatten(1).T @ x.flatten(2)
        height, width = x.shape[2:]
        return fold(patches, (2 * height, 2 * width), kernel_size=4, padding=1, stride=2)


def optimise_for_inference(net: Generator) -> Generator:
    """A copy of `net`, which is in evaluation mode, that generates the same images faster, up to rounding.

    The scale and shift of every BatchNorm are merged into the convolution before it.
    """
    layers: list[nn.Module] = [net.net[0]]
    for layer in net.net[1:]:
        if isinstance(layer, nn.BatchNorm2d) and type(layers[-1]) is nn.ConvTranspose2d:
            layers[-1] = fuse_conv_bn_eval(layers[-1], layer, transpose=True)
        else:
            layers.append(layer)
    last = layers[-2]
    assert isinstance(last, nn.ConvTranspose2d)
    layers[-2] = ToImage(last)
    optimised = copy.deepcopy(net)
    optimised.net = nn.Sequential(*layers)
    return optimised.requires_grad_(False)


def block(convolution: nn.Conv2d | nn.ConvTranspose2d, activation: nn.Module) -> list[nn.Module]:
    return [convolution, nn.BatchNorm2d(convolution.out_channels), activation]


def leaky_relu() -> nn.LeakyReLU:
    return nn.LeakyReLU(LEAKY_SLOPE, True)


def initialise(module: nn.Module) -> None:
    """Sample weights from N(0, 0.02), and BatchNorm's scale from N(1, 0.02) (paper, section 4)."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Embedding):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)


def initialise_without_norm(module: nn.Module) -> None:
    """Sample a convolution's weights such that features keep their variance through a LeakyReLU; biases are 0."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, LEAKY_SLOPE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, 0.0, 0.02)
