"""Shares from human labels of a few faces: by these alone, and with the help of a labeller's labels of all faces.

The human labels alone give the Hajek estimate, weighted by the inverse of each face's probability of being chosen
(Hajek 1971; Horvitz and Thompson, JASA 47 (1952) 663-685). Prediction-powered inference adds how much the labels of
all faces differ from those of the chosen ones, times a weight that is tuned for each class (PPI++: Angelopoulos, Duchi
and Zrnic, arXiv:2311.01453; with strata: Fisch et al., NeurIPS 2024; with unequal probabilities: Zrnic and Candes, ICML
2024). The labeller may be wrong in any way: its errors cost width, not validity. One weight serves all strata, because
a stratum has only a few human labels: the "combined" regression estimate of Cochran, Sampling Techniques, 1977, 7.10.

A face counts as the mean of its raters' answers: as two thirds female if two of three raters say so. The shares are
those that raters like these see.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from reports.estimation.correction import project_to_simplex

REPLICATES = 1000  # of the bootstrap
LEAST_FACES = 4  # with a class in a stratum; one with fewer is merged with the next, as its variance is unknown
NO_ANSWER = -1  # in the ratings
ROUNDING = 1e-12  # below which a share is 0
# Faces of each class that may have been missed. One half makes the interval of a simple random sample Jeffreys', which
# has a width even where no face, or every face, is of the class. Brown, Cai and DasGupta, Statist. Sci. 16 (2001)
# 101-133; with the largest weight, as in Fay and Feuer, Statist. Med. 16 (1997) 791-801.
UNSEEN_FACES = 0.5
# The prior on differences between raters: its degrees of freedom, and the standard deviation of a rater's share as a
# fraction of the faces on which two raters disagree. Two raters alone have one degree of freedom.
RATER_FREEDOM, RATER_SPREAD = 3, 0.25
LARGEST_SHIFT = 3.0  # of the logit of a share, due to raters


@dataclass(frozen=True)
class AuditedFaces:
    """The n faces of a plan, labelled by R raters, out of N faces that a labeller labelled, in K classes."""

    ratings: np.ndarray  # int [n, R]: a class, K for "can't tell", or `NO_ANSWER`
    labels: np.ndarray  # int [n], the labeller's: a class, or K for unsure
    strata: np.ndarray  # int [n]; strata with neighbouring numbers are similar
    probability: np.ndarray  # float64 [n], of being in the plan
    label_counts: np.ndarray  # [K + 1], all N faces by the labeller's label
    importance: np.ndarray | None = None  # float64 [n], positive: how much a face counts; None: all equally

    def __post_init__(self) -> None:
        n = len(self.ratings)
        if self.ratings.ndim != 2 or any(item.shape != (n,) for item in (self.labels, self.strata, self.probability)):
            raise ValueError("ratings are [n, R]; labels, strata and probabilities are [n]")
        if not ((self.probability > 0) & (self.probability <= 1)).all():
            raise ValueError("a probability is not in (0, 1]")
        if self.ratings.max(initial=0) > self.classes or self.labels.max(initial=0) > self.classes:
            raise ValueError("a rating or label is not a class")

    @property
    def classes(self) -> int:
        """K."""
        return len(self.label_counts) - 1

    @cached_property
    def inverse(self) -> np.ndarray:
        """How many faces each one stands for, float64 [n]."""
        return 1 / self.probability if self.importance is None else self.importance / self.probability

    def weighted(self, importance: np.ndarray) -> "AuditedFaces":
        """The faces with an importance, [n]; those without any are left out."""
        kept = importance > 0
        rows = (self.ratings[kept], self.labels[kept], self.strata[kept], self.probability[kept])
        return AuditedFaces(*rows, self.label_counts, importance[kept])

    @cached_property
    def is_classified(self) -> np.ndarray:
        """Whether a rater could tell a face's class, bool [n]."""
        is_class: np.ndarray = (self.ratings >= 0) & (self.ratings < self.classes)
        return np.asarray(is_class.any(1))

    @cached_property
    def is_answered(self) -> np.ndarray:
        """Whether a rater answered, even with "can't tell", bool [n]."""
        return np.asarray((self.ratings != NO_ANSWER).any(1))

    @cached_property
    def by_rater(self) -> np.ndarray:
        """Each rater's answer as a class's indicator, float64 [n, R, K]; all 0 where there is none."""
        return (self.ratings[:, :, None] == np.arange(self.classes)).astype(float)

    @cached_property
    def targets(self) -> np.ndarray:
        """The mean of the raters' answers to each face, float64 [n, K]; all 0 where no rater could tell."""
        answers = self.by_rater.sum(1)
        return answers / np.maximum(answers.sum(1, keepdims=True), 1)

    @property
    def cant_tell(self) -> float:
        """The share of the faces that raters can't tell the class of, among those with answers, weighted."""
        is_answer = self.is_answered
        weights = is_answer * self.inverse
        classified = self.by_rater.sum((1, 2)) / np.maximum((self.ratings != NO_ANSWER).sum(1), 1)
        return float((weights * (1 - classified)).sum() / weights.sum()) if is_answer.any() else np.nan


