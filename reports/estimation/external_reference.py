"""Comparison with an external reference: the shares of a census, a user base or another data set, or equal shares.

The reference was not labelled by the labeller, whose errors therefore don't cancel in a ratio: verdicts are based on
corrected shares wherever there are any.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import polars as pl

from reports.estimation.attribute_estimate import (
    SEED,
    AttributeEstimate,
    AuditedSides,
    Ratios,
    ReferenceShares,
    audited_ratios,
    divide,
    verdict,
)
from reports.estimation.correction import resample_shares
from reports.estimation.estimate_rows import Rows, SharesWithInterval, rows_from_columns
from reports.estimation.intervals import pearson_p, ratio_interval, two_sided_p, wilson
from shards.atomic_io import check_regular, file_sha256, read_bytes, remove_files
from shards.attributes import AttributeTable
from shards.documents import ReferenceDocument, check_files, read_document
from shards.errors import FairfaceError
from shards.replacement import replace_described_files
from shards.workspace import Workspace

REFERENCE_COLUMNS = ("attribute", "group", "share")
TOLERANCE = 0.02  # of the sum of an attribute's shares, which may be rounded: they are scaled to a sum of 1
EQUAL = "equal shares"  # the baseline if there are neither training images nor a reference
VERDICTS = {"preserved": "similar", "amplified": "over", "reduced": "under", "inconclusive": "inconclusive"}
REFERENCE_SCHEMA = {
    **dict.fromkeys(("run", "attribute", "group", "baseline", "estimate"), pl.String),
    **dict.fromkeys(("n", "count"), pl.Int64),
    **dict.fromkeys(("share", "share_low", "share_high"), pl.Float64),
    **dict.fromkeys(("reference", "reference_low", "reference_high"), pl.Float64),
    "reference_n": pl.Int64,
    **dict.fromkeys(("ratio", "ratio_low", "ratio_high"), pl.Float64),
    "verdict": pl.String,
    "significant": pl.Boolean,
}


@dataclass(frozen=True)
class ExternalShares:
    """The shares of one attribute's groups in a reference."""

    baseline: str  # the name of the file, or EQUAL
    shares: Mapping[str, float]  # by group; a group that is not listed has none
    n: int | None = None  # people that the shares are based on; None: the shares are exact


@dataclass(frozen=True)
class Reference:
    """The shares in a CSV file."""

    name: str  # of the file
    attributes: dict[str, ExternalShares]
    notes: list[str] = field(default_factory=list)  # on attributes whose shares were scaled


def keep_reference(
    workspace: Workspace, path: Path, *, attributes: AttributeTable, replaces_training: bool = False
) -> Reference:
    """Copy a CSV of reference shares into a workspace, where every later report finds it.

    If it `replaces_training`, later reports compare the samples with it instead of with the training images.

    Raises FairfaceError, and copies nothing, if the file is not a valid reference.
    """
    reference = parse_reference(read_reference_csv(path), path, attributes)
    content, copy = read_bytes(path), workspace.reference
    replace_described_files(
        workspace.reference_document,
        {copy: lambda file: file.write(content)},
        describe=lambda files: ReferenceDocument(
            name=path.name, sha256=file_sha256(path), files=files, replaces_training=replaces_training
        ),
    )
    return reference


def discard_reference(workspace: Workspace) -> None:
    """Remove the copy of a reference, so that later reports do without one."""
    remove_files([workspace.reference_document, workspace.reference])


def find_reference(workspace: Workspace, attributes: AttributeTable) -> Reference | None:
    """The reference that was copied into a workspace; None without one. Raises FairfaceError if it is damaged."""
    document = read_document(workspace.reference_document, ReferenceDocument)
    if document is None:
        return None
    check_files(workspace.root, document, document.files)
    reference = parse_reference(read_reference_csv(workspace.reference), workspace.reference, attributes)
    shares = {name: replace(item, baseline=document.name) for name, item in reference.attributes.items()}
    return Reference(document.name, shares, reference.notes)


def read_reference_csv(path: Path) -> pl.DataFrame:
    """Read a CSV with all values as text. Raises FairfaceError if that fails."""
    if not path.exists():
        raise FairfaceError(f"--reference {path}: there is no such file")
    try:
        check_regular(path)
        path.name.encode()
        return pl.read_csv(path, infer_schema=False, glob=False)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, UnicodeError) as error:
        reason = (str(error).splitlines() or [""])[0][:200]
        raise FairfaceError(f"--reference {path} can't be read as CSV ({reason})") from error


