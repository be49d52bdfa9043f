"""Losses of a generative adversarial network, and the gradient penalty against central differences."""

import pytest
import torch
from torch.nn.functional import binary_cross_entropy

from models.dcgan import Discriminator
from models.gan_losses import LOSSES, gradient_penalty


def test_the_dcgan_loss_is_binary_cross_entropy_of_the_sigmoid():
    real, fake = torch.randn(50), torch.randn(50)
    one, zero = torch.ones(50), torch.zeros(50)
    d_loss, g_loss = LOSSES["dcgan"]
    expected = binary_cross_entropy(real.sigmoid(), one) + binary_cross_entropy(fake.sigmoid(), zero)
    assert torch.allclose(d_loss(real, fake), expected)
    assert torch.allclose(g_loss(real, fake), binary_cross_entropy(fake.sigmoid(), one))
    assert torch.isfinite(d_loss(torch.full((2,), -1e4), torch.full((2,), 1e4)))


def test_the_relativistic_loss_compares_the_images_of_a_pair():
    real, fake = torch.randn(50), torch.randn(50)
    d_loss, g_loss = LOSSES["relativistic"]
    assert torch.allclose(d_loss(real, fake), -(real - fake).sigmoid().log().mean())
    assert torch.allclose(g_loss(real, fake), -(fake - real).sigmoid().log().mean())
    assert torch.allclose(d_loss(real + 5, fake + 5), d_loss(real, fake), atol=1e-5)  # only differences count


def test_the_hinge_loss_ignores_images_that_are_classified_with_a_margin():
    d_loss, g_loss = LOSSES["hinge"]
    assert d_loss(torch.tensor([1.0, 7.0]), torch.tensor([-1.0, -7.0])) == 0
    assert d_loss(torch.tensor([0.0]), torch.tensor([0.5])) == 2.5
    assert g_loss(torch.tensor([0.0]), torch.tensor([0.5])) == -0.5


@pytest.mark.parametrize("classes", [0, 3])
def test_the_gradient_penalty_equals_central_differences(classes):
    """The penalty is compared with differences of logits, and its gradient with those of penalties, in float64."""
    torch.manual_seed(0)
    network = Discriminator(2, 32, classes=classes, norm="none").double()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    labels = torch.tensor([0, 2]) if classes else None

    squared_norms = torch.zeros(2, dtype=torch.float64)
    with torch.no_grad():
        for pixel in range(3 * 32 * 32):
            change = torch.zeros_like(images)
            change.view(2, -1)[:, pixel] = 1e-5
            slope = (network(images + change, labels) - network(images - change, labels)) / 2e-5
            squared_norms += slope.square()
    penalty = gradient_penalty(network, images, labels)
    assert penalty.item() == pytest.approx(squared_norms.mean().item(), rel=1e-6)

    penalty.backward()
    for weight in network.parameters():
        index = int(weight.grad.abs().argmax()) if weight.grad is not None else 0
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                weight.view(-1)[index] += sign * 1e-6
            values.append(gradient_penalty(network, images, labels).item())
            with torch.no_grad():
                weight.view(-1)[index] -= sign * 1e-6
        slope = (values[0] - values[1]) / 2e-6
        analytic = weight.grad.view(-1)[index].item() if weight.grad is not None else 0.0
        assert slope == pytest.approx(analytic, rel=1e-4, abs=1e-6)
