"""The labeller's errors on the faces that people labelled, next to those on photographs.

The correction of the labeller's shares assumes that both are the same.
"""

import math
from dataclasses import dataclass

import numpy as np

from reports.estimation.audit.shares import AuditedFaces, weigh_faces
from reports.estimation.intervals import wilson

PERMUTATIONS = 999  # of the test


@dataclass(frozen=True)
class LabellerErrors:
    """Rates of labels by class, [K, L] each; L = K + 1, the last for unsure."""

    counts: np.ndarray  # audited faces by class, as raters see it, and label; a face may count in parts
    rates: np.ndarray  # of all samples, weighted; NaN for a class that no face has
    low: np.ndarray  # ends of the 95 % intervals of the rates
    high: np.ndarray
    photographs: np.ndarray  # counts of annotated photographs
    p: float  # of the test that the rates are those on photographs; NaN if they can't be compared


def compare_errors(faces: AuditedFaces, confusion: np.ndarray, *, seed: int) -> LabellerErrors:
    """Compare with photographs: `confusion`, [K, L], counts them by annotated class and label, L = K or K + 1.

    Audited faces count by their effective number within each class (Kish, Survey Sampling, 1965), as their weights
    differ. A small p shows that the assumption of the correction is wrong; a large one only that these faces don't show
    it.
    """
    classified, classes = faces.is_classified, faces.classes
    photographs = np.zeros((classes, classes + 1))
    photographs[:, : confusion.shape[1]] = confusion
    is_label = (faces.labels[classified][:, None] == np.arange(classes + 1)).astype(float)
    targets, weights = faces.targets[classified], weigh_faces(faces).weights if classified.any() else np.zeros(0)
    weighted = weights[:, None] * targets  # [m, K]
    total, squared = weighted.sum(0), (weighted**2).sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        rates = (weighted.T @ is_label) / total[:, None]
        effective = np.where(squared > 0, total**2 / squared, 0)
    audited = np.nan_to_num(rates) * effective[:, None]
    low, high = wilson(audited, effective[:, None])
    p = homogeneity_p(audited, photographs, generator=np.random.default_rng(seed))
    return LabellerErrors(targets.T @ is_label, rates, low, high, photographs, p)


def homogeneity_p(first: np.ndarray, second: np.ndarray, *, generator: np.random.Generator) -> float:
    """p-value of the hypothesis that two tables of counts, [K, L], have the same rates in every row.

    It is NaN if no row has counts in both tables. Pearson's statistics of the rows are added, and compared with those
    of permuted tables, which have the same margins: with few faces in a cell, a test by the chi-squared distribution
    would reject too often. Counts are rounded.
    """
    tables = np.rint([first, second]).astype(int)  # [2, K, L]
    rows = np.flatnonzero((tables.sum(2) > 0).all(0))
    if not len(rows):
        return math.nan
    observed, permuted = 0.0, np.zeros(PERMUTATIONS)
    for row in rows:
        one, other = tables[:, row]
        observed += float(pearson_statistic(one, other))
        draws = generator.multivariate_hypergeometric(one + other, one.sum(), size=PERMUTATIONS)
        permuted += pearson_statistic(draws, one + other - draws)
    return float((1 + (permuted >= observed - 1e-9).sum()) / (1 + PERMUTATIONS))


def pearson_statistic(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Pearson's chi-squared statistic of two rows of counts, [..., L] each."""
    pooled = (first + second) / (first + second).sum(-1, keepdims=True)
    statistic = np.zeros(first.shape[:-1])
    for side in (first, second):
        expected = pooled * side.sum(-1, keepdims=True)
        statistic += ((side - expected) ** 2 / np.where(expected > 0, expected, 1)).sum(-1)
    return statistic
