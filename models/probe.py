"""A probe: multinomial logistic regression on frozen image embeddings, fitted to annotated images."""

import hashlib

import torch
import torch.nn.functional as F
from torch import Tensor

from models.clip import CLASSES

VERSION = 2
MIN_CLASS_IMAGES = 20  # annotated images of a class, below which it is left out of the fit
PENALTIES = (1e-5, 1e-4, 1e-3)  # on the mean squared weight; the one that does best on a tenth left aside is taken


class Probe:
    """Per attribute float32 weights [K, D + 1] on standardised embeddings and a constant; K as in CLASSES.

    An attribute, or a class, that had too few annotated images is not known: its probabilities are NaN, or 0.
    """

    def __init__(self, state: dict[str, Tensor]):
        """`state` holds `mean` and `scale` [D] of the embeddings, and weights by attribute."""
        self.state = state
        self.attributes = [name for name in CLASSES if name in state]
        digest = hashlib.sha256(str(VERSION).encode())
        for name, value in sorted(state.items()):
            digest.update(name.encode() + value.contiguous().numpy().tobytes())
        self.hash = digest.hexdigest()[:8]

    @classmethod
    def fit(cls, embeddings: Tensor, classes: dict[str, Tensor]) -> "Probe":
        """Fits every attribute for which two classes have ENOUGH of the embeddings, float [N, D].

        `classes` are int64 [N] numbers within CLASSES, -1 where an image is not annotated.
        """
        embeddings = embeddings.float()
        scale = embeddings.std(0, correction=0).clamp(min=1e-6)
        state = {"mean": embeddings.mean(0), "scale": scale}
        inputs = standardise(state, embeddings)
        for attribute, numbers in classes.items():
            counts = torch.bincount(numbers[numbers >= 0], minlength=len(CLASSES[attribute]))
            known = counts >= MIN_CLASS_IMAGES
            kept = (numbers >= 0) & known[numbers.clamp(min=0)]
            if known.sum() >= 2:
                state[attribute] = fit_with_best_penalty(inputs[kept], numbers[kept], known)
        return cls(state)

    def probabilities(self, embeddings: Tensor) -> dict[str, Tensor]:
        """float32 [N, K] of every attribute, from embeddings [N, D]."""
        inputs = standardise(self.state, embeddings.float())
        known = {name: (inputs @ self.state[name].T).softmax(1) for name in self.attributes}
        return {
            name: known.get(name, inputs.new_full((len(inputs), len(CLASSES[name])), torch.nan)) for name in CLASSES
        }


def standardise(state: dict[str, Tensor], embeddings: Tensor) -> Tensor:
    """Standardised, with a constant: float32 [N, D + 1]."""
    return F.pad((embeddings - state["mean"]) / state["scale"], (0, 1), value=1.0)


def fit_with_best_penalty(inputs: Tensor, numbers: Tensor, known: Tensor) -> Tensor:
    """Weights [K, D + 1] with the penalty that does best on every tenth image, fitted again on all of them."""
    aside = torch.arange(len(numbers)) % 10 == 0
    losses = {}
    for penalty in PENALTIES:
        weights = fit_regression(inputs[~aside], numbers[~aside], known, penalty)
        losses[penalty] = F.cross_entropy(inputs[aside] @ weights.T, numbers[aside]).item()
    return fit_regression(inputs, numbers, known, min(losses, key=losses.get))


def fit_regression(inputs: Tensor, numbers: Tensor, known: Tensor, penalty: float) -> Tensor:
    """The weights [K, D + 1] of least cross-entropy plus `penalty` times their sum of squares (no penalty on the
    constants), by L-BFGS; a class that is not `known` never comes out."""
    weights = torch.zeros(len(known), inputs.shape[1], requires_grad=True)
    barred = torch.zeros(len(known)).masked_fill(~known, -1e4)
    optimiser = torch.optim.LBFGS([weights], max_iter=100, tolerance_change=1e-7, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = F.cross_entropy(inputs @ weights.T + barred, numbers) + penalty * weights[:, :-1].square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    found = weights.detach()
    found[:, -1] += barred
    return found
