"""DCGAN: shapes, size, normalisation and initial weights."""

import pytest
import torch
from torch import nn

from models.dcgan import IMAGE_SIZES, Discriminator, FromPoint, Generator, ToPoint


@pytest.mark.parametrize("size", IMAGE_SIZES)
def test_shapes_and_range(size):
    images = Generator(16, 8, image_size=size)(torch.randn(4, 16))
    assert images.shape == (4, 3, size, size)
    assert images.abs().max() <= 1
    assert Discriminator(8, size)(images).shape == (4,)


def test_parameter_counts_are_those_of_the_published_network():
    def count(net):
        return sum(p.numel() for p in net.parameters())

    # kernels 4x4: 128-512-256-128-64-3 and 3-64-128-256-512-1, and two parameters per normalised channel
    assert count(Generator()) == 16 * (128 * 512 + 512 * 256 + 256 * 128 + 128 * 64 + 64 * 3) + 2 * (
        512 + 256 + 128 + 64
    )
    assert count(Discriminator()) == 16 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512) + 2 * (128 + 256 + 512)


def test_initial_weights_have_a_standard_deviation_of_two_hundredths():
    weight = Generator().net[3].weight.detach()
    assert weight.mean().abs() < 1e-4
    assert weight.std() == pytest.approx(0.02, rel=0.01)


def test_without_batchnorm_the_features_keep_their_scale():
    images = torch.randn(64, 3, 64, 64).clamp(-1, 1)
    network = Discriminator(16, norm="none")
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    features = images
    for layer in network.net[:-1]:
        features = layer(features)
        assert 0.3 < features.square().mean().sqrt() < 3
    with torch.no_grad():  # every image is treated by itself
        assert torch.allclose(network(images)[:1], network(images[:1]), atol=1e-4)


def test_spectral_normalisation_bounds_every_layer():
    network = Discriminator(8, 32, norm="spectral")
    for _ in range(50):  # power iterations
        network(torch.randn(2, 3, 32, 32))
    for module in network.eval().modules():
        if isinstance(module, nn.Conv2d):
            assert torch.linalg.matrix_norm(module.weight.detach().flatten(1), 2).item() == pytest.approx(1, abs=0.05)


def test_unsupported_sizes_are_refused():
    with pytest.raises(ValueError, match="32, 64, 128"):
        Generator(image_size=48)


def test_matrix_products_equal_the_convolutions_that_they_replace():
    x, y = torch.randn(3, 5, 1, 1), torch.randn(3, 5, 4, 4)
    up, down = FromPoint(5, 7, 4, 1, 0, bias=False), ToPoint(5, 2, 4, 1, 0, bias=False)
    assert torch.allclose(up(x), nn.ConvTranspose2d.forward(up, x), atol=1e-5)
    assert torch.allclose(down(y), nn.Conv2d.forward(down, y), atol=1e-5)
