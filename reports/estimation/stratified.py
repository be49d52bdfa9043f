"""Correction of a labeller's shares when the mix of other attributes differs between samples and calibration images.

If gender is mistaken more often for children than for adults, one matrix of error rates is right for one mix of ages.
Here the error rates are those of the cells of a cross of the attribute with its strata, and the mix of the cells is
estimated with the shares: every calibration image has a weight, the product of one factor for its class of each
attribute, such that the weighted images have the samples' labels of each attribute. This model of the density ratio
(Zadrozny, ICML 2004; main effects as in raking, Deming and Stephan, Ann. Math. Statist. 11 (1940) 427-444) has few
unknowns, so that it can take many strata. The mix of each stratum within the classes then follows the labels of pairs,
as far as these can tell. What is not known widens the intervals: `INTERACTION` and `DESIGN_EFFECT`.

The cells' error rates have a hierarchical Dirichlet prior: each cell's row is shrunk towards the row of the coarser
cell that contains it, with a strength of its own. The distribution of the strengths is estimated by maximum
marginal likelihood, so rows that differ much are pooled little.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reports.estimation.correction import CALIBRATION_PRIOR, Correction, solve_shares, spread_zeros
from reports.estimation.intervals import holm_significant

MAX_CELLS = 250  # of the cross of an attribute with its strata
REPLICATES = 400  # of the bootstrap
STRENGTHS = np.array([1, 3, 10, 30, 100, 300, 1000.0])  # of the prior of a cell's row, in images
SWEEPS, FIRST_SWEEPS = 4, 12  # over the attributes: of replicates, which start at the estimate, and of the estimate
PAIR_STEPS = 30  # of expectation maximisation
# Standard deviation of the logarithm of each cell's density ratio around the product of its factors, before the labels
# of pairs are seen: a generator may make women younger and men older.
INTERACTION = 0.3
# Calibration images count as this many times fewer in the replicates: pooled rows are not exactly those of each cell,
# and the samples' error rates are not exactly those of photographs. Without it, intervals in worlds of resampled real
# faces covered the truth 1 to 4 percentage points less often.
DESIGN_EFFECT = 2.0
CELL_PRIOR = 0.2  # images of each cell, as frequent as if the attributes were independent: no cell is known to be empty
SMALLEST_SHARE = 1e-4  # of a class while weights are estimated: a class may come back


@dataclass(frozen=True)
class StratifiedCounts:
    """Calibration images and labels in the cross of an attribute, the first of the `names`, with its strata."""

    names: tuple[str, ...]
    confusion: tuple[np.ndarray, ...]  # for each name, calibration images by all classes and its labels: [K.., K_i + 1]
    labels: np.ndarray  # faces of one side by the labels of all names, [K + 1..], the last of each for unsure ones

    @property
    def strata(self) -> tuple[str, ...]:
        """The attributes that error rates are stratified by."""
        return self.names[1:]

    @property
    def has_sure_labels(self) -> bool:
        """Whether there are faces with a sure label of each attribute."""
        return all(margin[0, :-1].any() for margin in margins(self.labels[None]))


@dataclass(frozen=True)
class CalibrationFaces:
    """The classes and labels of N calibration images: int [N] for each attribute, negative for none."""

    annotated: dict[str, np.ndarray]
    labelled: dict[str, np.ndarray]  # the number of classes stands for `UNSURE`
    classes: dict[str, int]  # the numbers of classes

    def table(self, true: Sequence[str], labelled: str) -> np.ndarray:
        """Images by their classes of the attributes `true` and their label of another, [K.., L], L = K + 1."""
        shape = [*(self.classes[name] for name in true), self.classes[labelled] + 1]
        codes = [*(self.annotated[name] for name in true), self.labelled[labelled]]
        return count_codes(codes, shape)


def count_codes(codes: Sequence[np.ndarray], shape: Sequence[int]) -> np.ndarray:
    """Count combinations of codes, [N] each, of which none is negative: int64 of this shape."""
    is_known = np.logical_and.reduce([code >= 0 for code in codes])
    flat = np.ravel_multi_index([code[is_known] for code in codes], tuple(shape))
    return np.bincount(flat, minlength=math.prod(shape)).reshape(shape)


def choose_strata(faces: CalibrationFaces, attribute: str, *, candidates: dict[str, set[str]]) -> tuple[str, ...]:
    """The `candidates` that an attribute's error rates depend on, the strongest first.

    `candidates` maps each of them to the labelled attributes that it is made of; of two that share one, the stronger is
    chosen. A candidate must be significant in a test of independence within each class by Holm's procedure; it is left
    out if the cross would have more than `MAX_CELLS` cells.
    """
    scores = {name: dependence(faces.table([attribute, name], attribute)) for name in candidates}
    p = np.array([math.erfc(score / math.sqrt(2)) / 2 for score in scores.values()])
    significant = [name for name, is_chosen in zip(scores, holm_significant(p), strict=True) if is_chosen]
    chosen: list[str] = []
    parts, cells = set[str](), np.count_nonzero(faces.table([attribute], attribute).sum(1))
    for name in sorted(significant, key=lambda name: -scores[name]):
        classes = np.count_nonzero(faces.table([name], attribute).sum(1))
        if not parts & candidates[name] and cells * classes <= MAX_CELLS:
            chosen.append(name)
            parts |= candidates[name]
            cells *= classes
    return tuple(chosen)


def dependence(table: np.ndarray) -> float:
    """How clearly labels depend on a stratum within the classes, as a standard normal deviate.

    `table` counts images by class, stratum and label, [K, S, L]. Pearson's statistics of the classes are added, each
    scaled so that its mean under independence is exactly its degrees of freedom, however thin its cells are. Wilson and
    Hilferty, PNAS 17 (1931) 684-688.
    """
    total = table.sum((1, 2))
    strata, labels = table.sum(2), table.sum(1)
    degrees = ((strata > 0).sum(1) - 1).clip(0) * ((labels > 0).sum(1) - 1).clip(0)
    expected = strata[:, :, None] * labels[:, None, :] / np.maximum(total, 1)[:, None, None]
    statistics = ((table - expected) ** 2 / np.where(expected > 0, expected, 1)).sum((1, 2))
    is_used = (degrees > 0) & (total > 1)
    if not is_used.any():
        return -math.inf
    statistic = (statistics * (total - 1) / np.maximum(total, 1))[is_used].sum()
    df = degrees[is_used].sum()
    return float(((statistic / df) ** (1 / 3) - 1 + 2 / (9 * df)) / math.sqrt(2 / (9 * df)))


def stratify(faces: CalibrationFaces, names: Sequence[str], *, labels: np.ndarray) -> StratifiedCounts:
    """Count the calibration images in the cross of the attributes `names`, whose `labels`, [K+1..], were counted."""
    sides = (faces.annotated, faces.labelled)
    is_known = np.logical_and.reduce([side[name] >= 0 for side in sides for name in names])
    annotated, labelled = ({name: side[name][is_known] for name in names} for side in sides)
    known = CalibrationFaces(annotated, labelled, faces.classes)
    return StratifiedCounts(tuple(names), tuple(known.table(names, name) for name in names), labels)


def correct_stratified(
    counts: StratifiedCounts, *, seed: int, replicates: int = REPLICATES, side: int = 0
) -> Correction:
    """Estimate the true shares behind labels in the cross of an attribute with its strata.

    Calls with one seed and different `side`s share the replicates of the error rates. Classes of the attribute without
    calibration images have a share of 0. Raises ValueError without labels or calibration images.
    """
    if not counts.labels[:-1].sum() or not counts.confusion[0].sum():
        raise ValueError("no labels to correct, or no calibration images")
    confusion, all_labels, (classes, labels_kept) = keep_seen(counts)
    n, axes = all_labels.sum(), range(len(confusion))
    chance, rates = np.random.default_rng([seed, side]), np.random.default_rng([seed, 3])
    pooled = [pool_rows(table, axis, generator=rates, replicates=replicates) for axis, table in enumerate(confusion)]
    sure = [len(kept[kept < table.shape[-1] - 1]) for kept, table in zip(labels_kept, counts.confusion, strict=True)]
    rows = [mean[None, ..., :size] for (mean, _), size in zip(pooled, sure, strict=True)]
    bootstrap_rows = [sample[..., :size] for (_, sample), size in zip(pooled, sure, strict=True)]
    cells = smooth_cells(confusion[0].sum(-1))
    observed, observed_pairs = sure_labels(all_labels[None], sure)
    sure_faces = margins(all_labels[None])[0][0, : sure[0]].sum()
    pair_tables = zip(pair_margins(all_labels[None]), sure[1:], strict=True)
    sure_pairs = [max(table[0, : sure[0], :size].sum(), 1.0) for table, size in pair_tables]
    weights = match_labels(normalised(cells[None]), rows, observed, sweeps=FIRST_SWEEPS)
    weights = match_pairs(weights, rows, observed_pairs, faces=sure_pairs)
    weights = match_labels(weights, rows, observed, sweeps=SWEEPS)
    matrices = [effective_matrix(weights, rows[axis], axis=axis) for axis in axes]
    # replicates scatter around the labels of the fit, as the observed ones may be outside of what the rates allow
    fitted = [(share[:, None] @ matrix)[:, 0] for share, matrix in zip(margins(weights), matrices, strict=True)]
    resampled = chance.multinomial(round(n), all_labels.ravel() / n, size=replicates)
    resampled_labels, resampled_pairs = sure_labels(resampled.reshape(replicates, *all_labels.shape), sure)
    labels = recentred(resampled_labels, observed, fitted)
    pairs = recentred(resampled_pairs, observed_pairs, pair_labels(weights, rows))
    start = rates.standard_gamma(cells, size=(replicates, *cells.shape))
    start *= np.exp(INTERACTION * rates.standard_normal(start.shape)) * weights / cells
    bootstrap = match_labels(normalised(start), bootstrap_rows, labels, sweeps=SWEEPS)
    bootstrap = match_pairs(bootstrap, bootstrap_rows, pairs, faces=sure_pairs)
    bootstrap = match_labels(bootstrap, bootstrap_rows, labels, sweeps=SWEEPS)
    bootstrap_matrices = effective_matrix(bootstrap, bootstrap_rows[0], axis=0)
    correction = Correction(
        solve_shares(matrices[0], observed[0])[0],
        spread_zeros(solve_shares(bootstrap_matrices, labels[0]), round(sure_faces), generator=chance),
        matrices[0][0],
        bootstrap_matrices,
    )
    return embed(correction, classes, labels=labels_kept[0][: sure[0]], size=counts.confusion[0].shape[0])


def keep_seen(counts: StratifiedCounts) -> tuple[list[np.ndarray], np.ndarray, tuple[np.ndarray, list[np.ndarray]]]:
    """Leave out classes without calibration images, and labels that no face has.

    Returns the confusion, the labels, and what is kept: the classes of the first attribute, and all attributes' labels.
    """
    images = counts.confusion[0].sum(-1)
    classes = [np.flatnonzero(side[0]) for side in margins(images[None])]
    kept = []
    for axis, (table, label) in enumerate(zip(counts.confusion, margins(counts.labels[None]), strict=True)):
        is_seen = (table.sum(tuple(range(table.ndim - 1))) > 0) | (label[0] > 0)
        kept.append(np.union1d(classes[axis], np.flatnonzero(is_seen)))
    confusion = [table[np.ix_(*classes, labels)] for table, labels in zip(counts.confusion, kept, strict=True)]
    return confusion, counts.labels[np.ix_(*kept)], (classes[0], kept)


def sure_labels(table: np.ndarray, sure: Sequence[int]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Shares of the sure labels of each attribute, and of pairs of them, from tables of labels [R, L..].

    The first `sure[i]` labels of an attribute are sure. Returns [R, sure[i]] for each attribute and [R, sure[0],
    sure[i]] for each stratum; they sum to 1, or to 0 where no label is sure.
    """
    single = [margin[:, :size] for margin, size in zip(margins(table), sure, strict=True)]
    pairs = [margin[:, : sure[0], :size] for margin, size in zip(pair_margins(table), sure[1:], strict=True)]
    return list(map(normalised, single)), list(map(normalised, pairs))