def parse_reference(table: pl.DataFrame, path: Path, attributes: AttributeTable) -> Reference:
    """The shares in a table with the columns attribute, group, share and, optionally, n.

    Shares that add up to nearly 1 are scaled. Raises FairfaceError for missing columns, unknown or repeated groups,
    invalid shares or numbers of people, and shares of an attribute that don't add up to 1.
    """
    by_attribute: dict[str, dict[str, float]] = {}
    sizes: dict[str, set[int | None]] = {}
    for number, row in enumerate(reference_columns(table, path).iter_rows(named=True), 2):
        place, attribute, group = f"{path}, line {number}", row["attribute"], row["group"]
        if attribute not in attributes:
            raise FairfaceError(
                f"{place}: there is no attribute {attribute[:80]!r}; choose from {', '.join(attributes)}"
            )
        if group not in attributes[attribute].names:
            names = ", ".join(attributes[attribute].names[:20])
            raise FairfaceError(f"{place}: {attribute} has no group {group[:80]!r}; choose from {names}")
        shares = by_attribute.setdefault(attribute, {})
        if group in shares:
            raise FairfaceError(f"{place}: the share of {attribute} {group} is listed twice")
        shares[group] = parse_share(row["share"], place)
        sizes.setdefault(attribute, set()).add(parse_size(row.get("n", ""), place))
    if not by_attribute:
        raise FairfaceError(f"{path} has no shares")
    scaled, notes = {}, []
    for attribute, shares in by_attribute.items():
        scaled[attribute] = scale_shares(shares, sizes[attribute], attribute=attribute, path=path)
        if abs((total := sum(shares.values())) - 1) > 1e-9:
            notes.append(
                f"the shares of {attribute} in {path.name} add up to {total:.4g} and were scaled to a sum of 1"
            )
    return Reference(path.name, scaled, notes)


def reference_columns(table: pl.DataFrame, path: Path) -> pl.DataFrame:
    """The table with lower-case column names, and without leading and trailing spaces in its values.

    Raises FairfaceError for missing or repeated columns.
    """
    columns = [name.strip().lower() for name in table.columns]
    if repeated := [name for name in columns if columns.count(name) > 1]:
        raise FairfaceError(f"{path} has two columns {repeated[0][:80]!r}")
    table = table.rename(dict(zip(table.columns, columns, strict=True)))
    if missing := [name for name in REFERENCE_COLUMNS if name not in table.columns]:
        names = ", ".join(REFERENCE_COLUMNS)
        raise FairfaceError(f"{path} has no column {missing[0]}: the columns are {names} and, optionally, n")
    return table.select(pl.col(name).str.strip_chars().fill_null("") for name in table.columns)


def scale_shares(shares: Mapping[str, float], sizes: set[int | None], *, attribute: str, path: Path) -> ExternalShares:
    """An attribute's shares, scaled to a sum of 1; `sizes` are the distinct numbers of people in its rows.

    Raises FairfaceError if the sum is not approximately 1, or if the numbers of people differ.
    """
    total = sum(shares.values())
    if abs(total - 1) > TOLERANCE:
        raise FairfaceError(f"{path}: the shares of {attribute} add up to {total:.4g} instead of 1")
    if len(sizes) > 1:
        raise FairfaceError(f"{path}: n, the number of people behind all shares of {attribute}, differs between rows")
    (size,) = sizes
    return ExternalShares(path.name, {group: share / total for group, share in shares.items()}, size)


def parse_share(text: str, place: str) -> float:
    """A share. Raises FairfaceError for anything else."""
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 <= share <= 1 + TOLERANCE:
        raise FairfaceError(f"{place}: {text[:40]!r} is not a share between 0 and 1")
    return share


def parse_size(text: str, place: str) -> int | None:
    """A number of people; None where there is none. Raises FairfaceError for anything else."""
    if not text:
        return None
    try:
        size = float(text)
    except ValueError:
        size = math.nan
    if not (1 <= size < 2**53 and size.is_integer()):
        raise FairfaceError(f"{place}: n is {text[:40]!r} instead of a whole number of people")
    return int(size)


def equal_shares(groups: Sequence[str]) -> ExternalShares:
    """Equal shares of all groups."""
    return ExternalShares(EQUAL, dict.fromkeys(groups, 1 / len(groups)))


