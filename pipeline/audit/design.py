"""Chooses faces at random, each with a known probability, so that a larger plan contains every smaller one.

Every face has a permanent random number u, a function of the seed and its key alone (Ohlsson, Sequential Poisson
sampling, Journal of Official Statistics 14 (1998) 149-162). A stratum's faces are chosen in the order of u / size.
"""

import hashlib
import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

FACES_PER_STRATUM = 8  # that a plan chooses on average, at least; a stratum is split if each half gets as many
EQUAL_PART = 0.25  # of a stratified plan's faces, shared equally among the strata, so that no rare group is missed
UNIFORM_PART = 0.5  # of an active plan's faces, chosen with equal probabilities, so that no face counts for too many
LOWEST_NUMBER = 2.0**-65  # added to every number: 0 would be chosen regardless of the face's size
RARE = "rare labels"
UNSURE_LABEL = "unsure"
EVERYONE = "all"  # the only stratum of a design without strata


@dataclass(frozen=True)
class Strata:
    """The stratum of every face, and its size, to which its probability within the stratum is proportional."""

    names: list[str]
    index: np.ndarray  # [N] of names
    sizes: np.ndarray  # [N], positive

    @property
    def counts(self) -> np.ndarray:
        """Faces of each stratum, [H]."""
        return np.bincount(self.index, minlength=len(self.names))


@dataclass(frozen=True)
class Choice:
    """Which faces are chosen, and with which probability."""

    rounds: np.ndarray  # [N]: the first round that chose the face, -1 for none
    probabilities: np.ndarray  # [N]: that any of the rounds chooses the face


def permanent_numbers(keys: Sequence[str], *, seed: int, source: str) -> np.ndarray:
    """A uniform number in (0, 1) for every key, [N] float64."""
    digests = (hashlib.blake2b(f"{seed}/{source}/{key}".encode(), digest_size=8).digest() for key in keys)
    return np.frombuffer(b"".join(digests), np.uint64) / 2.0**64 + LOWEST_NUMBER


def stratify(labels: pl.DataFrame, attributes: Sequence[str], *, count: int) -> Strata:
    """Strata for a plan that chooses `count` faces: few and large ones, by label and confidence.

    A face belongs to the stratum of the rarest of its labels, so that each group that is rare by any attribute is a
    stratum, without a stratum for every combination. The smallest strata are pooled if there are too many, and each
    large one is split into the less and the more confident half of its faces. `labels` has a column for each
    attribute (text, null where the labeller is unsure) and its confidence, from 0 to 1 or null, as `p_<attribute>`.
    """
    rarest = labels.select(
        pl.format(f"{name.replace('_', ' ')} {{}}", pl.col(name).fill_null(UNSURE_LABEL)).alias(name)
        for name in attributes
    )
    counts = rarest.select(pl.len().over(name).alias(name) for name in attributes).to_numpy()
    label = rarest.to_numpy()[np.arange(len(labels)), counts.argmin(1)].astype(object)
    names, index, sizes = np.unique(label, return_inverse=True, return_counts=True)
    if len(names) > (most := max(count // FACES_PER_STRATUM, 1)):
        pooled = np.argsort(-sizes, kind="stable")[most - 1 :]
        label[np.isin(index, pooled)] = RARE
        names, index, sizes = np.unique(label, return_inverse=True, return_counts=True)
    confidence = labels.select(pl.mean_horizontal(f"p_{name}" for name in attributes)).to_series().to_numpy()
    for stratum in np.flatnonzero(sizes * count >= 2 * FACES_PER_STRATUM * len(labels)):
        faces = np.flatnonzero(index == stratum)
        median = np.median(confidence[faces])
        is_low = confidence[faces] < median  # false for NaN: without probabilities, nothing is split
        if is_low.any():
            label[faces] = [f"{names[stratum]}, {'less' if low else 'more'} confident" for low in is_low]
    names, index = np.unique(label, return_inverse=True)
    return Strata(names.tolist(), index, np.ones(len(labels)))


def by_expected_error(labels: pl.DataFrame, attributes: Sequence[str]) -> Strata:
    """A single stratum, in which faces whose labels are probably wrong have larger sizes.

    The optimal probability is proportional to the root of the expected squared error of a label; it is mixed with a
    uniform one (Zrnic and Candes, Active statistical inference, ICML 2024, sections 3 and 5). The expected error is 1
    minus the labeller's confidence, summed over the attributes.
    """
    error = labels.select(pl.sum_horizontal(1 - pl.col(f"p_{name}") for name in attributes)).to_series().to_numpy()
    root = np.sqrt(np.clip(error, 0, None))
    mean = root.mean()
    relative = root / mean if mean else np.ones(len(root))
    return Strata([EVERYONE], np.zeros(len(root), np.intp), UNIFORM_PART + (1 - UNIFORM_PART) * relative)


def equal_sizes(count: int) -> Strata:
    """A single stratum of `count` faces, each of the same size."""
    return Strata([EVERYONE], np.zeros(count, np.intp), np.ones(count))


def choose(strata: Strata, numbers: np.ndarray, totals: Sequence[int]) -> Choice:
    """Choose faces in rounds; `totals` are the cumulative numbers of faces after each round.

    `numbers` [N] are the permanent random numbers. The probabilities are exact where all sizes in a stratum are equal;
    otherwise, they are the target probabilities of sequential Poisson sampling.
    """
    rounds = np.full(len(numbers), -1)
    probabilities = np.zeros(len(numbers))
    allocations = [allocate(strata.counts, total) for total in totals]
    for stratum in range(len(strata.names)):
        faces = np.flatnonzero(strata.index == stratum)
        faces = faces[np.lexsort((faces, numbers[faces] / strata.sizes[faces]))]
        first = 0
        for number, allocation in enumerate(allocations):
            rounds[faces[first : allocation[stratum]]] = number
            first = allocation[stratum]
        probabilities[faces] = inclusion_probabilities(strata.sizes[faces], first)
    return Choice(rounds, probabilities)


def allocate(counts: np.ndarray, total: int) -> np.ndarray:
    """How many of `total` faces are chosen in each stratum of `counts` [H] faces: in proportion, with a minimum.

    Sainte-Lague's method assigns one face after the other, so that no stratum loses a face when the total grows.
    """
    weights = (1 - EQUAL_PART) * counts / counts.sum() + EQUAL_PART / len(counts)
    chosen = np.zeros(len(counts), np.intp)
    queue = [(-weight, stratum) for stratum, weight in enumerate(weights)]
    heapq.heapify(queue)
    for _ in range(total):
        _, stratum = heapq.heappop(queue)
        chosen[stratum] += 1
        if chosen[stratum] < counts[stratum]:
            heapq.heappush(queue, (-weights[stratum] / (2 * chosen[stratum] + 1), stratum))
    return chosen


def inclusion_probabilities(sizes: np.ndarray, count: int) -> np.ndarray:
    """Probabilities [N] that are proportional to the sizes, at most 1, and add up to `count`."""
    probabilities = np.zeros(len(sizes))
    is_certain = np.zeros(len(sizes), bool)
    while True:
        rest = ~is_certain
        remaining = count - is_certain.sum()
        probabilities[rest] = remaining * sizes[rest] / max(sizes[rest].sum(), np.finfo(float).tiny)
        exceeds = rest & (probabilities > 1)
        if not exceeds.any():
            return probabilities
        is_certain |= exceeds
        probabilities[is_certain] = 1