def embed(correction: Correction, classes: np.ndarray, *, labels: np.ndarray, size: int) -> Correction:
    """A correction of some classes and labels as one of all, `size` of each; the others have no share and no errors."""

    def shares(values: np.ndarray) -> np.ndarray:
        every = np.zeros((*values.shape[:-1], size))
        every[..., classes] = values
        return every

    def matrix(values: np.ndarray) -> np.ndarray:
        every = np.tile(np.eye(size), (*values.shape[:-2], 1, 1))
        every[..., classes, :] = 0
        every[..., classes[:, None], labels] = values
        return every

    return Correction(
        shares(correction.shares),
        shares(correction.bootstrap_shares),
        matrix(correction.matrix),
        matrix(correction.bootstrap_matrices),
    )


def pool_rows(
    table: np.ndarray, axis: int, *, generator: np.random.Generator, replicates: int
) -> tuple[np.ndarray, np.ndarray]:
    """The rates of labels in every cell, [K.., L], and replicates of them, [replicates, K.., L].

    `table`, [K.., L], counts images by cell and label; `axis` is the attribute of the labels. Rows are pooled from the
    classes of this attribute to the cells of all, by one more attribute at a time.
    """
    count, size = table.ndim - 1, table.shape[-1]
    mean, weight = np.full(size, 1 / size), np.array(CALIBRATION_PRIOR)
    sample, kept = mean, set[int]()
    for number, added in enumerate([axis, *(other for other in range(count) if other != axis)]):
        kept.add(added)
        level = table.sum(tuple(other for other in range(count) if other not in kept), keepdims=True)
        strengths = np.broadcast_to(weight, (replicates, *level.shape[:-1]))
        parent, weights = np.broadcast_to(mean, level.shape), np.ones((*level.shape[:-1], 1))
        grid = np.array([CALIBRATION_PRIOR])
        if number:
            weights, grid = strength_weights(level, parent), STRENGTHS
            uniform = generator.random((replicates, *level.shape[:-1], 1))
            strengths = STRENGTHS[(uniform > weights.cumsum(-1)[..., :-1]).sum(-1)]
        images = level.sum(-1, keepdims=True)[..., None]
        estimates = (level[..., None] + grid * parent[..., None]) / (images + grid)
        mean = (estimates * weights[..., None, :]).sum(-1)
        shape = strengths[..., None] * sample + level / DESIGN_EFFECT
        sample = row_shares(generator.standard_gamma(np.maximum(shape, 1e-4)) + 1e-300)
    return mean, sample


