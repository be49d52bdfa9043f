"""How often a detector calls a generator's samples fake, by group, corrected for labelling errors.

Counted by a labeller's labels, each group's rate is a mixture: women whom it takes for men count as men, so that groups
look more alike than they are. Here a group's rate is the number of its faces that are called fake over the number of
all its faces. Both follow from the groups' estimated shares of the faces that are called fake, and of the others.

By labels, both are corrected with the same error rates (`correction`, `stratified`). This assumes that within a group
the labeller errs as often on faces that the detector calls fake as on the others; errors that depend on what the
detector looks at violate this. By people's labels (`audit.shares`), nothing is assumed: every combination of a group
and a decision is a class of its own, and each labelled face belongs to one.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
import polars as pl

import sql
from reports.estimation import unsure as unsure_labels
from reports.estimation.attribute_estimate import AttributeCounts, AttributeEstimate
from reports.estimation.audit.looks import widen, width_factor
from reports.estimation.audit.read import LEAST_FACES as LEAST_AUDITED
from reports.estimation.audit.read import Audit
from reports.estimation.audit.shares import NO_ANSWER, AuditedFaces, estimate_audit
from reports.estimation.calibration import class_codes
from reports.estimation.correction import Correction, solve_shares
from reports.estimation.detection.interval_columns import interval_columns
from reports.estimation.estimate_rows import Rows, finite_or_none
from shards.attributes import AttributeTable

REPLICATES = 400  # of the bootstrap
# Faces of each label and decision that are added in the replicates: with a perfect labeller, the intervals are
# Jeffreys', which has a width even where all faces of a group are called fake. Brown, Cai and DasGupta, Statist. Sci.
# 16 (2001) 101-133.
PRIOR_FACES = 0.5
# The factor by which the bootstrap's intervals of corrected labels are widened. Where the mix of the classes of real
# faces shifted, they covered the true rates in only 91 to 92 % of cases without it, but in 94 to 95 % with it; in
# simulated worlds, in 94 to 95 % and 96 to 97 % (`fairface bench estimates`).
WIDENING = 1.15
LEAST_FACES = 10  # of a group, by its estimated share: smaller groups are excluded from gaps
SEED = 6  # of the bootstrap
SHIFTED = "the labeller's confidence differs between samples and photographs"
NO_KEYS = pl.Series("key", [], pl.String)
SCHEMA = {
    **dict.fromkeys(("run", "detector", "attribute", "group", "correction", "note"), pl.String),
    **dict.fromkeys(("rate", "low", "high", "floor"), pl.Float64),
}


@dataclass(frozen=True)
class RateEstimate:
    """The rates of K groups, and replicates from which their intervals follow."""

    rates: np.ndarray  # float64 [K]; NaN for a group without faces
    bootstrap_rates: np.ndarray  # float64 [replicates, K]
    low_rates: np.ndarray  # [replicates, K], for lower ends
    high_rates: np.ndarray  # [replicates, K], for upper ends
    faces: np.ndarray  # estimated number of each group, float64 [K]

    def interval(self) -> tuple[np.ndarray, np.ndarray]:
        """The ends of the 95 % intervals, [K] each."""
        low, high = np.quantile(self.low_rates, 0.025, axis=0), np.quantile(self.high_rates, 0.975, axis=0)
        return np.fmin(low, self.rates), np.fmax(high, self.rates)

    def gap(self) -> dict[str, float | None]:
        """The largest difference between two groups: value, low, high and floor, as in `detection_metrics`.

        The floor is the 95th percentile of the largest difference between the errors of two groups' rates. Groups with
        fewer than LEAST_FACES faces are excluded; all values are None if fewer than two remain.
        """
        compared = self.faces >= LEAST_FACES
        if compared.sum() < 2:
            return dict.fromkeys(("value", "low", "high", "floor"))
        rates, bootstrap = self.rates[compared], self.bootstrap_rates[:, compared]
        errors = (self.high_rates[:, compared] - rates).max(1) - (self.low_rates[:, compared] - rates).min(1)
        return interval_columns(float(np.ptp(rates)), np.ptp(bootstrap, axis=1), null=errors)


def rates_by_labels(
    counts: np.ndarray, correction: Correction | None, *, widening: float = WIDENING, seed: int = SEED
) -> RateEstimate:
    """Estimate the rates from the labels of the faces: [2, L], not called fake and called fake, L = K or K + 1.

    The last of K + 1 labels is that of faces without a sure label, which have a decision but no group. `correction` is
    that of the shares of all samples; without it, labels are counted as they are.

    The joint bootstrap varies the faces, with gamma-distributed weights as in the Bayesian bootstrap, and the error
    rates.
    """
    classes = len(correction.shares) if correction else counts.shape[1]
    generator = np.random.default_rng(seed)
    joint = joint_shares(counts, correction.matrix if correction else None, classes=classes)
    weights = generator.standard_gamma(counts + PRIOR_FACES, size=(REPLICATES, *counts.shape))
    matrices = np.resize(correction.bootstrap_matrices, (REPLICATES, classes, classes)) if correction else None
    bootstrap = joint_shares(weights, matrices, classes=classes)
    # no combination of a group and a decision is known to be empty
    n = counts.sum()
    bootstrap = np.where(n * bootstrap >= 0.5, bootstrap, generator.beta(1, max(n, 1), size=bootstrap.shape))
    rates, replicates = divide_shares(joint), divide_shares(bootstrap)
    if correction:
        replicates = np.clip(rates + widening * (replicates - rates), 0, 1)
    return RateEstimate(rates, replicates, replicates, replicates, n * joint.sum(0))


def joint_shares(counts: np.ndarray, matrix: np.ndarray | None, *, classes: int) -> np.ndarray:
    """The shares of the groups among all faces, by decision, [.., 2, K], from counts of labels, [.., 2, L].

    `matrix`, [.., K, K], has the rates of labels by group; without it every label is right.
    """
    decided = counts.sum(-1, keepdims=True)
    sure = counts[..., :classes]
    total = sure.sum(-1, keepdims=True)
    # a decision without any sure label: its faces are of all groups alike
    observed = np.where(total > 0, sure / np.maximum(total, 1e-300), 1 / classes)
    shares = observed if matrix is None else solve_shares(matrix[..., None, :, :], observed)
    joint: np.ndarray = shares * decided / decided.sum(-2, keepdims=True)
    return joint


def divide_shares(joint: np.ndarray) -> np.ndarray:
    """The rates of the groups, [.., K], from their shares by decision, [.., 2, K]; NaN for an empty group."""
    total = joint.sum(-2)
    rates: np.ndarray = np.where(total > 0, joint[..., 1, :] / np.maximum(total, 1e-300), np.nan)
    return rates


def rates_by_audit(
    faces: AuditedFaces, called_fake: np.ndarray, *, counts: np.ndarray, factor: float = 1.0, seed: int = SEED
) -> RateEstimate:
    """Estimate the rates from people's labels of the faces whose decisions, `called_fake`, bool [n], are known.

    `counts`, [2, K + 1], are all faces by decision and label, the last for unsure. Intervals are `factor` times as wide
    as those of a plan of a fixed size. Raises ValueError if raters could classify fewer than two faces.
    """
    classes = faces.classes
    offset = classes * called_fake
    is_class = (faces.ratings >= 0) & (faces.ratings < classes)
    others = np.where(faces.ratings == NO_ANSWER, NO_ANSWER, 2 * classes)
    joint = AuditedFaces(
        ratings=np.where(is_class, faces.ratings + offset[:, None], others),
        labels=np.where(faces.labels < classes, faces.labels + offset, 2 * classes),
        strata=faces.strata,
        probability=faces.probability,
        label_counts=np.append(counts[:, :classes].ravel(), counts[:, classes].sum()),
    )
    estimate = widen(estimate_audit(joint, seed=seed).powered, factor)

    def by_decision(shares: np.ndarray) -> np.ndarray:
        return shares.reshape(*shares.shape[:-1], 2, classes)

    low, high = by_decision(estimate.low_shares), by_decision(estimate.high_shares)
    shares = by_decision(estimate.shares)
    lowest, highest = (
        divide_shares(np.stack([one[:, 0], other[:, 1]], axis=1)) for one, other in ((high, low), (low, high))
    )
    return RateEstimate(
        divide_shares(shares),
        np.nan_to_num(divide_shares(by_decision(estimate.bootstrap_shares)), nan=0.5),
        np.nan_to_num(lowest, nan=0.0),
        np.nan_to_num(highest, nan=1.0),
        counts.sum() * shares.sum(0),
    )


def detection_rate_rows(
    connection: duckdb.DuckDBPyConnection,
    run: str,
    *,
    detectors: Collection[str],
    estimates: Collection[AttributeEstimate],
    audit: Audit | None,
    attributes: AttributeTable,
) -> Rows:
    """Rows of `rate_estimates`: the rates of each group of a run's samples, and the gap between the groups.

    `estimates` are those of the run's selected labels. The rates are those by people's labels (correction `audit`) if
    at least LEAST_AUDITED of them are of faces that the detector has classified, otherwise by corrected labels
    (`labels`). If these can't be corrected, or if the labeller's confidence has shifted, the correction is `none`, the
    `note` says why, and only the gap between the labels' groups has a value. The row of a gap has no group, and the
    `floor` that it exceeds in at most 5 % of cases if all groups have the same rate.
    """
    if not detectors:
        return []
    decisions = read_decisions(connection, run)
    decisions = decisions.filter(pl.col("detector").is_in(list(detectors)))
    tabulated = [
        estimate
        for estimate in estimates
        if estimate.counts.attribute in attributes.tabulated
        # labels of classes that the attribute does not have any more have no codes
        and estimate.counts.groups == list(attributes[estimate.counts.attribute].names)
    ]
    labels = {
        method: read_labels(connection, run, method=method, attributes=attributes)
        for method in {estimate.counts.method for estimate in tabulated}
        if len(decisions)
    }
    audited_keys = audit.keys.get("generated", NO_KEYS) if audit else NO_KEYS
    rows: Rows = []
    for (detector,), decided in decisions.group_by("detector", maintain_order=True):
        of_audit = decisions_of(audited_keys, decided)
        of_labels = {method: decisions_of(keys, decided) for method, (keys, _) in labels.items()}
        for estimate in tabulated:
            counts = estimate.counts
            codes = labels[counts.method][1][counts.attribute]
            table = count_decisions(of_labels[counts.method], codes, classes=len(counts.groups))
            if not table[:, :-1].any():
                continue
            rates, correction, note = best_rates(table, estimate, audit=audit, of_audit=of_audit)
            about = {"run": run, "detector": str(detector), "attribute": counts.attribute}
            rows += rate_rows(rates, counts, about | {"correction": correction, "note": note})
    return rows


def best_rates(
    table: np.ndarray, estimate: AttributeEstimate, *, audit: Audit | None, of_audit: np.ndarray
) -> tuple[RateEstimate, str, str | None]:
    """The rates of an attribute's groups, their `correction` and `note`, as in `detection_rate_rows`.

    `table` has the faces by decision and label, [2, K + 1], and `of_audit` the decisions on the audited faces, -1 for
    unknown.
    """
    counts = estimate.counts
    faces = audit.faces.get(("generated", counts.attribute)) if audit else None
    is_decided = of_audit >= 0
    if audit and faces is not None and (faces.is_classified & is_decided).sum() >= LEAST_AUDITED:
        planned, answered = audit.first["generated"], int(faces.is_classified.sum())
        rates = rates_by_audit(
            faces.weighted(is_decided.astype(float)),
            of_audit[is_decided] == 1,
            counts=table,
            factor=width_factor(answered, planned=planned) if audit.looks > 1 else 1.0,
        )
        return rates, "audit", None
    if estimate.corrected and not counts.is_shifted:
        used = table if table[:, -1].any() else table[:, :-1]
        return rates_by_labels(used, estimate.corrected.generated), "labels", None
    return rates_by_labels(table[:, :-1], None), "none", estimate.correction_note or SHIFTED


def read_decisions(connection: duckdb.DuckDBPyConnection, run: str) -> pl.DataFrame:
    """detector, key and called_fake of every sample of a run that a detector was not trained on."""
    text = """select detector, key, calls_fake(logit) as called_fake from raw_predictions
        where source = 'samples' and run = $run and perturbation = 'none' order by detector, key"""
    return sql.select(connection, text, {"run": run})


def read_labels(
    connection: duckdb.DuckDBPyConnection, run: str, *, method: str, attributes: AttributeTable
) -> tuple[pl.Series, dict[str, np.ndarray]]:
    """The keys of a run's samples that a method labelled, and the codes of their labels by attribute, int [N]."""
    columns = unsure_labels.label_columns(attributes, unsure=attributes.labelled)
    text = f"""select key, {columns} from label_rows
        where source = 'generated' and run = $run and method = $method order by key"""
    table = sql.select(connection, text, {"run": run, "method": method})
    return table["key"], class_codes(table, attributes)