@dataclass(frozen=True)
class SharesEstimate:
    """Shares of K classes, and replicates from which their intervals follow."""

    shares: np.ndarray  # float64 [K], on the simplex
    bootstrap_shares: np.ndarray  # float64 [replicates, K]
    low_shares: np.ndarray  # replicates with faces that may have been seen by chance, for lower ends
    high_shares: np.ndarray  # replicates with faces that may have been missed, for upper ends

    def interval(self, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """Percentiles of the replicates, [K] each, in [0, 1]."""
        low = np.quantile(self.low_shares, (1 - level) / 2, axis=0)
        high = np.quantile(self.high_shares, (1 + level) / 2, axis=0)
        return np.minimum(low, self.shares), np.maximum(high, self.shares)

    def width(self) -> np.ndarray:
        """Of the 95 % interval, [K]."""
        low, high = self.interval()
        return high - low


@dataclass(frozen=True)
class AuditEstimate:
    """What an audit says about the shares of one attribute's classes."""

    faces: AuditedFaces
    human: SharesEstimate  # by the human labels alone
    powered: SharesEstimate  # by PPI++
    tuned_weight: np.ndarray  # of the labeller's labels, by class, in [0, 1], [K]
    label_variance: np.ndarray  # of the shares by PPI++: the part that more labels reduce, [K]
    other_variance: np.ndarray  # the part due to samples and raters, [K]
    rater_variance: np.ndarray  # the part of it due to raters, [K]

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """The shares if all faces that raters can't tell the class of were of other classes, or all of this one."""
        missing = self.faces.cant_tell
        return self.powered.shares * (1 - missing), self.powered.shares * (1 - missing) + missing


@dataclass(frozen=True)
class _Sample:
    """The faces with a class, by strata that have enough of them."""

    strata: np.ndarray  # int [m], from 0
    share: np.ndarray  # of all faces that a stratum holds, [H]
    weights: np.ndarray  # of the faces; those of a stratum sum to its share, [m]
    freedom: np.ndarray  # shape parameter of each face's bootstrap weight, [m]
    variance: np.ndarray  # of each face's weight, [m]

    def centred(self, values: np.ndarray) -> np.ndarray:
        """Values [m, ..] less the mean of their stratum."""
        means = np.stack([self.weights[rows] @ values[rows] / self.share[h] for h, rows in enumerate(self.rows)])
        return values - means[self.strata]

    @cached_property
    def rows(self) -> list[np.ndarray]:
        return [np.flatnonzero(self.strata == h) for h in range(len(self.share))]


def estimate_audit(faces: AuditedFaces, *, seed: int, replicates: int = REPLICATES) -> AuditEstimate:
    """Estimate the shares behind the human labels of a plan's faces.

    The joint bootstrap varies the N samples as draws of the generator, the faces that the plan chose, those that raters
    can't tell the class of (they count as missing at random within their stratum), and the raters, if faces have
    several.

    Raises ValueError if raters could classify fewer than two faces.
    """
    if faces.is_classified.sum() < 2:
        raise ValueError("raters could classify fewer than two faces")
    generator = np.random.default_rng(seed)
    classified, classes = faces.is_classified, faces.classes
    sample = weigh_faces(faces)
    y, f = faces.targets[classified], (faces.labels[classified][:, None] == np.arange(classes)).astype(float)
    all_labels = faces.label_counts[:classes] / faces.label_counts.sum()
    human, sampled_labels = sample.weights @ y, sample.weights @ f
    bootstrap = bootstrap_means(generator, sample, np.concatenate([y, f], 1), replicates=replicates)
    bootstrap_human, bootstrap_labels = bootstrap[:, :classes], bootstrap[:, classes:]
    n = round(faces.label_counts.sum())
    of_samples = generator.multinomial(n, human / human.sum(), size=replicates) / n - human
    of_raters = rater_errors(generator, faces, sample, replicates=replicates)
    unseen = sample.weights.max() * generator.standard_gamma(UNSEEN_FACES, size=(2, replicates, classes))
    missed = np.where(human > 0, 0.0, np.inf)
    replicated = shift_logits(bootstrap_human + of_samples, of_raters, shares=human)
    alone = with_unseen(human, replicated, unseen=unseen, missed=missed)
    tuned = tune_weight(sample, y, f)
    while True:
        matrix = share_matrix(sample, y, f, tuned=tuned)
        shares = project_to_simplex(human + matrix @ (all_labels - sampled_labels))
        shares = np.where(shares < ROUNDING, 0, shares)  # of the sums
        of_labels = bootstrap_human + (all_labels - bootstrap_labels) @ matrix.T
        replicated = shift_logits(of_labels + of_samples, of_raters, shares=shares)
        powered = with_unseen(shares, replicated, unseen=unseen, missed=tuned + missed)
        is_useless = (powered.width() > alone.width()) & (tuned > 0)  # as a weight from a few faces may be
        if not is_useless.any():
            break
        tuned = np.where(is_useless, 0, tuned)
    other = of_samples.var(0) + of_raters.var(0)
    return AuditEstimate(faces, alone, powered, tuned, of_labels.var(0), other, of_raters.var(0))


def weigh_faces(faces: AuditedFaces) -> _Sample:
    """The weights of the faces with a class: the others of their stratum are missing at random."""
    classified, inverse = faces.is_classified, faces.inverse
    strata = merge_strata(faces.strata, classified)
    share = np.bincount(strata, inverse)
    answered = np.bincount(strata[classified], inverse[classified])
    factor, share = share / answered, share / share.sum()
    strata = strata[classified]
    weights = inverse[classified] * (share / answered)[strata]
    n = np.bincount(strata)[strata]
    chance = np.minimum(
        faces.probability[classified] / factor[strata], 1 - 1e-6
    )  # of being in the plan, and classified
    freedom = np.maximum(((n - 1) / (1 - chance) - 1) / n, 0.05)
    return _Sample(strata, share, weights, freedom, weights**2 * (1 - chance) * n / np.maximum(n - 1, 1))


def merge_strata(strata: np.ndarray, classified: np.ndarray) -> np.ndarray:
    """Strata [n], from 0, each with at least `LEAST_FACES` classified ones: one with fewer is merged with the next."""
    _, codes = np.unique(strata, return_inverse=True)
    counts = np.bincount(codes[classified], minlength=codes.max() + 1)
    merged, current, held = np.zeros(len(counts), int), 0, 0
    for code, count in enumerate(counts):
        merged[code] = current
        held += count
        if held >= LEAST_FACES:
            current, held = current + 1, 0
    if held < LEAST_FACES and current:  # the rest joins the last one that is large enough
        merged = np.minimum(merged, current - 1)
    merged_codes: np.ndarray = merged[codes]
    return merged_codes


def tune_weight(sample: _Sample, y: np.ndarray, f: np.ndarray) -> np.ndarray:
    """The weight of the labels `f`, [m, K], that minimises the variance of each class's share, in [0, 1], [K].

    One face of the largest weight that is labelled as the class by the labeller alone is added: a weight that rests on
    a handful of faces shrinks towards 0, the human labels alone.
    """
    y, f = sample.centred(y), sample.centred(f)
    unseen = sample.weights.max() ** 2
    slope = (sample.variance @ (y * f)) / (sample.variance @ f**2 + unseen)
    return np.clip(slope, 0, 1)


def share_matrix(sample: _Sample, y: np.ndarray, f: np.ndarray, *, tuned: np.ndarray) -> np.ndarray:
    """The matrix of the labels' weights, [K, K], with which the shares sum to 1.

    Weights that differ between classes leave a sum that is not exactly 1: each class takes up a part in proportion to
    its variance, which changes the shares least.
    """
    residual = sample.centred(y - tuned * f)
    variance = sample.variance @ residual**2 + sample.weights.max() ** 2
    return np.diag(tuned) - np.outer(variance / variance.sum(), tuned)


def bootstrap_means(
    generator: np.random.Generator, sample: _Sample, values: np.ndarray, *, replicates: int
) -> np.ndarray:
    """Weighted means of `values`, [m, C], of resampled faces of each stratum: float64 [replicates, C].

    Faces have gamma distributed weights, as in the Bayesian bootstrap (Rubin, Ann. Statist. 9 (1981) 130-134), with a
    variance that is right for strata of a few faces, and for a large part of a small population (Beaumont and Patak,
    Int. Statist. Rev. 80 (2012) 127-148). Identical faces are sampled together.
    """
    means = np.zeros((replicates, values.shape[1]))
    table = np.column_stack([sample.freedom, sample.weights, values])
    for h, rows in enumerate(sample.rows):
        cells, count = np.unique(table[rows], axis=0, return_counts=True)
        shape, weight, value = cells[:, 0], cells[:, 1], cells[:, 2:]
        weights = generator.standard_gamma(count * shape, size=(replicates, len(cells))) / shape * weight
        means += sample.share[h] * (weights @ value) / np.maximum(weights.sum(1, keepdims=True), 1e-300)
    return means


def rater_errors(
    generator: np.random.Generator, faces: AuditedFaces, sample: _Sample, *, replicates: int
) -> np.ndarray:
    """How far the shares seen by these raters may be from those seen by others like them: float64 [replicates, K].

    The standard deviation between raters is that of their answers to the same faces, with a prior of `RATER_FREEDOM`
    degrees of freedom, so that the errors have Student's distribution. It is 0 where no face has two raters: one rater
    says nothing about others.
    """
    classified, classes = faces.is_classified, faces.classes
    answers, y = faces.by_rater[classified], faces.targets[classified][:, None]
    has_answer = answers.any(2)  # [m, R]
    count = has_answer.sum(1, keepdims=True)
    is_shared = has_answer & (count > 1)
    raters = is_shared.any(0)
    if raters.sum() < 2:
        return np.zeros((replicates, classes))
    shared = sample.weights[:, None] * is_shared
    shared = shared[:, raters] / shared[:, raters].sum(0)
    deviations = (shared[:, :, None] * (answers - y)[:, raters]).sum(0)  # [raters, K]
    freedom = (shared * (1 - 1 / count)).sum()  # R - 1 if all rate all faces
    pairs = sample.weights * (count[:, 0] > 1)
    unlike = 2 * faces.targets[classified] * (1 - faces.targets[classified]) * count / np.maximum(count - 1, 1)
    prior = (RATER_SPREAD * (pairs @ unlike) / pairs.sum()) ** 2
    variance = ((deviations**2).sum(0) + RATER_FREEDOM * prior) / (freedom + RATER_FREEDOM)
    part = (sample.weights[:, None] * has_answer / count).sum(0)  # of the estimate that is a rater's, [R]
    normal = generator.standard_normal((replicates, classes))
    normal = (normal - normal.mean(1, keepdims=True)) * np.sqrt(classes / max(classes - 1, 1))
    scale = np.sqrt((freedom + RATER_FREEDOM) / generator.chisquare(freedom + RATER_FREEDOM, size=(replicates, 1)))
    errors: np.ndarray = normal * scale * np.sqrt(variance * (part**2).sum())
    return errors


def shift_logits(replicates: np.ndarray, errors: np.ndarray, *, shares: np.ndarray) -> np.ndarray:
    """Replicates, [replicates, K], with errors that act on the logits of the `shares`.

    Raters who make few mistakes also differ little: the errors of a rare class are in proportion to its share.
    """
    slope = np.maximum(shares * (1 - shares), 1e-9)
    odds = np.exp(np.clip(errors / slope, -LARGEST_SHIFT, LARGEST_SHIFT))
    inside = np.clip(replicates, 0, 1)
    shifted: np.ndarray = inside * odds / (1 - inside + inside * odds)
    return shifted


def with_unseen(shares: np.ndarray, bootstrap: np.ndarray, *, unseen: np.ndarray, missed: np.ndarray) -> SharesEstimate:
    """An estimate whose interval allows for kinds of faces that may have been missed.

    `unseen`, [2, replicates, K], are shares of faces of the class, and of others. `missed`, [K], is how much a face
    counts that only the labeller calls one of the class: its weight, or infinity where people saw none at all.
    """
    others = np.roll(unseen[1], 1, axis=1) if shares.size != 2 else unseen[0][:, ::-1]
    low = (bootstrap - missed * unseen[1]) / (1 + others)
    high = (bootstrap + unseen[0]) / (1 + unseen[0])
    return SharesEstimate(shares, *(np.clip(values, 0, 1) for values in (bootstrap, low, high)))
