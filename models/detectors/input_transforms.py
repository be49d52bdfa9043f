"""Inputs that some detectors use instead of the pixels or in addition to them: frequencies, phases, noise residuals."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FrequencyBands(nn.Module):
    """F3Net's frequency-aware decomposition: images [B, 3, S, S] in four bands of their DCT, [B, 12, S, S].

    A band is selected by a fixed mask of the sum of both frequencies plus a learnable one in (-1, 1) (Qian et al.,
    Thinking in Frequency, ECCV 2020); S is fixed.
    """

    dct: Tensor
    fixed_masks: Tensor

    def __init__(self, size: int):
        super().__init__()
        frequency, position = torch.arange(size, dtype=torch.float64)[:, None], torch.arange(size, dtype=torch.float64)
        dct = math.sqrt(2 / size) * torch.cos(math.pi * frequency * (position + 0.5) / size)
        dct[0] /= math.sqrt(2)
        self.register_buffer("dct", dct.float(), persistent=False)
        total = frequency + position  # of the vertical and the horizontal frequency
        # low: 1/16 of the spectrum's area, middle: from there to 1/8, high: the rest, and all of it
        edges = [(0, size // 2.82), (size // 2.82, size // 2), (size // 2, 2 * size), (0, 2 * size)]
        masks = torch.stack([(total >= low) & (total <= high) for low, high in edges])
        self.register_buffer("fixed_masks", masks.float(), persistent=False)
        self.learnable_masks = nn.Parameter(0.1 * torch.randn(4, size, size))

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            spectrum = self.dct @ images.float() @ self.dct.T
            masks = self.fixed_masks + torch.tanh(self.learnable_masks / 2)  # 2 sigmoid(x) - 1
            bands = self.dct.T @ (spectrum[:, None] * masks[:, None]) @ self.dct
        return bands.flatten(1, 2)


def append_phase_image(images: Tensor) -> Tensor:
    """Images [B, 3, S, S] with a fourth channel that is reconstructed from the phases of their grey spectrum alone.

    Every amplitude is 1 (Liu et al., Spatial-Phase Shallow Learning, CVPR 2021).
    """
    with torch.autocast(images.device.type, enabled=False):
        grey = images.float().mean(1, keepdim=True)
        spectrum = torch.view_as_real(torch.fft.fft2(grey))
        phases = spectrum / spectrum.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        image = torch.fft.ifft2(torch.view_as_complex(phases)).real
    return torch.cat([images, image.to(images.dtype)], 1)


# (divisor, kernel): residuals of image forensics' spatial rich model (Fridrich and Kodovsky, IEEE Trans. Inf. Forensics
# Secur. 7 (2012) 868-882), two of the square kernels and the second derivative along a row.
RESIDUAL_KERNELS = (
    (4, ((0, 0, 0, 0, 0), (0, -1, 2, -1, 0), (0, 2, -4, 2, 0), (0, -1, 2, -1, 0), (0, 0, 0, 0, 0))),
    (12, ((-1, 2, -2, 2, -1), (2, -6, 8, -6, 2), (-2, 8, -12, 8, -2), (2, -6, 8, -6, 2), (-1, 2, -2, 2, -1))),
    (2, ((0, 0, 0, 0, 0), (0, 0, 0, 0, 0), (0, 1, -2, 1, 0), (0, 0, 0, 0, 0), (0, 0, 0, 0, 0))),
)
MAX_RESIDUAL = 3.0  # larger ones are clamped


def residual_kernels() -> Tensor:
    """The three kernels, float32 [3, 5, 5]."""
    return torch.stack([torch.tensor(kernel, dtype=torch.float32) / divisor for divisor, kernel in RESIDUAL_KERNELS])


class NoiseResidual(nn.Module):
    """Three noise residuals of the sum of all channels: [B, C, H, W] -> [B, 3, H, W]."""

    kernels: Tensor

    def __init__(self, channels: int = 3):
        super().__init__()
        self.register_buffer("kernels", residual_kernels()[:, None].repeat(1, channels, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return F.conv2d(images, self.kernels.to(images.dtype), padding=2).clamp(-MAX_RESIDUAL, MAX_RESIDUAL)


class ChannelNoiseResidual(nn.Module):
    """Three noise residuals of each channel, mixed by a learnable layer: [B, C, H, W] -> [B, C, H, W]."""

    kernels: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.channels = channels
        self.register_buffer("kernels", residual_kernels()[:, None].repeat(channels, 1, 1, 1), persistent=False)
        mix = nn.Conv2d(3 * channels, channels, 1, bias=False)
        self.mix = nn.Sequential(mix, nn.BatchNorm2d(channels), nn.ReLU())
        nn.init.kaiming_normal_(mix.weight, a=1)

    def forward(self, features: Tensor) -> Tensor:
        residuals = F.conv2d(features, self.kernels.to(features.dtype), padding=2, groups=self.channels)
        mixed: Tensor = self.mix(residuals.clamp(-MAX_RESIDUAL, MAX_RESIDUAL))
        return mixed
