"""Effort (Yan et al., Orthogonal Subspace Decomposition for Generalizable AI-Generated Image Detection, ICML 2025)."""

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from models.detectors import losses
from models.detectors.base import Detector, Labels
from shards.errors import FairfaceError

RANK = 1  # trained singular components of each matrix: those with the smallest singular values
PROJECTIONS = ("qkv", "q_proj", "k_proj", "v_proj", "proj", "out_proj")  # linear layers of self-attention


class ResidualComponents(nn.Module):
    """Replaces the smallest singular components of frozen matrices W by trained ones: W + U S V - U0 S0 V0.

    The weight [blocks * rows, columns] is a stack of matrices, such as those of queries, keys and values. U0, S0 and V0
    are stored with the trained components, because another machine's SVD rounds differently.
    """

    u: nn.Parameter  # [blocks, rows, RANK]
    s: nn.Parameter  # [blocks, RANK]
    v: nn.Parameter  # [blocks, RANK, columns]
    u0: Tensor
    s0: Tensor
    v0: Tensor

    def __init__(self, weight: Tensor, *, decompose: bool):
        """Without `decompose` all components are 0, because a checkpoint will be loaded."""
        super().__init__()
        blocks = max(weight.shape[0] // weight.shape[1], 1)
        matrices = weight.detach().unflatten(0, (blocks, -1))
        if decompose:
            u, s, v = torch.linalg.svd(matrices, full_matrices=False)
        else:
            rows, columns = matrices.shape[1:]
            u, s, v = (matrices.new_zeros(blocks, *shape) for shape in ((rows, RANK), (RANK,), (RANK, columns)))
        for name, value in (("u", u[..., -RANK:]), ("s", s[..., -RANK:]), ("v", v[..., -RANK:, :])):
            self.register_buffer(f"{name}0", value.contiguous())
            setattr(self, name, nn.Parameter(value.clone(memory_format=torch.contiguous_format)))

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):
            change = (self.u * self.s[:, None]) @ self.v - (self.u0 * self.s0[:, None]) @ self.v0
            return weight + change.flatten(0, 1)

    def penalty(self, weight: Tensor) -> Tensor:
        """The paper's two penalties for each matrix, float32 [blocks].

        |U'U - I|^2 + |V'V - I|^2, where U and V have the frozen and the trained singular vectors, plus the absolute
        difference between the squared Frobenius norms of the changed and the original matrix.
        """
        with torch.autocast(weight.device.type, enabled=False):
            orthogonality = non_orthogonality(self.u, self.u0) + non_orthogonality(self.v.mT, self.v0.mT)
            # the change is a b; |W + a b|^2 - |W|^2 = 2 <a, W b'> + <a'a, b b'>, of which no term is as large as W
            a, b = (
                torch.cat([self.u * self.s[:, None], -self.u0 * self.s0[:, None]], 2),
                torch.cat([self.v, self.v0], 1),
            )
            matrices = weight.unflatten(0, (len(a), -1))
            energy = 2 * (a * (matrices @ b.mT)).sum((1, 2)) + ((a.mT @ a) * (b @ b.mT)).sum((1, 2))
            return orthogonality + energy.abs()


def non_orthogonality(vectors: Tensor, original: Tensor) -> Tensor:
    """|X'X - I|^2, float32 [blocks], where X has the frozen vectors and the trained `vectors` [blocks, n, r].

    The frozen vectors are not needed: they are orthonormal and form a basis with the `original` vectors.
    """
    gram = vectors.mT @ vectors - torch.eye(vectors.shape[-1], device=vectors.device)
    outside = vectors.square().sum((1, 2)) - (original.mT @ vectors).square().sum((1, 2))
    return gram.square().sum((1, 2)) + 2 * outside


class ResidualSubspaceDetector(Detector):
    """An encoder with one trained singular component in each matrix of its self-attention, and a linear layer.

    The loss is the cross entropy plus the mean penalty of all matrices. Raises FairfaceError for an encoder without
    self-attention.
    """

    def __init__(self, encoder: nn.Module, width: int, *, decompose: bool = True):
        super().__init__()
        self.encoder, self.head = encoder.requires_grad_(False), nn.Linear(width, 1)
        weights = attention_weights(encoder)
        if not weights:
            raise FairfaceError("Effort trains the self-attention of its backbone, but this one has none: choose a ViT")
        for module, name in weights:
            components = ResidualComponents(getattr(module, name), decompose=decompose)
            parametrize.register_parametrization(module, name, components)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.encoder(images))
        return logits.squeeze(1)

    def training_step(self, images: Tensor, labels: Labels) -> tuple[Tensor, Tensor]:
        logits = self(images)
        return losses.bce(logits, labels.target) + self.penalty(), logits

    def penalty(self) -> Tensor:
        """The mean penalty of all matrices."""
        lists = (one for one in self.encoder.modules() if isinstance(one, parametrize.ParametrizationList))
        pairs = ((one[0], one.original) for one in lists)
        return torch.cat([own.penalty(weight) for own, weight in pairs if isinstance(own, ResidualComponents)]).mean()


def attention_weights(encoder: nn.Module) -> list[tuple[nn.Module, str]]:
    """The weights of all linear layers of self-attention: modules and the names of their parameters."""
    weights: list[tuple[nn.Module, str]] = []
    for path, module in encoder.named_modules():
        if path.endswith(".attn"):  # in both libraries; attention pooling has other names
            if isinstance(module, nn.MultiheadAttention):
                weights.append((module, "in_proj_weight"))
            layers = [getattr(module, name, None) for name in PROJECTIONS]
            weights += [(layer, "weight") for layer in layers if isinstance(layer, nn.Linear)]
    return weights
