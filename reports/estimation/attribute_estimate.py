"""The estimate of one attribute from one labeller's counts: shares, their correction, ratios and verdicts."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from reports.estimation.audit.forecast import labels_needed
from reports.estimation.audit.shares import AuditEstimate, SharesEstimate
from reports.estimation.correction import (
    MAX_CONDITION,
    REPLICATES,
    Correction,
    correct_shares,
    raw_is_better,
    resample_shares,
)
from reports.estimation.intervals import Z, pearson_p, ratio_interval, two_sided_p
from reports.estimation.stratified import StratifiedCounts, correct_stratified

PRESERVED = (0.8, 1.25)  # ratios that count as "preserved": the four-fifths rule (29 CFR 1607.4 D) and its inverse
SEED = 1  # of every bootstrap
# Of an attribute that is corrected. K groups need K^2 error rates: of 500 calibration images, each row of the matrix
# gets 500 / K. The intervals keep their coverage by getting wider (97 % on average in simulated studies of 24 and of 40
# groups), but more and more matrices can hardly be inverted: the condition number exceeds `MAX_CONDITION` for 2 % of
# the simulated labellers at 12 groups, 11 % at 24, 25 % at 30. The bootstrap of the distances takes 0.6 s at 12 groups,
# 2.3 s at 24, 5.8 s at 40.
MAX_GROUPS = 24


@dataclass(frozen=True)
class AttributeCounts:
    """One labeller's counts of one attribute's K groups; [K] each where not stated otherwise."""

    attribute: str
    method: str
    groups: list[str]
    count: np.ndarray  # generated faces
    reference: np.ndarray  # training faces, by the same labeller; effective numbers if they are weighted
    annotated: np.ndarray  # training faces, as annotated
    confusion: np.ndarray  # [K, L], of training faces, annotated by labelled; L = K + 1 if some labels are unsure
    is_fully_annotated: bool = True  # whether nearly all training faces are annotated
    unsure: float = 0.0  # generated faces without a sure label, which are not counted
    is_shifted: bool = False  # whether the labeller's confidence differs between generated faces and photographs
    stratified: StratifiedCounts | None = None  # of the generated faces, if error rates depend on other attributes
    stratified_reference: StratifiedCounts | None = None  # of the training faces, where these are corrected as well
    stream: int = 0  # of the random numbers that resample the labels; every run of a study has its own

    @property
    def strata(self) -> tuple[str, ...]:
        """The attributes that the correction is stratified by."""
        return self.stratified.strata if self.stratified else ()

    def correct(self) -> Correction:
        """Correct the labels of the generated faces."""
        if self.stratified:
            return correct_stratified(self.stratified, seed=SEED, side=self.stream)
        return correct_shares(self.count, self.confusion, seed=SEED, side=self.stream)

    def correct_reference(self) -> Correction:
        """Correct the labels of the training faces, with the replicates of the error rates of `correct`."""
        if self.stratified_reference:
            return correct_stratified(self.stratified_reference, seed=SEED, side=1)
        return correct_shares(self.reference, self.confusion, seed=SEED, side=1)


@dataclass(frozen=True)
class ReferenceShares:
    """The shares that corrected or audited shares are compared with, and bootstrap replicates of them."""

    shares: np.ndarray  # [K]
    bootstrap_shares: np.ndarray  # [replicates, K]
    audited: SharesEstimate | None = None  # of shares by people's labels: with the faces that they may have missed

    def interval(self) -> tuple[np.ndarray, np.ndarray]:
        """95 % percentiles of the replicates, [K] each."""
        if self.audited:
            return self.audited.interval()
        low, high = np.quantile(self.bootstrap_shares, [0.025, 0.975], axis=0)
        return low, high


@dataclass(frozen=True)
class CorrectedSides:
    """Shares of both sides after correction for the labeller's errors."""

    generated: Correction
    reference: ReferenceShares


@dataclass(frozen=True)
class AuditedSides:
    """Shares of both sides where people labelled some of the samples."""

    generated: AuditEstimate
    reference: ReferenceShares | None  # annotated or audited; None if the training images are neither


@dataclass(frozen=True)
class Ratios:
    """Ratios of generated to training shares, [K] each."""

    ratio: np.ndarray  # of the estimate that verdicts are based on
    low: np.ndarray
    high: np.ndarray
    other_ratio: np.ndarray  # of the other estimate; the same without a correction, or with an audit
    p: np.ndarray  # of no difference, the larger of both estimates'


