"""Adds the shares by an audit to an attribute's estimate, and makes the rows of the audit's own tables."""

from dataclasses import replace

import numpy as np

from reports.estimation.attribute_estimate import (
    AttributeEstimate,
    AuditedSides,
    ReferenceShares,
    annotated_reference,
)
from reports.estimation.audit.agreement import measure_agreement
from reports.estimation.audit.labeller_errors import compare_errors
from reports.estimation.audit.looks import widen_audit
from reports.estimation.audit.read import Audit
from reports.estimation.audit.shares import NO_ANSWER, AuditedFaces, AuditEstimate, estimate_audit
from reports.estimation.estimate_rows import Rows, finite_or_none, rows_from_columns
from shards.attributes import UNSURE

AUDIT_SEED = 4  # of the bootstrap of people's labels
SIDE_SEEDS = {"generated": AUDIT_SEED, "train": 5}  # the errors of the sides are independent


def add_audit(estimate: AttributeEstimate, audit: Audit) -> AttributeEstimate:
    """The estimate with the shares by people's labels, if the audit has any of its attribute."""
    attribute = estimate.counts.attribute
    faces = audit.faces.get(("generated", attribute))
    if faces is None or faces.classes != len(estimate.counts.groups):
        return estimate
    generated = estimate_side(audit, "generated", faces)
    return replace(estimate, audited=AuditedSides(generated, audited_reference(estimate, audit)))


def estimate_side(audit: Audit, source: str, faces: AuditedFaces) -> AuditEstimate:
    """The shares of one side; with the intervals of a confidence sequence if people looked more than once."""
    estimate = estimate_audit(faces, seed=SIDE_SEEDS[source])
    return widen_audit(estimate, planned=audit.first[source]) if audit.looks > 1 else estimate


def audited_reference(estimate: AttributeEstimate, audit: Audit) -> ReferenceShares | None:
    """The shares that those by people's labels are compared with: by people's labels as well, or by the annotations.

    If only some training images are annotated, these are the corrected shares of their labels. None if training images
    are neither annotated nor audited: the labeller's labels alone are not comparable with people's.
    """
    counts = estimate.counts
    faces = audit.faces.get(("train", counts.attribute))
    if faces is not None and faces.classes == len(counts.groups):
        shares = estimate_side(audit, "train", faces).powered
        return ReferenceShares(shares.shares, shares.bootstrap_shares, audited=shares)
    if counts.is_fully_annotated and counts.annotated.sum():
        return annotated_reference(counts)
    return estimate.corrected.reference if estimate.corrected else None


def audit_rows(estimate: AttributeEstimate, run: str, audit: Audit) -> Rows:
    """Rows of `audit`: a summary of people's answers about one attribute, on each side."""
    counts = estimate.counts
    rows: Rows = []
    for source in audit.plan.sides:
        faces = audit.faces.get((source, counts.attribute))
        if faces is None:
            continue
        agreement = measure_agreement(faces.ratings, classes=faces.classes, seed=AUDIT_SEED)
        raters = (faces.ratings != NO_ANSWER).any(0)
        p = compare_errors(faces, counts.confusion, seed=AUDIT_SEED).p if counts.confusion.any() else np.nan
        ends = {
            f"{name}{end}": value
            for name, values in (
                ("alpha_nominal", agreement.nominal),
                ("alpha_ordinal", agreement.ordinal),
                ("same", agreement.same),
                ("close", agreement.close),
            )
            for end, value in zip(("", "_low", "_high"), values, strict=True)
        }
        row = {
            "run": run,
            "attribute": counts.attribute,
            "source": source,
            "design": audit.plan.design,
            "looks": audit.looks,
            "planned": len(faces.ratings),
            "answered": int(faces.is_answered.sum()),
            "classified": int(faces.is_classified.sum()),
            "cant_tell": faces.cant_tell,
            "raters": int(raters.sum()),
            "rated_twice": agreement.faces,
            **ends,
            "errors_p": p,
        }
        rows.append({name: finite_or_none(value) for name, value in row.items()})
    return rows


def audit_confusion_rows(estimate: AttributeEstimate, run: str, audit: Audit) -> Rows:
    """Rows of `audit_confusion`: the labeller's labels by the class that people see, on samples and photographs."""
    counts = estimate.counts
    rows: Rows = []
    faces = audit.faces.get(("generated", counts.attribute))
    if faces is None or faces.classes != len(counts.groups):
        return rows
    errors = compare_errors(faces, counts.confusion, seed=AUDIT_SEED)
    labels = [*counts.groups, UNSURE]
    with np.errstate(invalid="ignore"):
        photographs = errors.photographs / errors.photographs.sum(1, keepdims=True)
    for i, group in enumerate(counts.groups):
        columns = {
            "run": run,
            "attribute": counts.attribute,
            "seen": group,
            "labelled": labels,
            "faces": errors.counts[i],
            "share": errors.rates[i],
            "share_low": errors.low[i],
            "share_high": errors.high[i],
            "photographs": np.round(errors.photographs[i]),
            "photographs_share": photographs[i],
        }
        rows += rows_from_columns(columns, len(labels))
    return [row for row in rows if row["labelled"] != UNSURE or row["faces"] or row["photographs"]]
