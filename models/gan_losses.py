"""Losses of generative adversarial networks, and the gradient penalty of the discriminator.

Losses take the discriminator's logits [B] of real and of generated images, where a high logit means real, and return a
float32 scalar; s is the sigmoid function. A generator's loss may use the logits of real images, without a gradient
through them.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import relu, softplus


def dcgan_d_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Mean of -log s(real) - log(1 - s(fake)) (Goodfellow et al. 2014, arXiv:1406.2661, equation 1)."""
    return softplus(-real.float()).mean() + softplus(fake.float()).mean()


def dcgan_g_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Mean of -log s(fake), the non-saturating loss (Goodfellow et al. 2014, arXiv:1406.2661, section 3)."""
    return softplus(-fake.float()).mean()


def relativistic_d_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Mean of -log s(real - fake) over pairs of a real and a generated image.

    Jolicoeur-Martineau 2019, arXiv:1807.00734, section 4; Huang et al. 2024, arXiv:2501.05441, equation 2. Each
    generated image is compared with a real one, so a mode that is never generated keeps costing the generator.
    """
    return softplus(fake.float() - real.float()).mean()


def relativistic_g_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Mean of -log s(fake - real) over pairs of a real and a generated image; see `relativistic_d_loss`."""
    return softplus(real.float() - fake.float()).mean()


def hinge_d_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Mean of max(0, 1 - real) + max(0, 1 + fake) (Miyato et al. 2018, arXiv:1802.05957, equation 16)."""
    return relu(1 - real.float()).mean() + relu(1 + fake.float()).mean()


def hinge_g_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Mean of -fake (Miyato et al. 2018, arXiv:1802.05957, equation 17)."""
    return -fake.float().mean()


Loss = Callable[[Tensor, Tensor], Tensor]
LOSSES: dict[str, tuple[Loss, Loss]] = {  # name -> loss of the discriminator, loss of the generator
    "dcgan": (dcgan_d_loss, dcgan_g_loss),
    "relativistic": (relativistic_d_loss, relativistic_g_loss),
    "hinge": (hinge_d_loss, hinge_g_loss),
}


def gradient_penalty(discriminator: nn.Module, images: Tensor, labels: Tensor | None = None) -> Tensor:
    """Mean over images of the squared norm of the logit's gradient with respect to the image: a differentiable scalar.

    Images are float [B, 3, S, S], labels int64 [B]. For real images it is R1, for generated ones R2 (Mescheder et al.
    2018, arXiv:1801.04406, equations 9 and 10). The logit of an image must not depend on the other images of the batch,
    so the discriminator can't have BatchNorm.
    """
    images = images.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(discriminator(images, labels).sum(), images, create_graph=True)
    return gradient.square().sum((1, 2, 3)).mean()