@dataclass(frozen=True)
class AttributeEstimate:
    """One labeller's estimate of one attribute: raw shares, and corrected ones where that is possible."""

    counts: AttributeCounts
    corrected: CorrectedSides | None
    correction_note: str | None  # why the shares are not corrected
    audited: AuditedSides | None = None  # if people labelled some of the samples

    @cached_property
    def shares(self) -> np.ndarray:
        """Raw shares of the generated faces, [K]."""
        return normalize(self.counts.count)

    @cached_property
    def reference_shares(self) -> np.ndarray:
        """Raw shares of the training faces, [K]."""
        return normalize(self.counts.reference)

    @cached_property
    def best_estimate(self) -> str:
        """The estimate that verdicts are based on: audited if people labelled some samples, else raw or corrected.

        Where the labeller's confidence has shifted, its error rates may have, too: on deliberately degraded
        photographs, the corrected shares of some attributes were worse than the raw ones (docs/method.md).
        """
        if self.audited and (self.audited.reference or not self.counts.reference.sum()):
            return "audited"
        if not self.corrected or self.counts.is_shifted:
            return "raw"
        return "raw" if raw_is_better(self.counts.count, self.corrected.generated) else "corrected"

    @cached_property
    def ratios(self) -> Ratios:
        """Ratios of the best estimate to its reference.

        An interval around raw labels does not include their errors: where there is a correction, it extends to the
        interval of the corrected ratio. Where the labeller's confidence has shifted, it includes both intervals.
        """
        if self.audited and self.best_estimate == "audited":
            return audited_ratios(self.audited)
        counts = self.counts
        n, m = counts.count.sum(), counts.reference.sum()
        raw = divide(self.shares, self.reference_shares)
        p = pearson_p(counts.count, np.full_like(counts.count, n), y=counts.reference, m=np.full_like(counts.count, m))
        if not self.corrected:
            return Ratios(raw, *self.raw_interval, raw, p)
        generated, reference = self.corrected.generated, self.corrected.reference
        ratio = divide(generated.shares, reference.shares)
        variance = generated.bootstrap_shares.var(0) + reference.bootstrap_shares.var(0)
        corrected_p = two_sided_p(generated.shares - reference.shares, variance)
        best, other = (raw, ratio) if self.best_estimate == "raw" else (ratio, raw)
        low, high = self.corrected_interval
        if counts.is_shifted:
            low, high = np.fmin(low, self.raw_interval[0]), np.fmax(high, self.raw_interval[1])
        return Ratios(best, np.fmin(low, best), np.fmax(high, best), other, np.maximum(p, corrected_p))

    @cached_property
    def raw_interval(self) -> tuple[np.ndarray, np.ndarray]:
        """The ends of the 95 % intervals of the ratios of the raw shares, [K] each."""
        counts = self.counts
        n, m = counts.count.sum(), counts.reference.sum()
        low, high = ratio_interval(counts.count, n, y=counts.reference, m=m)
        has_labels = n > 0 and m > 0
        return np.where(has_labels, low, 0), np.where(has_labels, high, np.inf)

    @cached_property
    def corrected_interval(self) -> tuple[np.ndarray, np.ndarray]:
        """The ends of the 95 % intervals of the ratios of the corrected shares, [K] each; 0 and inf without any."""
        if not self.corrected:
            return np.zeros(len(self.counts.groups)), np.full(len(self.counts.groups), np.inf)
        smallest = 0.5 / max(self.counts.annotated.sum(), 1)  # for an absent group: half a face keeps the ratio finite
        reference = np.maximum(self.corrected.reference.bootstrap_shares, smallest)
        low, high = np.quantile(self.corrected.generated.bootstrap_shares / reference, [0.025, 0.975], axis=0)
        return low, high

    @cached_property
    def verdicts(self) -> list[str]:
        """The verdict of each group."""
        ratios = self.ratios
        ends = zip(ratios.low, ratios.high, ratios.other_ratio, strict=True)
        return [verdict(low, high, other_ratio=other) for low, high, other in ends]

    def inconclusive_reason(self, group: int) -> str | None:
        """Why a group's verdict is inconclusive; None if it isn't.

        `no labels`: no face has a label; `disagree`: the raw and the corrected estimate contradict each other, or their
        verdicts differ and the labeller's confidence has shifted; `calibration`: no number of samples is enough,
        because there are too few annotated images; `few`: there are too few faces; `labels`: people labelled too few of
        them; `raters`: no number of labels is enough, because the raters see different classes.
        """
        if self.verdicts[group] != "inconclusive":
            return None
        if self.audited and self.best_estimate == "audited":
            if not self.has_finite_ratios(group) or self.labels_needed(group) is not None:
                return "labels"
            generated = self.audited.generated
            return "raters" if 2 * generated.rater_variance[group] > generated.other_variance[group] else "few"
        if not self.counts.count.sum() or not self.counts.reference.sum():
            return "no labels"
        if self.estimates_disagree(group):
            return "disagree"
        is_limited = self.corrected and self.has_finite_ratios(group) and self.n_needed(group) is None
        return "calibration" if is_limited else "few"

    def estimates_disagree(self, group: int) -> bool:
        """Whether the raw and the corrected estimate of a group contradict each other."""
        if not self.corrected:
            return False
        ratio, other = self.ratios.ratio[group], self.ratios.other_ratio[group]
        if self.counts.is_shifted:
            estimates = zip((self.raw_interval, self.corrected_interval), (ratio, other), strict=True)
            alone = {verdict(low[group], high[group], other_ratio=own) for (low, high), own in estimates}
            if len(alone - {"inconclusive"}) > 1:
                return True
        return bool((ratio - 1) * (other - 1) < 0 and max(ratio, other) > np.exp(0.2) * min(ratio, other))

    def has_finite_ratios(self, group: int) -> bool:
        """Whether the group has faces on both sides, by both estimates."""
        return all(0 < ratio[group] < np.inf for ratio in (self.ratios.ratio, self.ratios.other_ratio))

    def n_needed(self, group: int) -> int | None:
        """The number of generated faces that would make a group's verdict conclusive if its ratios are as estimated.

        The interval then lies within `PRESERVED` or on one side of 1, whichever takes fewer faces; more faces reduce
        only the generated side's part of its width. None if no number is enough, or if the verdict is already
        conclusive.
        """
        is_decided = self.verdicts[group] != "inconclusive"
        if is_decided or self.best_estimate == "audited" or not self.has_finite_ratios(group):
            return None
        if self.counts.is_shifted and self.estimates_disagree(group):
            return None
        both = self.ratios.ratio[group], self.ratios.other_ratio[group]
        needed = []
        if (both[0] - 1) * (both[1] - 1) > 0:
            needed.append(self.n_for_limit(group, 1))
        if all(PRESERVED[0] < ratio < PRESERVED[1] for ratio in both):
            needed.append(max(self.n_for_limit(group, limit) for limit in PRESERVED))
        n = min(needed, default=np.inf)
        return max(round(n), round(self.counts.count.sum()) + 1) if np.isfinite(n) else None

    def labels_needed(self, group: int) -> int | None:
        """The total number of human labels that would settle a group's verdict, by simulation.

        None if no number would, if the verdict is already conclusive, or without an audit.
        """
        audited = self.audited
        is_undecided = self.best_estimate == "audited" and self.verdicts[group] == "inconclusive"
        if not audited or not audited.reference or not is_undecided or not self.has_finite_ratios(group):
            return None
        estimate, reference = audited.generated, audited.reference
        share = max(estimate.powered.shares[group], 1e-9)
        of_reference = reference.bootstrap_shares[:, group].var() / max(reference.shares[group], 1e-9) ** 2
        return labels_needed(
            estimate.powered.bootstrap_shares[:, group] / max(reference.shares[group], 1e-9),
            ratio=float(self.ratios.ratio[group]),
            label_variance=float(estimate.label_variance[group] / share**2),
            other_variance=float(estimate.other_variance[group] / share**2 + of_reference),
            sizes=(int(estimate.faces.is_classified.sum()), round(estimate.faces.label_counts.sum())),
            limits=PRESERVED,
        )

    def n_for_limit(self, group: int, limit: float) -> float:
        """The number of generated faces at which the interval of a group's ratio would just reach `limit`; may be inf.

        The interval is that of the corrected ratio if there is one, and otherwise that of the raw ratio.
        """
        ratios = self.ratios
        ratio = (ratios.ratio if self.best_estimate == "corrected" else ratios.other_ratio)[group]
        end = (ratios.high if limit > ratio else ratios.low)[group]
        generated, rest = self.log_ratio_variances(group)
        allowed = (np.log(limit / ratio) / Z) ** 2
        if 0 < end < np.inf:  # the variances only approximate the width of the interval
            scale = (np.log(end / ratio) / Z) ** 2 / (generated + rest)
            generated, rest = scale * generated, scale * rest
        return float(self.counts.count.sum() * generated / (allowed - rest)) if allowed > rest else np.inf

    def log_ratio_variances(self, group: int) -> tuple[float, float]:
        """Variance of a group's log ratio: the part that more generated faces reduce, and the rest."""
        if not self.corrected:
            generated = (1 - self.shares[group]) / self.counts.count[group]
            return generated, (1 - self.reference_shares[group]) / self.counts.reference[group]
        correction, reference = self.corrected.generated, self.corrected.reference
        share = max(correction.shares[group], 1e-9)
        generated = correction.sampling_variance(self.counts.count)[group] / share**2
        rest = max(correction.bootstrap_shares.var(0)[group] / share**2 - generated, 0)
        rest += reference.bootstrap_shares.var(0)[group] / max(reference.shares[group], 1e-9) ** 2
        return generated, rest


