"""Diversity of images: the Vendi score, the effective number of different images among n.

Friedman and Dieng, "The Vendi Score: A Diversity Evaluation Metric for Machine Learning", TMLR 2023 (arXiv:2210.02410).
It grows with n, so that only scores of equally many images can be compared.
"""

import math
from typing import NamedTuple

import numpy as np

from reports.estimation.kernel_distance import Array

MAX_IMAGES = 100  # of a score: the time of the eigendecomposition grows with the cube of n
REAL_SETS = 8  # random subsets of real images that the floor is estimated from
T_95 = 1.895  # one-sided 95 % of Student's t with REAL_SETS - 1 degrees of freedom


class Diversity(NamedTuple):
    """Vendi scores of equally many images."""

    generated: float
    real: float  # the mean of random sets of real images
    floor: float  # that 5 % of such sets score below


def vendi_score(kernel: Array) -> float:
    """The exponential of the entropy of the eigenvalues of K / n: 1 for n equal images, n for n unrelated ones.

    `kernel` is K, float [n, n], of similarities: symmetric, positive semidefinite, with ones on the diagonal. Raises
    ValueError for any other diagonal, and for a kernel of no images.
    """
    n = len(kernel)
    if not n or not np.allclose(np.diag(kernel), 1, atol=1e-3):
        raise ValueError("the Vendi score needs a kernel with ones on its diagonal")
    values = np.linalg.eigvalsh(np.asarray(kernel, np.float64) / n)
    values = values[values > 0]  # rounding makes some of those that are 0 negative
    values /= values.sum()
    return float(np.exp(-(values * np.log(values)).sum()))


def compare_diversity(generated: Array, real: Array, *, generator: np.random.Generator) -> Diversity:
    """The diversity of generated images and of equally many real ones, from their kernels, [n, n] and [m, m].

    At most MAX_IMAGES, at most half of the real ones, and the first of the generated ones are scored. Random subsets
    with a fraction f of the real images vary by 1 - f times the variance of independent sets, and their mean by f times
    that variance: the floor allows for both. Raises ValueError as `vendi_score` does, and for fewer than two real
    images.
    """
    n = min(MAX_IMAGES, len(generated), len(real) // 2)
    sets = (generator.permutation(len(real))[:n] for _ in range(REAL_SETS))
    scores = np.array([vendi_score(real[np.ix_(chosen, chosen)]) for chosen in sets])
    part = n / len(real)
    spread = scores.std(ddof=1) * math.sqrt((1 + part) / (1 - part))
    return Diversity(
        vendi_score(generated[:n, :n]), float(scores.mean()), max(float(scores.mean() - T_95 * spread), 1.0)
    )