def reference_rows(estimate: AttributeEstimate, run: str, external: ExternalShares) -> Rows:
    """Rows of `reference_estimates`, with `p` instead of `significant`, which depends on all attributes together.

    The generated shares are those of the better estimate, and their intervals include those of the corrected one.
    """
    counts = estimate.counts
    n = counts.count.sum()
    q = np.array([external.shares.get(group, 0.0) for group in counts.groups])
    reference = SharesWithInterval(q, *(wilson(q * external.n, external.n) if external.n else (q, q)))
    generated = SharesWithInterval(estimate.shares, *wilson(counts.count, n))
    ratios = raw_ratios(estimate, generated, q=q, m=external.n)
    if estimate.corrected:
        correction = estimate.corrected.generated
        corrected = SharesWithInterval(correction.shares, *correction.interval())
        ratios = corrected_ratios(estimate, ratios, q=q, m=external.n)
        generated = generated.extended(corrected) if estimate.best_estimate == "raw" else corrected
    if estimate.audited and estimate.best_estimate == "audited":
        powered = estimate.audited.generated.powered
        generated = SharesWithInterval(powered.shares, *powered.interval())
        replicates = reference_replicates(q, m=external.n, count=len(powered.bootstrap_shares))
        ratios = audited_ratios(AuditedSides(estimate.audited.generated, ReferenceShares(q, replicates)))
    ends = zip(ratios.low, ratios.high, ratios.other_ratio, strict=True)
    verdicts = [verdict(low, high, other_ratio=other) for low, high, other in ends]
    columns = {
        "run": run,
        "attribute": counts.attribute,
        "group": counts.groups,
        "baseline": external.baseline,
        "estimate": estimate.best_estimate,
        "n": round(n),
        "count": np.round(counts.count),
        **generated.columns("share"),
        **reference.columns("reference"),
        "reference_n": external.n,
        "ratio": ratios.ratio,
        "ratio_low": ratios.low,
        "ratio_high": ratios.high,
        "verdict": [VERDICTS[item] if n else "inconclusive" for item in verdicts],
        "p": ratios.p,
    }
    return rows_from_columns(columns, len(counts.groups))


def raw_ratios(estimate: AttributeEstimate, generated: SharesWithInterval, *, q: np.ndarray, m: int | None) -> Ratios:
    """Ratios of raw shares to the reference shares `q`, [K], which are exact or based on `m` people.

    The intervals are Wilson's or, if the reference is a sample of `m` people, Koopman's.
    """
    count = estimate.counts.count
    n, smallest = count.sum(), smallest_share(estimate, m)
    if m:
        people = np.full_like(q, m)
        low, high = ratio_interval(count, n, y=q * m, m=people)
        high = np.where(np.isfinite(high), high, generated.high / np.maximum(q, smallest))
        p = pearson_p(count, np.full_like(q, n), y=q * m, m=people)
    else:
        low, high = (end / np.maximum(q, smallest) for end in (generated.low, generated.high))
        p = two_sided_p(np.nan_to_num(generated.shares - q), np.where(n > 0, q * (1 - q) / max(n, 1), 0))
    ratio = divide(generated.shares, q)
    return Ratios(ratio, low, high, ratio, p)


def corrected_ratios(estimate: AttributeEstimate, raw: Ratios, *, q: np.ndarray, m: int | None) -> Ratios:
    """Ratios of the better estimate's shares to the reference shares `q`, [K], exact or based on `m` people.

    The intervals come from the bootstrap replicates of both sides, and are extended to contain the ratio or, where the
    labeller's confidence has shifted, the `raw` interval.
    """
    assert estimate.corrected
    correction = estimate.corrected.generated
    replicates = reference_replicates(q, m=m, count=len(correction.bootstrap_shares))
    bootstrap = correction.bootstrap_shares / np.maximum(replicates, smallest_share(estimate, m))
    low, high = np.quantile(bootstrap, [0.025, 0.975], axis=0)
    variance = correction.bootstrap_shares.var(0) + replicates.var(0)
    p = np.maximum(raw.p, two_sided_p(correction.shares - q, variance))
    ratio, other = divide(correction.shares, q), raw.ratio
    if estimate.best_estimate == "raw":
        ratio, other = other, ratio
    if estimate.counts.is_shifted:
        low, high = np.fmin(low, raw.low), np.fmax(high, raw.high)
    low, widened = np.fmin(low, ratio), np.fmax(high, ratio)
    return Ratios(ratio, low, np.where(np.isfinite(widened), widened, high), other, p)


def reference_replicates(q: np.ndarray, *, m: int | None, count: int) -> np.ndarray:
    """Replicates, [count, K], of the reference shares `q`, [K], exact or based on `m` people."""
    return resample_shares(np.random.default_rng([SEED, 3]), q, n=m, replicates=count) if m else np.tile(q, (count, 1))


def smallest_share(estimate: AttributeEstimate, m: int | None) -> float:
    """The share that stands for 0 in a reference of `m` people: half a person, which keeps the ratio finite."""
    return 0.5 / (m or max(estimate.counts.count.sum(), 1))
