"""DCGAN: shapes, size, initial weights and losses."""

import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy

from models.dcgan import IMAGE_SIZES, Discriminator, FromPoint, Generator, ToPoint, discriminator_loss, generator_loss


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


def test_losses_are_binary_cross_entropy_of_the_sigmoid():
    real, fake = torch.randn(50), torch.randn(50)
    one, zero = torch.ones(50), torch.zeros(50)
    expected = binary_cross_entropy(real.sigmoid(), one) + binary_cross_entropy(fake.sigmoid(), zero)
    assert torch.allclose(discriminator_loss(real, fake), expected)
    assert torch.allclose(generator_loss(fake), binary_cross_entropy(fake.sigmoid(), one))
    assert torch.isfinite(discriminator_loss(torch.full((2,), -1e4), torch.full((2,), 1e4)))


def test_unsupported_sizes_are_refused():
    with pytest.raises(ValueError, match="32, 64, 128"):
        Generator(image_size=48)


def test_matrix_products_equal_the_convolutions_that_they_replace():
    x, y = torch.randn(3, 5, 1, 1), torch.randn(3, 5, 4, 4)
    up, down = FromPoint(5, 7, 4, 1, 0, bias=False), ToPoint(5, 2, 4, 1, 0, bias=False)
    assert torch.allclose(up(x), nn.ConvTranspose2d.forward(up, x), atol=1e-5)
    assert torch.allclose(down(y), nn.Conv2d.forward(down, y), atol=1e-5)
