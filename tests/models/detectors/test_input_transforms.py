"""Frequencies, phases and noise residuals, checked against their definitions."""

import torch
import torch.nn.functional as F

from models.detectors.input_transforms import FrequencyBands, NoiseResidual, append_phase_image
from models.detectors.npr import neighbour_residuals


def test_frequency_bands_add_up_to_the_image():
    """With masks of zero the last band is the image, and the three others add up to it, except on shared edges."""
    bands = FrequencyBands(64)
    torch.nn.init.zeros_(bands.learnable_masks)
    images = torch.randn(2, 3, 64, 64)
    out = bands(images)
    assert out.shape == (2, 12, 64, 64)
    assert torch.allclose(out[:, 9:], images, atol=1e-4)
    flat = bands(torch.ones(1, 3, 64, 64))
    assert torch.allclose(flat[:, :3], torch.ones(1, 3, 64, 64), atol=1e-4)  # a flat image has only low frequencies
    assert flat[:, 3:9].abs().max() < 1e-4


def test_the_phase_image_does_not_depend_on_contrast():
    images = torch.rand(2, 3, 32, 32)
    both = append_phase_image(torch.cat([images, 5 * images]))
    assert torch.equal(both[:2, :3], images)
    assert torch.allclose(both[:2, 3], both[2:, 3], atol=1e-4)
    spectrum = torch.fft.fft2(both[0, 3].double()).abs()
    assert torch.allclose(spectrum, torch.ones_like(spectrum), atol=1e-3)


def test_a_smooth_image_has_no_noise_residual():
    ramp = torch.linspace(0, 1, 16).expand(1, 3, 16, 16)
    assert NoiseResidual()(ramp)[..., 2:-2, 2:-2].abs().max() < 1e-5
    spike = torch.zeros(1, 3, 16, 16)
    spike[0, :, 8, 8] = 1
    noise = NoiseResidual()(spike)[0]
    assert noise[:, 8, 8].tolist() == [-3.0, -3.0, -3.0]  # -4/4, -12/12, -2/2, of three channels
    assert noise[2, 8, 7] == 1.5


def test_neighbour_residuals_are_the_image_without_its_upsampled_half():
    images = torch.randn(2, 3, 8, 12)
    half = F.interpolate(images, scale_factor=0.5, mode="nearest")
    expected = (images - F.interpolate(half, scale_factor=2, mode="nearest")) * 2 / 3
    assert torch.allclose(neighbour_residuals(images), expected)
    assert neighbour_residuals(images)[:, :, ::2, ::2].abs().max() == 0