def decisions_of(keys: pl.Series, decided: pl.DataFrame) -> np.ndarray:
    """The decisions on the faces `keys`: 1 for called fake, 0 for not, -1 for unknown; int [N]."""
    joined = pl.DataFrame({"key": keys}).join(decided, on="key", how="left", maintain_order="left")
    return joined["called_fake"].cast(pl.Int64).fill_null(-1).to_numpy()


def count_decisions(decisions: np.ndarray, codes: np.ndarray, *, classes: int) -> np.ndarray:
    """Faces by decision and label, int64 [2, K + 1], the last for unsure; those without either are not counted."""
    counts = np.zeros((2, classes + 1), int)
    is_known = (decisions >= 0) & (codes >= 0)
    np.add.at(counts, (decisions[is_known], codes[is_known]), 1)
    return counts


def rate_rows(rates: RateEstimate, counts: AttributeCounts, about: dict[str, Any]) -> Rows:
    """The rows of an attribute's groups, if their rates are corrected, and of the gap between them."""
    low, high = rates.interval()
    groups = zip(counts.groups, rates.rates, low, high, strict=True) if about["correction"] != "none" else ()
    rows = [about | {"group": group, "rate": rate, "low": a, "high": b, "floor": None} for group, rate, a, b in groups]
    gap = rates.gap()
    rows.append(about | {"group": None, "rate": gap.pop("value"), **gap})
    return [{name: finite_or_none(value) for name, value in row.items()} for row in rows]
