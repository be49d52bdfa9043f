"""Intervals that stay valid however often people look at them and then label more faces.

A plan of a fixed number of faces is looked at once, and has ordinary intervals. Whoever extends it because the interval
was too wide has looked more than once: the more often ordinary intervals are looked at, the more probable it is that
one of them misses the truth. The same holds for looks before all faces of a plan have answers. The intervals are then
those of a confidence sequence, which holds at all numbers of labels at once: Waudby-Smith, Arbour, Sinha, Kennedy and
Ramdas, Ann. Statist. 52 (2024) 2613-2640, theorem 2.2.
"""

import math
from dataclasses import replace

import numpy as np

from reports.estimation.audit.shares import AuditEstimate, SharesEstimate
from reports.estimation.intervals import Z

MISCOVERAGE = 0.05


def width_factor(labels: float, *, planned: float) -> float:
    """How many times wider the interval of the sequence is than an ordinary one; narrowest at the `planned` labels."""
    log = -2 * math.log(MISCOVERAGE)
    tuning = (log + math.log(log + 1)) / planned  # rho squared
    scaled = labels * tuning + 1
    return math.sqrt(2 * scaled / (labels * tuning) * math.log(math.sqrt(scaled) / MISCOVERAGE)) / Z


def widen_audit(estimate: AuditEstimate, *, planned: int) -> AuditEstimate:
    """The estimate of a plan of `planned` faces that was extended, or whose faces don't all have answers yet."""
    factor = width_factor(int(estimate.faces.is_classified.sum()), planned=planned)
    return replace(estimate, human=widen(estimate.human, factor), powered=widen(estimate.powered, factor))


def widen(estimate: SharesEstimate, factor: float) -> SharesEstimate:
    """The estimate with all deviations multiplied by a factor, within [0, 1]."""

    def scale(replicates: np.ndarray) -> np.ndarray:
        return np.clip(estimate.shares + factor * (replicates - estimate.shares), 0, 1)

    return SharesEstimate(
        estimate.shares, scale(estimate.bootstrap_shares), scale(estimate.low_shares), scale(estimate.high_shares)
    )
