"""Similarity of each group's generated faces to its real ones, and their diversity, from embeddings.

A generator can fail a group in two ways: `kernel_distance` measures how far its images are from the group's real ones,
`coverage` how many of the real ones have a generated image near them; `vendi` is the effective number of different
images, whether or not real ones are like them. All depend on the number of images, so real and
generated images are compared at equal n, and each value has a floor: what other real images of the group score.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from reports.estimation.kernel_distance import (
    Array,
    gaussian_kernel,
    median_bandwidth,
    mmd2_interval,
    squared_distances,
    unbiased_mmd2,
)
from reports.estimation.vendi import compare_diversity
from shards.errors import FairfaceError

K = 5  # neighbours, as in Naeem et al. 2020: equal distributions then cover 97 % of each other
MIN_IMAGES = 20  # of a group on either side; below it there are no values
SPLITS = 400  # of the real images into two halves, for the floors
CHECKED_ROWS = 16384  # at a time
QUALITY_COLUMNS = (
    "kernel_distance",
    "kernel_low",
    "kernel_high",
    "kernel_floor",
    "coverage",
    "coverage_floor",
    "vendi",
    "vendi_real",
    "vendi_floor",
)


@dataclass(frozen=True)
class EmbeddedImages:
    """The images of one side with their groups."""

    embeddings: Array  # float16 or float32 [N, D], rows of length 1
    groups: Sequence[str | None]  # [N]; images of group None are left out

    def check(self, side: str) -> None:
        """Raise ValueError if the shapes do not fit, FairfaceError if a row is not of length 1."""
        shape = list(self.embeddings.shape)
        if self.embeddings.ndim != 2 or len(self.embeddings) != len(self.groups):
            raise ValueError(f"{side}: embeddings of shape {shape} for the groups of {len(self.groups)} images")
        for start in range(0, len(self.embeddings), CHECKED_ROWS):
            lengths = np.linalg.norm(self.embeddings[start : start + CHECKED_ROWS].astype(np.float32), axis=1)
            is_wrong = ~(np.abs(lengths - 1) < 0.01)  # float16 is off by up to 0.0005; NaN is wrong as well
            if is_wrong.any():
                at = int(is_wrong.argmax())
                raise FairfaceError(f"{side}: embedding {start + at} has length {lengths[at]:.3g} and not 1")

    def indices(self, group: str) -> list[int]:
        """The images of a group; compared in Python because NumPy drops a null byte at the end of a string."""
        return [i for i, name in enumerate(self.groups) if name == group]


def quality_rows(
    real: EmbeddedImages, generated: EmbeddedImages, *, groups: Iterable[str | None], seed: int, limit: int = 1000
) -> list[dict[str, Any]]:
    """`group`, `n` and `QUALITY_COLUMNS` of each of the `groups` but None.

    n real and n generated images are compared, sampled without replacement: as many as both sides have, at most
    `limit`. Below `MIN_IMAGES` the values are None. The floors compare real images with each other; for a group with
    fewer than 2n of them they are extrapolated from smaller halves: see `split_half_floors`. The rows are a function
    of (seed, group) and the images.

    Raises FairfaceError if a row is not of length 1 or the sides differ in D, ValueError if shapes do not fit.
    """
    real.check("real")
    generated.check("generated")
    if (ours := real.embeddings.shape[1]) != (theirs := generated.embeddings.shape[1]):
        raise FairfaceError(f"embeddings of {ours} and {theirs} dimensions come from different models")
    bandwidth, rows = 0.0, []
    for group in groups:
        if group is None:
            continue
        generator = np.random.default_rng([seed, *map(ord, group)])
        real_indices, generated_indices = (
            generator.permutation(np.array(side.indices(group), int)) for side in (real, generated)
        )
        n = min(len(real_indices), len(generated_indices), limit)
        row: dict[str, Any] = {"group": group, "n": n, **dict.fromkeys(QUALITY_COLUMNS)}
        if n >= MIN_IMAGES:
            bandwidth = bandwidth or median_bandwidth(real.embeddings, seed=seed)
            row |= group_quality(
                real.embeddings[real_indices[: 2 * n]],
                generated.embeddings[generated_indices[:n]],
                bandwidth=bandwidth,
                generator=generator,
            )
        rows.append(row)
    return rows


def group_quality(
    real: Array, generated: Array, *, bandwidth: float, generator: np.random.Generator
) -> dict[str, float]:
    """`QUALITY_COLUMNS` of n generated rows and the first n real rows; the floors from all real rows, at most 2n."""
    n, even = len(generated), len(real) // 2 * 2
    within, across = squared_distances(real, real), squared_distances(real[:n], generated)
    kernel = gaussian_kernel(within, bandwidth)
    xx, yy = kernel[:n, :n], gaussian_kernel(squared_distances(generated, generated), bandwidth)
    xy = gaussian_kernel(across, bandwidth)
    low, high = mmd2_interval(xx, yy, xy=xy)
    floor, coverage_floor = split_half_floors(within[:even, :even], kernel[:even, :even], n=n, generator=generator)
    share = covered_share(within[:n, :n], across, k=K)
    diversity = compare_diversity(yy, kernel, generator=generator)
    values = (unbiased_mmd2(xx, yy, xy=xy), low, high, floor, share, coverage_floor, *diversity)
    return dict(zip(QUALITY_COLUMNS, values, strict=True))


def coverage(real: Array, generated: Array, *, k: int = K) -> float:
    """The share of real rows [n, D] with a generated row [m, D] at most as far as their k-th nearest real row.

    Naeem et al. 2020 (arXiv:2002.09797). In many dimensions a point in the middle of all real images is near most of
    them, so an average face covers many: read it together with the kernel distance.

    Raises ValueError for fewer than k + 1 real rows.
    """
    if not 1 <= k < len(real):
        raise ValueError(f"coverage by {k} neighbours needs more than {k} real images, got {len(real)}")
    return covered_share(squared_distances(real, real), squared_distances(real, generated), k=k)


def covered_share(within: Array, across: Array, *, k: int) -> float:
    """`coverage` from squared distances: real to real [n, n] and real to generated [n, m]."""
    radii = np.partition(within, k, axis=1)[:, k]  # the nearest, at 0, is the image itself
    return float((across.min(1, initial=np.inf) <= radii).mean())


def expected_coverage(n: int) -> float:
    """The mean `coverage` of n images by n others of the same distribution, for any distribution: Naeem et al. 2020."""
    # an image is not covered if, of the 2n - 1 others, the K nearest are all of its own side
    return 1 - math.prod((n - i) / (2 * n - i) for i in range(1, K + 1))


def split_half_floors(
    distances: Array, kernel: Array, *, n: int, generator: np.random.Generator
) -> tuple[float, float]:
    """95th percentile of the squared MMD and 5th of the coverage of n real images by n others.

    From random halves, of m each, of 2m real images with these squared distances and kernel, [2m, 2m]. Where m < n,
    the known behaviour of equal distributions leads from m to n: their MMD^2 shrinks as 1/n (Gretton et al. 2012,
    theorem 12), and their coverage varies as 1/sqrt(n) around a known mean.
    """
    m = len(distances) // 2
    is_first_half = generator.permuted(np.tile(np.arange(2 * m) < m, (SPLITS, 1)), axis=1)
    # with pairs that sum to 0, the MMD^2 is a multiple of the pairs within a half less the pairs across
    pairs = (kernel - (kernel.sum() - 2 * m) / (2 * m * (2 * m - 1))).astype(np.float32)
    np.fill_diagonal(pairs, 0)
    signs = np.where(is_first_half, np.float32(1), np.float32(-1))
    mmd2 = ((signs @ pairs) * signs).sum(1, dtype=float) * (2 * m - 1) / (2 * m**2 * (m - 1))
    # an image is not covered if its K nearest are all in its half; the nearest of all is itself
    nearest = np.argpartition(distances, K, axis=1)[:, : K + 1]
    is_missed = is_first_half.T & is_first_half.T[nearest].all(1)
    shares = 1 - is_missed.sum(0) / m
    share = expected_coverage(n) + (np.quantile(shares, 0.05) - expected_coverage(m)) * math.sqrt(m / n)
    share = math.floor(n * share + 1e-9) / n  # coverage is a multiple of 1/n
    return float(np.quantile(mmd2, 0.95) * m / n), max(share, 0.0)