def audited_ratios(audited: AuditedSides) -> Ratios:
    """Ratios of the shares by people's labels to the reference, with intervals from the replicates of both."""
    generated, reference = audited.generated.powered, audited.reference
    size = len(generated.shares)
    if reference is None:  # no training images
        return Ratios(
            np.full(size, np.nan), np.zeros(size), np.full(size, np.inf), np.full(size, np.nan), np.ones(size)
        )
    ratio = divide(generated.shares, reference.shares)
    smallest = 0.5 / max(len(audited.generated.faces.ratings), 1)  # for an absent group: keeps the ratio finite
    of_reference = reference.audited
    lowest, highest = (
        np.maximum(np.resize(replicates, generated.bootstrap_shares.shape), smallest)
        for replicates in (
            (of_reference.low_shares, of_reference.high_shares) if of_reference else (reference.bootstrap_shares,) * 2
        )
    )
    low = np.quantile(generated.low_shares / highest, 0.025, axis=0)
    high = np.quantile(generated.high_shares / lowest, 0.975, axis=0)
    variance = generated.bootstrap_shares.var(0) + reference.bootstrap_shares.var(0)
    p = two_sided_p(generated.shares - reference.shares, variance)
    return Ratios(ratio, np.fmin(low, ratio), np.fmax(high, ratio), ratio, p)


