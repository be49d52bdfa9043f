"""Agreement among raters: Krippendorff's alpha, and how often two raters are at most one class apart."""

from dataclasses import dataclass

import numpy as np

REPLICATES = 1000  # of the bootstrap


@dataclass(frozen=True)
class Agreement:
    """Agreement of the raters of some faces; each value with the ends of its 95 % interval. NaN where undefined."""

    faces: int  # with the answers of at least two raters
    nominal: tuple[float, float, float]  # alpha of classes without an order
    ordinal: tuple[float, float, float]  # alpha of ordered classes
    same: tuple[float, float, float]  # share of pairs of answers that are equal
    close: tuple[float, float, float]  # share of pairs of answers that are equal or neighbouring classes


def measure_agreement(ratings: np.ndarray, *, classes: int, seed: int, replicates: int = REPLICATES) -> Agreement:
    """Measure agreement from ratings, int [n, R]: a class, or another number for none (such as "can't tell").

    The intervals are percentiles of a bootstrap of the faces. Alpha is undefined where all answers are the same class,
    or where no face has two answers.
    """
    counts = (ratings[:, :, None] == np.arange(classes)).sum(1).astype(float)  # [n, K]
    counts = counts[counts.sum(1) >= 2]
    pairs = coincidences(counts)
    faces = len(counts)
    equal = np.full(faces, 1 / max(faces, 1))
    weights = (
        np.random.default_rng(seed).multinomial(faces, equal, size=replicates) if faces else np.zeros((replicates, 0))
    )
    flat = pairs.reshape(faces, classes**2)
    resampled = (weights @ flat).reshape(replicates, classes, classes)
    total, is_close = pairs.sum(0), np.abs(np.subtract.outer(np.arange(classes), np.arange(classes))) <= 1

    def with_interval(values: np.ndarray) -> tuple[float, float, float]:
        """The first value, and the percentiles of the others."""
        rest = values[1:][np.isfinite(values[1:])]
        low, high = np.quantile(rest, [0.025, 0.975]) if rest.size and np.isfinite(values[0]) else (np.nan, np.nan)
        return float(values[0]), float(low), float(high)

    every = np.concatenate([total[None], resampled])
    return Agreement(
        faces=faces,
        nominal=with_interval(krippendorff_alpha(every, 1 - np.eye(classes))),
        ordinal=with_interval(krippendorff_alpha(every, ordinal_distances(every.sum(2)))),
        same=with_interval(share_of_pairs(every, np.eye(classes))),
        close=with_interval(share_of_pairs(every, is_close)),
    )


def coincidences(counts: np.ndarray) -> np.ndarray:
    """The coincidence matrix of each face, float64 [n, K, K], from its answers by class, [n, K], at least two each.

    Krippendorff, Content Analysis, 3rd edition, 2013, section 12.3: every face counts as often as it has answers.
    """
    size = counts.shape[1]
    ordered = counts[:, :, None] * counts[:, None, :] - counts[:, :, None] * np.eye(size)
    matrices: np.ndarray = ordered / (counts.sum(1) - 1)[:, None, None]
    return matrices


def ordinal_distances(answers: np.ndarray) -> np.ndarray:
    """Squared distances between ordered classes, [..., K, K], from the answers by class, [..., K].

    Between two classes lie the answers of the classes between them, and half of their own.
    """
    middle = np.cumsum(answers, -1) - answers / 2
    distances: np.ndarray = (middle[..., :, None] - middle[..., None, :]) ** 2
    return distances


def krippendorff_alpha(pairs: np.ndarray, distances: np.ndarray) -> np.ndarray:
    """1 less the ratio of the observed to the expected disagreement, [...], from coincidences, [..., K, K]."""
    answers = pairs.sum(-1)
    n = answers.sum(-1)
    expected = answers[..., :, None] * answers[..., None, :]
    with np.errstate(divide="ignore", invalid="ignore"):
        observed = (pairs * distances).sum((-2, -1)) * (n - 1)
        alpha: np.ndarray = 1 - observed / (expected * distances).sum((-2, -1))
    return np.where(np.isfinite(alpha), alpha, np.nan)


def share_of_pairs(pairs: np.ndarray, is_counted: np.ndarray) -> np.ndarray:
    """The share of coincidences, [..., K, K], that are counted; NaN without any."""
    with np.errstate(invalid="ignore"):
        share: np.ndarray = (pairs * is_counted).sum((-2, -1)) / pairs.sum((-2, -1))
    return share