def strength_weights(table: np.ndarray, parent: np.ndarray) -> np.ndarray:
    """The posterior probabilities of `STRENGTHS` for each row of counts, [.., G], whose prior means are `parent`.

    The distribution of strengths over all rows is that of the maximum marginal likelihood, with one more row for each.
    """
    prior = np.maximum(parent, 1e-6)[..., None] * STRENGTHS
    counts = table[..., None]
    log_likelihood = (log_gamma(prior + counts) - log_gamma(prior)).sum(-2)
    log_likelihood += log_gamma(STRENGTHS) - log_gamma(STRENGTHS + table.sum(-1, keepdims=True))
    likelihood = np.exp(log_likelihood - log_likelihood.max(-1, keepdims=True))
    weights = np.full(len(STRENGTHS), 1 / len(STRENGTHS))
    for _ in range(50):
        posterior = row_shares(likelihood * weights)
        weights = row_shares(posterior.reshape(-1, len(STRENGTHS)).sum(0) + 1)
    return row_shares(likelihood * weights)


def log_gamma(values: np.ndarray) -> np.ndarray:
    """The logarithm of the gamma function of positive values: Stirling's series, after a shift by 8."""
    shifted = values + 8
    product = np.ones_like(values)
    for step in range(8):
        product = product * (values + step)
    series = 1 / (12 * shifted) - 1 / (360 * shifted**3) + 1 / (1260 * shifted**5)
    return (shifted - 0.5) * np.log(shifted) - shifted + math.log(2 * math.pi) / 2 + series - np.log(product)


