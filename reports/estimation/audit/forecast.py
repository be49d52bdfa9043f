"""What an audit can be expected to show: the width of its intervals beforehand, and how many more labels settle it."""

import numpy as np

from reports.estimation.audit.looks import width_factor
from reports.estimation.correction import estimate_matrix, solve_shares
from reports.estimation.intervals import Z, wilson

POWER = 0.8  # share of the simulated audits in which the number of labels needed settles the verdict
UNSEEN_LIMIT = 2.512  # 97.5 % point of a gamma distribution with parameter UNSEEN_FACES: faces that may be missed
STEP = 1.15  # ratio of successive numbers of labels that are tried


def expected_width(
    labels: np.ndarray,
    strata: np.ndarray,
    *,
    classes: int,
    probability: np.ndarray,
    confusion: np.ndarray | None = None,
) -> np.ndarray:
    """The width that the 95 % interval of each class's share by PPI++ can be expected to have: float64 [K].

    `labels`, int [N], are the labeller's labels of all faces, `classes` for unsure; `strata`, int [N], and
    `probability`, float64 [N], in (0, 1], are those of a plan. `confusion`, [K, L], counts annotated photographs by
    class and label, L = K + 1 with unsure ones: the labeller is expected to make the same errors on the faces. Without
    it nothing is expected of the labels: the width is that of human labels alone. It is never smaller than that of a
    class that no rater sees.

    Raters are assumed to agree, and to be able to tell the class of every face.
    """
    likely, shares = likely_classes(labels, classes=classes, confusion=confusion)
    cells = np.unique(np.stack([strata, labels, probability]), axis=1, return_counts=True)
    (stratum, label, chance), count = cells
    y = likely[label.astype(int)]  # expectation of the indicator of each class, [C, K]
    f = (label[:, None] == np.arange(classes)).astype(float)
    _, stratum = np.unique(stratum, return_inverse=True)
    size = np.bincount(stratum, count)[:, None]

    def means(values: np.ndarray) -> np.ndarray:
        sums = np.zeros((len(size), classes))
        np.add.at(sums, stratum, count[:, None] * values)
        return (sums / size)[stratum]

    mean_y, mean_f = means(y), means(f)
    variance = (count * (1 - chance) / chance)[:, None] / len(labels) ** 2
    of_y = (variance * (y - 2 * y * mean_y + mean_y**2)).sum(0)
    of_f = (variance * (f - mean_f) ** 2).sum(0)
    both = (variance * (y - mean_y) * (f - mean_f)).sum(0)
    tuned = np.clip(both / np.maximum(of_f, 1e-300), 0, 1)
    total = of_y - 2 * tuned * both + tuned**2 * of_f + shares * (1 - shares) / len(labels)
    effective = np.maximum(shares * (1 - shares), 1e-9) / np.maximum(total, 1e-12)
    low, high = wilson(shares * effective, effective)
    unseen = UNSEEN_LIMIT / (chance.min() * len(labels))
    return np.minimum(np.maximum(high - low, unseen), 1)


def likely_classes(labels: np.ndarray, *, classes: int, confusion: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The probabilities of the classes of a face with each label, [K + 1, K], and the shares of the classes, [K]."""
    counts = np.bincount(labels, minlength=classes + 1)
    if confusion is None or not confusion.any():
        shares = (counts[:classes] + 0.5) / (counts[:classes].sum() + 0.5 * classes)
        return np.tile(shares, (classes + 1, 1)), shares
    padded = np.zeros((classes, classes + 1))
    padded[:, : confusion.shape[1]] = confusion
    matrix = estimate_matrix(padded)
    shares = solve_shares(matrix, counts / counts.sum())
    shares = (shares * counts.sum() + 0.5) / (counts.sum() + 0.5 * classes)
    joint = (shares[:, None] * matrix).T + 1e-12
    return joint / joint.sum(1, keepdims=True), shares


def labels_needed(
    ratio_draws: np.ndarray,
    *,
    ratio: float,
    label_variance: float,
    other_variance: float,
    sizes: tuple[int, int],
    limits: tuple[float, float],
) -> int | None:
    """The total number of human labels that would settle a group's verdict; None if no number would.

    `ratio_draws` are replicates of the group's ratio, as likely true ratios; `ratio` is the estimate. The variances are
    those of the logarithm of the ratio: the part that more labels reduce, and the rest. `sizes` are the numbers of
    present labels and of all faces. For each number of labels, later estimates are simulated from the likely true
    ratios and the present labels; a verdict is settled if its interval, that of a second look, lies on one side of 1 or
    within the `limits`. The number is the smallest with which at least `POWER` of the verdicts are settled.
    """
    n, most = sizes
    truth, present = np.log(np.maximum(ratio_draws, 1e-6)), np.log(max(ratio, 1e-6))
    noise = np.random.default_rng(n).standard_normal(len(truth))
    more = n * STEP
    while more < most:
        new = label_variance * n / (more - n)
        estimate = (n * present + (more - n) * (truth + np.sqrt(new) * noise)) / more
        later = label_variance * max(1 / more - 1 / most, 0) / max(1 / n - 1 / most, 1e-12)
        half = Z * width_factor(more, planned=n) * np.sqrt(later + other_variance)
        low, high = np.exp(estimate - half), np.exp(estimate + half)
        is_settled = (low > 1) | (high < 1) | ((low >= limits[0]) & (high <= limits[1]))
        if is_settled.mean() >= POWER:
            return int(np.ceil(more))
        more *= STEP
    return None
