"""Rows of the tables of estimates from an attribute's estimate."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from reports.estimation import distances
from reports.estimation.attribute_estimate import AttributeEstimate, ReferenceShares, divide, normalize
from reports.estimation.audit.shares import SharesEstimate
from reports.estimation.correction import Correction, project_to_simplex, resample_shares, solve_shares
from reports.estimation.intervals import wilson

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class SharesWithInterval:
    """Shares with the ends of their 95 % intervals, [K] each."""

    shares: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def columns(self, name: str) -> dict[str, np.ndarray]:
        return {name: self.shares, f"{name}_low": self.low, f"{name}_high": self.high}

    def extended(self, other: "SharesWithInterval") -> "SharesWithInterval":
        """These shares with intervals that include the other's."""
        return SharesWithInterval(self.shares, np.minimum(self.low, other.low), np.maximum(self.high, other.high))


def estimate_rows(estimate: AttributeEstimate, run: str) -> Rows:
    """Rows of `estimates`, with `p` instead of `significant`, which depends on all attributes together."""
    counts, ratios = estimate.counts, estimate.ratios
    n, m = counts.count.sum(), counts.reference.sum()
    raw = SharesWithInterval(estimate.shares, *wilson(counts.count, n))
    reference = SharesWithInterval(estimate.reference_shares, *wilson(counts.reference, m))
    nothing = SharesWithInterval(*np.full((3, len(counts.groups)), np.nan))
    corrected, best, best_reference, best_reference_n = nothing, raw, reference, m
    if estimate.corrected:
        correction = estimate.corrected.generated
        corrected = SharesWithInterval(correction.shares, *correction.interval())
        best = raw.extended(corrected)
    if estimate.best_estimate == "corrected":
        best = corrected
        best_reference, best_reference_n = corrected_reference_columns(estimate)
    human, audited = audited_columns(estimate) or (nothing, nothing)
    if estimate.best_estimate == "audited":
        best = audited
        best_reference, best_reference_n = audited_reference_columns(estimate) or (reference, m)
    indices = range(len(counts.groups))
    columns = {
        "run": run,
        "attribute": counts.attribute,
        "group": counts.groups,
        "method": counts.method,
        "n": round(n),
        "count": np.round(counts.count),
        **raw.columns("share"),
        "reference_n": round(m),
        "reference_count": np.round(counts.reference),
        **reference.columns("reference"),
        **corrected.columns("corrected"),
        "annotated": normalize(counts.annotated),
        "best_estimate": estimate.best_estimate,
        "correction_note": estimate.correction_note,
        "strata": ",".join(counts.strata) if estimate.corrected else "",
        "is_shifted": counts.is_shifted,
        "unsure": round(counts.unsure),
        **best.columns("best_share"),
        **best_reference.columns("best_reference"),
        "best_reference_n": round(best_reference_n),
        "ratio": ratios.ratio,
        "ratio_low": ratios.low,
        "ratio_high": ratios.high,
        "verdict": estimate.verdicts,
        "inconclusive_reason": [estimate.inconclusive_reason(group) for group in indices],
        "p": ratios.p,
        "n_needed": [estimate.n_needed(group) for group in indices],
        **human.columns("human"),
        **audited.columns("audited"),
        "labels_needed": [estimate.labels_needed(group) for group in indices],
        "unaudited_verdict": replace(estimate, audited=None).verdicts if estimate.audited else None,
    }
    if estimate.audited:
        generated = estimate.audited.generated
        bounds = dict(zip(("audited_least", "audited_most"), generated.bounds(), strict=True))
        columns |= {
            "labels": int(generated.faces.is_classified.sum()),
            "tuned_weight": generated.tuned_weight,
            **bounds,
        }
    return rows_from_columns(columns, len(counts.groups))


def audited_columns(estimate: AttributeEstimate) -> tuple[SharesWithInterval, SharesWithInterval] | None:
    """The shares by people's labels alone, and by PPI++; None without an audit."""
    if not estimate.audited:
        return None
    generated = estimate.audited.generated
    human, powered = (
        SharesWithInterval(item.shares, *item.interval()) for item in (generated.human, generated.powered)
    )
    return human, powered


def audited_reference_columns(estimate: AttributeEstimate) -> tuple[SharesWithInterval, float] | None:
    """The reference of shares by people's labels with its interval, and its training faces; None without any."""
    if not estimate.audited or not estimate.audited.reference:
        return None
    reference, counts = estimate.audited.reference, estimate.counts
    n = counts.annotated.sum() if counts.is_fully_annotated else counts.reference.sum()
    return SharesWithInterval(reference.shares, *reference.interval()), n


def corrected_reference_columns(estimate: AttributeEstimate) -> tuple[SharesWithInterval, float]:
    """The reference of corrected shares with its interval, and the number of faces behind it."""
    counts = estimate.counts
    if counts.is_fully_annotated:
        total = counts.annotated.sum()
        return SharesWithInterval(normalize(counts.annotated), *wilson(counts.annotated, total)), total
    assert estimate.corrected
    reference = estimate.corrected.reference
    return SharesWithInterval(reference.shares, *reference.interval()), counts.reference.sum()


