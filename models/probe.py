"""A probe: multinomial logistic regression on frozen image embeddings, fitted to annotated images."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

VERSION = 3  # bumped when the fit changes
WEIGHTS = "weights of "  # prefix of the key of an attribute's weights in a probe's state
PENALTIES = (1e-5, 1e-4, 1e-3)  # on the sum of squared weights; the best one on a held-out tenth is used


class Probe:
    """Per attribute, weights [K, D + 1] on standardised embeddings and a constant, float32.

    A class without annotated images is excluded: its probabilities are 0. `attributes` are the fitted ones, and
    `hash` is a hash of all fitted values.
    """

    def __init__(self, state: dict[str, Tensor]):
        """`state` holds the `mean` and `scale` of the embeddings, each [D], and the weights of each attribute."""
        self.state = state
        self.attributes = [name.removeprefix(WEIGHTS) for name in state if name.startswith(WEIGHTS)]
        digest = hashlib.sha256(str(VERSION).encode())
        for name, value in sorted(state.items()):
            digest.update(name.encode() + value.contiguous().numpy().tobytes())
        self.hash = digest.hexdigest()[:8]

    @classmethod
    def fit(cls, embeddings: Tensor, classes: Mapping[str, Tensor], *, sizes: Mapping[str, int]) -> "Probe":
        """Fit embeddings, float [N, D], to every attribute with at least two annotated classes.

        `classes` are the indices of the annotated classes by attribute, int64 [N], -1 where an image is not annotated;
        `sizes` maps each attribute to its number of classes K.
        """
        embeddings = embeddings.float()
        scale = embeddings.std(0, correction=0).clamp(min=1e-6)
        state = {"mean": embeddings.mean(0), "scale": scale}
        inputs = standardise(state, embeddings)
        for attribute, indices in classes.items():
            kept = indices >= 0
            included = torch.bincount(indices[kept], minlength=sizes[attribute]) > 0
            if included.sum() >= 2:
                weights = fit_with_best_penalty(inputs[kept], indices[kept], included=included)
                state[WEIGHTS + attribute] = weights
        return cls(state)

    def probabilities(self, embeddings: Tensor) -> dict[str, Tensor]:
        """Class probabilities of every fitted attribute, float32 [N, K], from embeddings [N, D]."""
        inputs = standardise(self.state, embeddings.float())
        return {name: (inputs @ self.state[WEIGHTS + name].T).softmax(1) for name in self.attributes}


def standardise(state: dict[str, Tensor], embeddings: Tensor) -> Tensor:
    """Standardised embeddings and a constant 1: float32 [N, D + 1]."""
    return F.pad((embeddings - state["mean"]) / state["scale"], (0, 1), value=1.0)


def fit_with_best_penalty(inputs: Tensor, classes: Tensor, *, included: Tensor) -> Tensor:
    """Choose the penalty that is best on every tenth image, and fit weights [K, D + 1] with it to all images."""
    held_out = torch.arange(len(classes)) % 10 == 0
    losses: dict[float, float] = {}
    for penalty in PENALTIES:
        weights = fit_regression(inputs[~held_out], classes[~held_out], included=included, penalty=penalty)
        losses[penalty] = F.cross_entropy(inputs[held_out] @ weights.T, classes[held_out]).item()
    best = min(losses, key=lambda penalty: losses[penalty])
    return fit_regression(inputs, classes, included=included, penalty=best)


def fit_regression(inputs: Tensor, classes: Tensor, *, included: Tensor, penalty: float) -> Tensor:
    """Weights [K, D + 1] that minimise the cross-entropy plus `penalty` times the sum of squared weights, by L-BFGS.

    The constants are not penalised. A class that is not `included` is never predicted.
    """
    weights = torch.zeros(len(included), inputs.shape[1], requires_grad=True)
    exclusion = torch.zeros(len(included)).masked_fill(~included, -1e4)
    optimizer = torch.optim.LBFGS([weights], max_iter=100, tolerance_change=1e-7, line_search_fn="strong_wolfe")

    def loss() -> Any:
        optimizer.zero_grad()
        value = F.cross_entropy(inputs @ weights.T + exclusion, classes) + penalty * weights[:, :-1].square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    fitted = weights.detach()
    fitted[:, -1] += exclusion
    return fitted