def smooth_cells(images: np.ndarray) -> np.ndarray:
    """Images of each cell, [K..], none of them 0: `CELL_PRIOR` more in each, shared out as if they were independent."""
    independent = np.ones(images.shape)
    for axis in range(images.ndim):
        others = tuple(other for other in range(images.ndim) if other != axis)
        independent *= images.sum(others, keepdims=True) + 0.5
    return images + CELL_PRIOR * images.size * independent / independent.sum()


def match_labels(
    cells: np.ndarray, rows: Sequence[np.ndarray], labels: Sequence[np.ndarray], *, sweeps: int
) -> np.ndarray:
    """Multiply shares of cells, [R, K..], by a factor for each class so that their labels are `labels`, [R, L_i] each.

    `rows` are the rates of each attribute's sure labels in every cell, [R, K.., L_i].
    """
    for _ in range(sweeps):
        for axis in (*range(1, len(rows)), 0):  # the attribute that is corrected last, so that it matches best
            if not labels[axis].any():  # all of them are unsure
                continue
            shares = solve_shares(effective_matrix(cells, rows[axis], axis=axis), labels[axis])
            shares = row_shares(np.maximum(shares, SMALLEST_SHARE))
            others = tuple(other + 1 for other in range(len(rows)) if other != axis)
            factor = np.expand_dims(shares, others) / np.maximum(cells.sum(others, keepdims=True), 1e-300)
            cells = cells * factor
    return cells


