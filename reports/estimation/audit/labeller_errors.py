"""The labeller's errors on the faces that people labelled, next to those on photographs.

The correction of the labeller's shares assumes that both are the same.
"""

import math
from dataclasses import dataclass

import numpy as np

from reports.estimation.audit.shares import AuditedFaces, weigh_faces
from reports.estimation.intervals import wilson
from reports.estimation.stratified import dependence


@dataclass(frozen=True)
class LabellerErrors:
    """Rates of labels by class, [K, L] each; L = K + 1, the last for unsure."""

    counts: np.ndarray  # audited faces by class, as raters see it, and label; a face may count in parts
    rates: np.ndarray  # of all samples, weighted; NaN for a class that no face has
    low: np.ndarray  # ends of the 95 % intervals of the rates
    high: np.ndarray
    photographs: np.ndarray  # counts of annotated photographs
    p: float  # of the test that the rates are those on photographs; NaN if they can't be compared


def compare_errors(faces: AuditedFaces, confusion: np.ndarray) -> LabellerErrors:
    """Compare with photographs: `confusion`, [K, L], counts them by annotated class and label, L = K or K + 1.

    The test of independence of label and side, within each class, counts audited faces by their effective number
    (Kish, Survey Sampling, 1965), as their weights differ. A small p says that the correction rests on a wrong
    assumption; a large one only that these faces don't show it.
    """
    told, classes = faces.is_told, faces.classes
    photographs = np.zeros((classes, classes + 1))
    photographs[:, : confusion.shape[1]] = confusion
    is_label = (faces.labels[told][:, None] == np.arange(classes + 1)).astype(float)
    targets, weights = faces.targets[told], weigh_faces(faces).weights if told.any() else np.zeros(0)
    weighted = weights[:, None] * targets  # [m, K]
    total, squared = weighted.sum(0), (weighted**2).sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        rates = (weighted.T @ is_label) / total[:, None]
        effective = np.where(squared > 0, total**2 / squared, 0)
    low, high = wilson(np.nan_to_num(rates) * effective[:, None], effective[:, None])
    table = np.stack([np.nan_to_num(rates) * effective[:, None], photographs], 1)
    score = dependence(table)
    p = math.erfc(score / math.sqrt(2)) / 2 if np.isfinite(score) else math.nan
    return LabellerErrors(targets.T @ is_label, rates, low, high, photographs, p)
