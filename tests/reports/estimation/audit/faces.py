"""Audited faces for tests."""

import numpy as np

from reports.estimation.audit.shares import AuditedFaces


def audited_faces(ratings, labels, *, counts, strata=None, probability=None):
    """Faces with these ratings, [n] or [n, R], and labels; by default equally probable, in one stratum."""
    ratings, labels = np.asarray(ratings), np.asarray(labels)
    ratings = ratings[:, None] if ratings.ndim == 1 else ratings
    n = len(ratings)
    return AuditedFaces(
        ratings,
        labels,
        strata=np.zeros(n, int) if strata is None else np.asarray(strata),
        probability=np.full(n, n / np.sum(counts)) if probability is None else np.asarray(probability),
        label_counts=np.asarray(counts),
    )


def patterned_faces(n):
    """The classes, of which 40 % are 1, and labels of n faces, which figures of other programs were computed from."""
    i = np.arange(n)
    truth = i * 7 % 10 < 4
    return truth.astype(int), (truth ^ (i * 13 % 17 < 2)).astype(int)