def match_pairs(
    cells: np.ndarray, rows: Sequence[np.ndarray], pairs: Sequence[np.ndarray], *, faces: Sequence[float]
) -> np.ndarray:
    """Change the mix of each stratum within the classes so that pairs of labels are more likely, [R, K..].

    `pairs` are the shares of pairs of sure labels, of the attribute and of each stratum, [R, L_0, L_i], among these
    numbers of `faces`. Expectation maximisation with a Dirichlet prior, whose mean is the present mix: what the labels
    can't tell remains as it is.
    """
    for axis, (observed, n) in enumerate(zip(pairs, faces, strict=True), 1):
        others = tuple(other + 1 for other in range(1, len(rows)) if other != axis)
        joint = cells[..., None, None] * rows[0][..., :, None] * rows[axis][..., None, :]
        joint = joint.sum(others)
        rates = joint.reshape(len(joint), math.prod(joint.shape[1:3]), -1)
        before = row_shares(rates.sum(-1))  # of the faces with two sure labels
        rates = row_shares(rates)
        transposed = np.ascontiguousarray(np.swapaxes(rates, -1, -2))
        prior = before.shape[1] / INTERACTION**2 / n * before
        after, target = before, observed.reshape(len(observed), -1)
        for _ in range(PAIR_STEPS):
            expected = (after[:, None] @ rates)[:, 0]
            after = row_shares(after * ((target / np.maximum(expected, 1e-300))[:, None] @ transposed)[:, 0] + prior)
        factor = (after / np.maximum(before, 1e-300)).reshape(joint.shape[:3])
        cells = normalised(cells * np.expand_dims(factor, others))
    return cells


def pair_margins(table: np.ndarray) -> list[np.ndarray]:
    """The sums of tables [R, L..] over all axes but the first, the second and one more: [R, L_0, L_i] for each."""
    axes = range(2, table.ndim)
    return [table.sum(tuple(other for other in axes if other != axis)) for axis in axes]


def pair_labels(cells: np.ndarray, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The shares of pairs of labels that a mix of cells leads to: [R, L_0, L_i] for each stratum."""
    every = tuple(range(1, cells.ndim))
    first = cells[..., None] * rows[0]
    return [(first[..., None] * row[..., None, :]).sum(every) for row in rows[1:]]


def effective_matrix(cells: np.ndarray, rows: np.ndarray, *, axis: int) -> np.ndarray:
    """C of one attribute, [R, K, L], for this mix of cells, [R, K..], from the rates of its labels, [R, K.., L]."""
    others = tuple(other + 1 for other in range(cells.ndim - 1) if other != axis)
    return (cells[..., None] * rows).sum(others) / np.maximum(cells.sum(others), 1e-300)[..., None]


def margins(table: np.ndarray) -> list[np.ndarray]:
    """The sums of tables [R, K..] over all axes but the first and one: [R, K_i] for each."""
    axes = range(1, table.ndim)
    return [table.sum(tuple(other for other in axes if other != axis)) for axis in axes]


def recentred(
    resampled: Sequence[np.ndarray], observed: Sequence[np.ndarray], fitted: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """Resampled shares of labels, moved from the observed ones to those of the fit; tables [R, L..].

    A replicate without any sure label has the shares of the fit.
    """
    moved = []
    for new, old, fit in zip(resampled, observed, map(normalised, fitted), strict=True):
        is_empty = ~new.any(tuple(range(1, new.ndim)), keepdims=True)
        moved.append(np.where(is_empty, fit, normalised(np.maximum(new - old + fit, 0))))
    return moved


def row_shares(values: np.ndarray) -> np.ndarray:
    """Rows divided by their sums."""
    return values / np.maximum(values.sum(-1, keepdims=True), 1e-300)


def normalised(cells: np.ndarray) -> np.ndarray:
    """Tables [R, K..] divided by their sums."""
    return cells / np.maximum(cells.sum(tuple(range(1, cells.ndim)), keepdims=True), 1e-300)