def estimate_attribute(counts: AttributeCounts) -> AttributeEstimate:
    """Estimate an attribute's shares from a labeller's counts, corrected where its errors are known well enough."""
    if note := missing_for_correction(counts):
        return AttributeEstimate(counts, None, note)
    correction = counts.correct()
    if correction.condition > MAX_CONDITION:
        condition = f"{correction.condition:.0f}" if correction.condition < 1e6 else "over 1,000,000"
        note = f"the labels hardly tell the groups apart (condition number {condition})"
        return AttributeEstimate(counts, None, note)
    return AttributeEstimate(counts, CorrectedSides(correction, corrected_reference(counts, correction)), None)


def missing_for_correction(counts: AttributeCounts) -> str | None:
    """What is missing to correct the labels; None if nothing is."""
    confusion = counts.confusion
    sure = confusion[:, : len(confusion)]
    total = counts.count + counts.reference + counts.annotated + sure.sum(0) + confusion.sum(1)
    has_faces = total > 0
    if not counts.count.sum() or not counts.reference.sum():
        return "no labels of either side"
    if not sure.sum() or not counts.annotated.sum():
        return "no annotated faces to measure the labeller's errors on"
    calibrated = zip(counts.groups, has_faces, sure.sum(1), strict=True)
    if missing := [group for group, faces, images in calibrated if faces and not images]:
        names = ", ".join(name[:40] for name in missing[:5]) + " and more" * (len(missing) > 5)
        return f"no calibration images of {names}"
    if has_faces.sum() < 2:
        return "one group only"
    if len(counts.groups) > MAX_GROUPS:
        return f"{len(counts.groups)} groups are too many to estimate the labeller's errors from annotated faces"
    return None


def corrected_reference(counts: AttributeCounts, correction: Correction) -> ReferenceShares:
    """The training shares that corrected shares are compared with: those of the annotations.

    If only some training faces are annotated, these may differ from the others; the reference is then the labels of
    all training faces, corrected with the same error rates.
    """
    if not counts.is_fully_annotated:
        reference = counts.correct_reference()
        return ReferenceShares(reference.shares, reference.bootstrap_shares)
    return annotated_reference(counts, replicates=len(correction.bootstrap_shares))


def annotated_reference(counts: AttributeCounts, *, replicates: int = REPLICATES) -> ReferenceShares:
    """The shares of the annotated training images, with replicates of them as a sample."""
    shares, n = normalize(counts.annotated), round(counts.annotated.sum())
    generator = np.random.default_rng([SEED, 2])
    return ReferenceShares(shares, resample_shares(generator, shares, n=n, replicates=replicates))


def verdict(low: float, high: float, *, other_ratio: float) -> str:
    """The verdict on a ratio of generated to training shares by its interval: preserved, amplified or reduced.

    It is `inconclusive` if the interval is too wide (lack of data is never "fair"), or if the ratio of the other
    estimate contradicts it: a change that only the correction shows may be due to the correction, and one that only
    the raw labels show may be due to their errors.
    """
    if low >= PRESERVED[0] and high <= PRESERVED[1]:
        return "preserved" if PRESERVED[0] <= other_ratio <= PRESERVED[1] else "inconclusive"
    if low > 1:
        return "amplified" if other_ratio > 1 else "inconclusive"
    return "reduced" if high < 1 and other_ratio < 1 else "inconclusive"


def normalize(counts: np.ndarray) -> np.ndarray:
    """Counts [K] divided by their sum; NaN if it is 0."""
    total = counts.sum()
    return counts / total if total else np.full(len(counts), np.nan)


def divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a / b, without warnings about division by 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return a / b