def method_estimate_rows(estimate: AttributeEstimate, run: str, *, labeller: str, is_selected: bool) -> Rows:
    """Rows of `method_estimates`: the raw shares and, if there are any, corrected ones and those by people's labels."""
    counts = estimate.counts
    raw = SharesWithInterval(estimate.shares, *wilson(counts.count, counts.count.sum()))
    estimates = [("raw", raw, estimate.reference_shares)]
    if estimate.corrected:
        correction = estimate.corrected.generated
        corrected = SharesWithInterval(correction.shares, *correction.interval())
        estimates.append(("corrected", corrected, estimate.corrected.reference.shares))
    if audited := audited_columns(estimate):
        columns_of_reference = audited_reference_columns(estimate)
        shares = columns_of_reference[0].shares if columns_of_reference else np.full(len(counts.groups), np.nan)
        estimates += [(name, item, shares) for name, item in zip(("human", "audited"), audited, strict=True)]
    rows = []
    for name, generated, reference in estimates:
        columns = {
            "run": run,
            "attribute": counts.attribute,
            "group": counts.groups,
            "method": counts.method,
            "labeller": labeller,
            "estimate": name,
            "share": generated.shares,
            "low": generated.low,
            "high": generated.high,
            "reference": reference,
            "ratio": divide(generated.shares, reference),
            "used": is_selected and name == estimate.best_estimate,
        }
        rows += rows_from_columns(columns, len(counts.groups))
    return rows


def distance_rows(estimate: AttributeEstimate, run: str, *, seed: int) -> Rows:
    """Rows of `distances`: of the shares by every estimate, from the reference and from equal shares."""
    counts, rows = estimate.counts, []
    n, equal_shares = round(counts.count.sum()), np.full(len(counts.groups), 1 / len(counts.groups))
    for name in ("raw", "corrected") if estimate.corrected else ("raw",):
        shares, reference, reference_n = estimate.shares, estimate.reference_shares, round(counts.reference.sum())
        if name == "corrected" and estimate.corrected:
            shares, reference = estimate.corrected.generated.shares, estimate.corrected.reference.shares
            if counts.is_fully_annotated:
                reference_n = round(counts.annotated.sum())
        for baseline, q, size in (("reference", reference, reference_n), ("uniform", equal_shares, None)):
            if not counts.count.sum() or size == 0:
                continue
            generator = np.random.default_rng(seed)
            sampler, replicates = distances.count_sampler(n, size, generator=generator), distances.REPLICATES
            if name == "corrected" and estimate.corrected:
                correction = estimate.corrected.generated
                sampler = corrected_sampler(correction, round(counts.count.sum()), size, generator=generator)
                replicates = distances.CORRECTED_REPLICATES
            about = {"run": run, "attribute": counts.attribute, "estimate": name, "baseline": baseline}
            measured = distances.distance_rows(shares, q, sampler=sampler, replicates=replicates)
            rows += [about | row for row in measured]
    return rows + audited_distance_rows(estimate, run, seed=seed)


def audited_distance_rows(estimate: AttributeEstimate, run: str, *, seed: int) -> Rows:
    """Rows of `distances` of the shares by people's labels."""
    if not estimate.audited:
        return []
    powered, reference = estimate.audited.generated.powered, estimate.audited.reference
    equal_shares, rows = np.full(len(powered.shares), 1 / len(powered.shares)), []
    for baseline, other in (("reference", reference), ("uniform", None)):
        if baseline == "reference" and other is None:
            continue
        q = equal_shares if other is None else other.shares
        sampler = audited_sampler(powered, other, generator=np.random.default_rng(seed))
        about = {"run": run, "attribute": estimate.counts.attribute, "estimate": "audited", "baseline": baseline}
        measured = distances.distance_rows(
            powered.shares, q, sampler=sampler, replicates=distances.CORRECTED_REPLICATES
        )
        rows += [about | row for row in measured]
    return rows


def audited_sampler(
    powered: SharesEstimate, reference: ReferenceShares | None, *, generator: np.random.Generator
) -> distances.Sampler:
    """A sampler of shares with the errors of those by people's labels, and of the `reference`; None is exact."""
    errors = powered.bootstrap_shares - powered.bootstrap_shares.mean(0)

    def sample(mixtures: np.ndarray, replicates: int) -> tuple[np.ndarray, np.ndarray]:
        chosen = generator.integers(len(errors), size=(len(mixtures), replicates))
        shares = project_to_simplex(mixtures[:, None] + errors[chosen])
        if reference is None:
            return shares, mixtures[0]
        others = reference.bootstrap_shares - reference.bootstrap_shares.mean(0)
        chosen = generator.integers(len(others), size=(len(mixtures), replicates))
        return shares, project_to_simplex(mixtures[0] + others[chosen])

    return sample


def corrected_sampler(
    correction: Correction, n: int, reference_n: int | None, *, generator: np.random.Generator
) -> distances.Sampler:
    """Resamples corrected shares of `n` labels, and `reference_n` reference faces.

    Error rates are replicates of C; those of a stratified correction include the uncertainty of the mix of the strata.
    """

    def sample(mixtures: np.ndarray, replicates: int) -> tuple[np.ndarray, np.ndarray]:
        shares = np.empty((len(mixtures), replicates, mixtures.shape[1]))
        for i, mixture in enumerate(mixtures):
            chosen = generator.integers(len(correction.bootstrap_matrices), size=replicates)
            observed = resample_shares(generator, mixture @ correction.matrix, n=n, replicates=replicates)
            shares[i] = solve_shares(correction.bootstrap_matrices[chosen], observed)
        if reference_n is None:
            return shares, mixtures[0]
        return shares, generator.multinomial(reference_n, mixtures[0], size=shares.shape[:2]) / reference_n

    return sample


def rows_from_columns(columns: dict[str, Any], count: int) -> Rows:
    """`count` rows from columns, each with one value for all rows or a list of `count` values."""
    repeated = {k: v if isinstance(v, list | np.ndarray) else [v] * count for k, v in columns.items()}
    return [{name: finite_or_none(values[i]) for name, values in repeated.items()} for i in range(count)]


def finite_or_none(value: Any) -> Any:
    """The value as a Python object; None for a number that is not finite, such as a share of no images."""
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value
