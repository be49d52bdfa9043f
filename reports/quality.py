"""How near the generated faces of each group come to its real ones, from CLIP embeddings: distance and coverage.

A generator can fail a group in two ways: `kernel_distance` says how far its images are from the group's real ones,
`coverage` how many of the real ones it comes near to. Both depend on the number of images, so real and generated
are compared at equal n, and beside each stands its floor: what other real images of the group would score.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from shards.errors import FairfaceError

Z = 1.959964  # two-sided 95 %
K = 5  # neighbours: Naeem et al. 2020, with which equal distributions cover 97 % of each other
FEWEST = 20  # images on a side, below which nothing is said of a group
SPLITS = 400  # of the real images into two halves, for the floors
SCALED = 1000  # real images that fix the bandwidth
BLOCK = 16384  # rows checked at a time
FIGURES = ["kernel_distance", "kernel_low", "kernel_high", "kernel_floor", "coverage", "coverage_floor"]
Array = np.ndarray


def squared(x: Array, y: Array) -> Array:
    """Squared Euclidean distances of rows [n, D] and [m, D] of about unit length: float64 [n, m]."""
    # 1 + 1 - 2 xy in float32 blurs what is nearer than 0.0005; x @ x.T takes half the work of two equal arrays
    x, y = (wide := x.astype(np.float64)), wide if y is x else y.astype(np.float64)
    distances = x @ y.T
    distances *= -2
    distances += (x * x).sum(1)[:, None]
    distances += (y * y).sum(1)
    distances[distances < 1e-12] = 0  # two copies of an image: what rounding leaves of 0, of either sign
    return distances


def gaussian(distances: Array, bandwidth: float) -> Array:
    """The kernel exp(-d^2 / (2 bandwidth^2)) of squared distances."""
    return np.exp(distances * (-0.5 / bandwidth**2))


def median_bandwidth(real: Array, seed: int) -> float:
    """The median distance between `SCALED` of the real images [N, D]; FairfaceError where all are the same.

    The median heuristic (Gretton et al. 2012, sec. 8), but of real images alone and of all groups together: a
    bandwidth that took in the generated ones would grow with their distance and hide it, and one for each group
    would measure each by a ruler of its own. The fixed 10 of CMMD (Jayasumana et al. 2024, arXiv:2401.09603) won't
    do: on rows of length 1 that kernel is all but linear and compares little more than means.
    """
    chosen = real[np.sort(np.random.default_rng(seed).permutation(len(real))[:SCALED])]
    distances = squared(chosen, chosen)[np.triu_indices(len(chosen), 1)]
    distances = distances[distances > 0]  # copies of an image say nothing of the scale
    if not len(distances):
        raise FairfaceError("the embeddings of the real images are all the same: there is no scale to compare them by")
    return math.sqrt(np.median(distances))


def spread(k: Array) -> tuple[Array, float]:
    """Of a kernel [n, n] with k(x, x) = 1: the mean of each row, up to a constant, and E c(x, x')^2.

    x' is another one than x, and c is k less its row's and its column's mean. The divisors leave no bias:
    Szekely and Rizzo, Ann. Stat. 42 (2014) 2382-2412.
    """
    n, sums = len(k), k.sum(1) - 1
    means, total = sums / (n - 2), sums.sum()
    centred = k - means[:, None] - means + total / ((n - 1) * (n - 2))
    np.fill_diagonal(centred, 0)
    return means, np.vdot(centred, centred) / (n * (n - 3))


def unbiased(xx: Array, yy: Array, xy: Array) -> float:
    """Squared MMD from kernels [n, n], [m, m], [n, m] with k(x, x) = 1: Gretton et al. 2012 (JMLR 13), eq. 3."""
    mean_x, mean_y = ((k.sum() - len(k)) / (len(k) * (len(k) - 1)) for k in (xx, yy))
    return float(mean_x + mean_y - 2 * xy.mean())


def variances(xx: Array, yy: Array, xy: Array) -> tuple[float, float]:
    """The two parts of the variance of `unbiased`, a U-statistic, each estimated without bias; n and m above 3.

    With p and q the kernel's means over x and y, c as in `spread`, and C the covariance of the estimated p - q:

        4/n Var[p(x) - q(x)] + 4/m Var[p(y) - q(y)]                               = first <= 4 |C| MMD^2
        2/(n(n-1)) E c(x,x')^2 + 2/(m(m-1)) E c(y,y')^2 + 4/(nm) E c(x,y)^2       = second = 2 tr C^2

    `first` rules where the distributions differ and is 0 where they are equal, where its estimate may be
    negative. Cf. Sutherland and Deka, arXiv:1906.02104.
    """
    (n, m), across_x, across_y = xy.shape, xy.mean(1), xy.mean(0)
    (means_x, second_x), (means_y, second_y) = spread(xx), spread(yy)
    centred = xy - across_x[:, None] - across_y + xy.mean()
    second_xy = np.vdot(centred, centred) / ((n - 1) * (m - 1))
    # means over a sample vary by themselves, which is taken off
    first = 4 / n * (np.var(means_x - across_x, ddof=1) - second_x / (n - 2) - second_xy / m)
    first += 4 / m * (np.var(means_y - across_y, ddof=1) - second_y / (m - 2) - second_xy / n)
    second = 2 * second_x / (n * (n - 1)) + 2 * second_y / (m * (m - 1)) + 4 * second_xy / (n * m)
    return float(first), float(second)


def interval(xx: Array, yy: Array, xy: Array) -> tuple[float, float]:
    """95 % score interval of the squared MMD, from the kernels that `unbiased` takes; n and m above 3.

    At equality a bootstrap fails (Arcones and Gine, Ann. Stat. 20 (1992) 655-674), and near it estimate +- 1.96 sd
    held the truth in as few as 82 % of trials, as a small estimate comes with a small sd. So each MMD^2 is judged
    by the sd that it would have itself, and held if (estimate - MMD^2)^2 <= 1.96^2 (second + slope MMD^2), with
    `variances`. The slope is first / MMD^2, drawn to the most that it can be, 4 sqrt(tr C^2), as the estimate is
    lost in noise. That held the truth in 92 to 100 % of trials (median 97), over 330 choices of n, spectrum and
    shift; near equality the high end is generous. The low end may be negative, as the estimate may.
    """
    value, (first, second) = unbiased(xx, yy, xy), variances(xx, yy, xy)
    noise = math.sqrt(second)
    slope = (max(first, 0) + noise * 8**0.5 * noise) / max(max(value, 0) + noise, 1e-300)
    middle = value + Z**2 * slope / 2
    half = math.sqrt(max(middle**2 - value**2 + Z**2 * second, 0))
    low = middle - half if value > Z * noise else value - Z * noise  # no slope below 0
    return low, max(middle + half, 0.0)


def kernel_distance(x: Array, y: Array, bandwidth: float) -> float:
    """Unbiased squared MMD of rows [n, D] and [m, D] for a Gaussian kernel, at most 2; n and m above 1.

    0 on average for equal distributions, so it may be negative. Gretton et al. 2012 (JMLR 13), eq. 3.
    """
    return unbiased(*(gaussian(squared(a, b), bandwidth) for a, b in ((x, x), (y, y), (x, y))))


def covered(within: Array, across: Array, k: int) -> float:
    """`coverage` from squared distances: real to real [n, n] and real to generated [n, m]."""
    radii = np.partition(within, k, axis=1)[:, k]  # the nearest, at 0, is the image itself
    return float((across.min(1, initial=np.inf) <= radii).mean())


def coverage(real: Array, generated: Array, k: int = K) -> float:
    """The share of real rows [n, D] that have a generated one [m, D] as near as their k-th nearest real one.

    Naeem et al. 2020 (arXiv:2002.09797). In many dimensions what lies amid all real images is near to most
    of them, so an average face covers much: read it beside the distance. FairfaceError for fewer than k + 1 real rows.
    """
    if not 1 <= k < len(real):
        raise ValueError(f"coverage by {k} neighbours takes more than {k} real images, here are {len(real)}")
    return covered(squared(real, real), squared(real, generated), k)


def expected_coverage(n: int) -> float:
    """The mean `coverage` of n images by n others of the same distribution, whichever it is: Naeem et al. 2020."""
    # an image is missed if, of the 2n - 1 others, the K nearest are all of its own side
    return 1 - math.prod((n - i) / (2 * n - i) for i in range(1, K + 1))


def floors(distances: Array, kernel: Array, n: int, generator: np.random.Generator) -> tuple[float, float]:
    """95th percentile of the squared MMD and 5th of the coverage of n real images by n others.

    From random halves, of m each, of the 2m real images between which squared distances and kernel [2m, 2m] are
    given. Where m < n, what is known of equal distributions leads from m to n: their MMD^2 shrinks as 1/n (Gretton
    et al. 2012, theorem 12), and their coverage spreads as 1/sqrt(n) around a known mean.
    """
    m = len(distances) // 2
    halves = generator.permuted(np.tile(np.arange(2 * m) < m, (SPLITS, 1)), axis=1)
    # with pairs that sum to 0 the MMD^2 is a multiple of the pairs of one half less those across
    pairs = (kernel - (kernel.sum() - 2 * m) / (2 * m * (2 * m - 1))).astype(np.float32)
    np.fill_diagonal(pairs, 0)
    signs = np.where(halves, np.float32(1), np.float32(-1))
    moved = ((signs @ pairs) * signs).sum(1, dtype=float) * (2 * m - 1) / (2 * m**2 * (m - 1))
    # an image is missed if its K nearest are all in its half; the nearest of all is itself
    nearest = np.argpartition(distances, K, axis=1)[:, : K + 1]
    missed = halves.T & halves.T[nearest].all(1)
    shares = 1 - missed.sum(0) / m
    share = expected_coverage(n) + (np.quantile(shares, 0.05) - expected_coverage(m)) * math.sqrt(m / n)
    share = math.floor(n * share + 1e-9) / n  # coverage comes in steps
    return float(np.quantile(moved, 0.95) * m / n), max(share, 0.0)


def figures(real: Array, generated: Array, bandwidth: float, generator: np.random.Generator) -> dict[str, float]:
    """`FIGURES` of the n generated rows and the first n of the real ones; the floors from all, 2n at most."""
    n, even = len(generated), len(real) // 2 * 2
    within, across = squared(real, real), squared(real[:n], generated)
    kernel = gaussian(within, bandwidth)
    kernels = kernel[:n, :n], gaussian(squared(generated, generated), bandwidth), gaussian(across, bandwidth)
    low, high = interval(*kernels)
    floor, coverage_floor = floors(within[:even, :even], kernel[:even, :even], n, generator)
    share = covered(within[:n, :n], across, K)
    return dict(zip(FIGURES, (unbiased(*kernels), low, high, floor, share, coverage_floor), strict=True))


def check(side: str, embeddings: Array, groups: Sequence[str | None]) -> None:
    """ValueError unless the embeddings are one row of length 1 for each group."""
    if embeddings.ndim != 2 or len(embeddings) != len(groups):
        raise ValueError(f"{side}: embeddings of shape {list(embeddings.shape)} for the groups of {len(groups)} images")
    for start in range(0, len(embeddings), BLOCK):
        lengths = np.linalg.norm(embeddings[start : start + BLOCK].astype(np.float32), axis=1)
        wrong = ~(np.abs(lengths - 1) < 0.01)  # float16 is 0.0005 off; NaN is wrong, too
        if wrong.any():
            at = int(wrong.argmax())
            raise FairfaceError(f"{side}: embedding {start + at} has length {lengths[at]:.3g} and not 1")


def rows(
    real: Array,
    generated: Array,
    real_groups: Sequence[str | None],
    generated_groups: Sequence[str | None],
    groups: Iterable[str | None],
    seed: int,
    limit: int = 1000,
) -> list[dict[str, Any]]:
    """`group`, `n` and `FIGURES` of each of `groups`, from embeddings [N, D] and [M, D] and the group of each.

    n real and n generated images are compared, drawn without replacement: as many as both sides have, `limit` at
    most. Below `FEWEST` the figures are None. Null groups are left out. The floors are of real images among each
    other; a group with fewer than 2n of them has its floors carried over from smaller halves: see `floors`. All is
    a function of (seed, group) and the images; float16 or float32 in, squared MMD and shares out. FairfaceError where
    a row is not of length 1 or the shapes don't fit.
    """
    check("real", real, real_groups)
    check("generated", generated, generated_groups)
    if real.shape[1] != generated.shape[1]:
        raise FairfaceError(f"embeddings of {real.shape[1]} and {generated.shape[1]} dimensions: two models made them")
    bandwidth, found = 0.0, []
    for group in groups:
        if group is None:
            continue
        generator = np.random.default_rng([seed, *map(ord, group)])
        # looked up in Python: NumPy drops a null byte at a string's end
        members = ([i for i, name in enumerate(side) if name == group] for side in (real_groups, generated_groups))
        chosen, drawn = (generator.permutation(np.array(places, int)) for places in members)
        n = min(len(chosen), len(drawn), limit)
        row: dict[str, Any] = {"group": group, "n": n, **dict.fromkeys(FIGURES)}
        if n >= FEWEST:
            bandwidth = bandwidth or median_bandwidth(real, seed)
            row |= figures(real[chosen[: 2 * n]], generated[drawn[:n]], bandwidth, generator)
        found.append(row)
    return found
