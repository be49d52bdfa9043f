"""Shares of generated faces against given ones: a census, a user base, another data set, or equal shares.

Such a reference has not been seen by the labeller, whose errors therefore don't cancel in a ratio: a verdict rests on
corrected shares wherever there are any.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import polars as pl

from reports.estimation.attribute_estimate import SEED, AttributeEstimate, divide, verdict
from reports.estimation.correction import resample_shares
from reports.estimation.estimate_rows import Rows, SharesWithInterval, rows_from_columns
from reports.estimation.intervals import pearson_p, ratio_interval, two_sided_p, wilson
from shards.atomic_io import check_regular, file_sha256, read_bytes, remove_files
from shards.attributes import AttributeTable
from shards.documents import ReferenceDocument, check_files, read_document
from shards.errors import FairfaceError
from shards.replacement import replace_described_files
from shards.workspace import Workspace

COLUMNS = ("attribute", "group", "share")
TOLERANCE = 0.02  # of the sum of an attribute's shares, for rounded ones: they are scaled to 1
EQUAL = "equal shares"  # the baseline where nothing else is known
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
class GivenShares:
    """The shares of one attribute's groups in a reference."""

    baseline: str  # the name of the file, or EQUAL
    shares: Mapping[str, float]  # by group; a group that is not listed has none
    n: int | None = None  # faces or people that they are shares of; None: they are known exactly


@dataclass(frozen=True)
class Reference:
    """A file of given shares."""

    name: str  # of the file
    attributes: dict[str, GivenShares]
    notes: list[str] = field(default_factory=list)  # on attributes whose shares were scaled


def keep_reference(workspace: Workspace, path: Path, attributes: AttributeTable) -> Reference:
    """Copy a CSV of given shares into a workspace, where every later report finds it.

    Raises FairfaceError, and copies nothing, for anything but such a file.
    """
    reference = parse_reference(read_reference_csv(path), path, attributes)
    content, copy = read_bytes(path), workspace.reference
    replace_described_files(
        workspace.reference_document,
        {copy: lambda file: file.write(content)},
        describe=lambda files: ReferenceDocument(name=path.name, sha256=file_sha256(path), files=files),
    )
    return reference


def discard_reference(workspace: Workspace) -> None:
    """Remove the copy of a reference, so that later reports do without."""
    remove_files([workspace.reference_document, workspace.reference])


def find_reference(workspace: Workspace, attributes: AttributeTable) -> Reference | None:
    """The reference that was copied into a workspace; None without one. Raises FairfaceError if it is damaged."""
    document = read_document(workspace.reference_document, ReferenceDocument)
    if document is None:
        return None
    check_files(workspace.root, document, document.files)
    reference = parse_reference(read_reference_csv(workspace.reference), workspace.reference, attributes)
    given = {name: replace(item, baseline=document.name) for name, item in reference.attributes.items()}
    return Reference(document.name, given, reference.notes)


def read_reference_csv(path: Path) -> pl.DataFrame:
    """Read a CSV with all values as text. Raises FairfaceError for anything else."""
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
    """The shares in a table with the columns attribute, group, share and perhaps n.

    Shares that add up to nearly 1 are scaled. Raises FairfaceError for missing columns, unknown or repeated groups,
    what is not a share or a number of people, and shares of an attribute that don't add up to 1.
    """
    columns = [name.strip().lower() for name in table.columns]
    if repeated := [name for name in columns if columns.count(name) > 1]:
        raise FairfaceError(f"{path} has two columns {repeated[0][:80]!r}")
    table = table.rename(dict(zip(table.columns, columns, strict=True)))
    if missing := [name for name in COLUMNS if name not in table.columns]:
        raise FairfaceError(f"{path} has no column {missing[0]}: its columns are {', '.join(COLUMNS)} and perhaps n")
    rows = table.select(pl.col(name).str.strip_chars().fill_null("") for name in table.columns)
    given: dict[str, dict[str, float]] = {}
    sizes: dict[str, set[int | None]] = {}
    for number, row in enumerate(rows.iter_rows(named=True), 2):
        place, attribute, group = f"{path}, line {number}", row["attribute"], row["group"]
        if attribute not in attributes:
            raise FairfaceError(
                f"{place}: there is no attribute {attribute[:80]!r}; choose from {', '.join(attributes)}"
            )
        if group not in attributes[attribute].names:
            names = ", ".join(attributes[attribute].names[:20])
            raise FairfaceError(f"{place}: {attribute} has no group {group[:80]!r}; choose from {names}")
        shares = given.setdefault(attribute, {})
        if group in shares:
            raise FairfaceError(f"{place}: the share of {attribute} {group} is given twice")
        shares[group] = parse_share(row["share"], place)
        sizes.setdefault(attribute, set()).add(parse_size(row.get("n", ""), place))
    if not given:
        raise FairfaceError(f"{path} has no shares")
    notes = []
    for attribute, shares in given.items():
        total = sum(shares.values())
        if abs(total - 1) > TOLERANCE:
            raise FairfaceError(f"{path}: the shares of {attribute} add up to {total:.4g} instead of 1")
        if len(sizes[attribute]) > 1:
            raise FairfaceError(
                f"{path}: n, the number of people behind all shares of {attribute}, differs between rows"
            )
        if abs(total - 1) > 1e-9:
            notes.append(
                f"the shares of {attribute} in {path.name} add up to {total:.4g}, and were scaled to add up to 1"
            )
    return Reference(
        path.name,
        {
            name: GivenShares(
                path.name, {group: share / sum(shares.values()) for group, share in shares.items()}, sizes[name].pop()
            )
            for name, shares in given.items()
        },
        notes,
    )


def parse_share(text: str, place: str) -> float:
    """A share. Raises FairfaceError for anything else."""
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 <= share <= 1 + TOLERANCE:
        raise FairfaceError(f"{place}: {text[:40]!r} is not a share from 0 to 1")
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
        raise FairfaceError(f"{place}: n is {text[:40]!r} instead of a number of people of at least 1")
    return int(size)


def equal_shares(groups: Sequence[str]) -> GivenShares:
    """Equal shares of all groups."""
    return GivenShares(EQUAL, dict.fromkeys(groups, 1 / len(groups)))


def reference_rows(estimate: AttributeEstimate, run: str, given: GivenShares) -> Rows:
    """Rows of `reference_estimates`, with `p` instead of `significant`, which depends on all attributes together.

    The generated shares are those of the better estimate, and their intervals extend to those of the corrected one. An
    interval of the ratio of raw shares is Wilson's or, if the reference is a sample, Koopman's; that of corrected ones
    comes from the bootstrap replicates of both sides.
    """
    counts = estimate.counts
    n = counts.count.sum()
    q = np.array([given.shares.get(group, 0.0) for group in counts.groups])
    reference = SharesWithInterval(q, *(wilson(q * given.n, given.n) if given.n else (q, q)))
    generated = SharesWithInterval(estimate.shares, *wilson(counts.count, n))
    smallest = 0.5 / (given.n or max(n, 1))  # for a group that the reference lacks: half a face keeps its ratio finite
    if given.n:
        low, high = ratio_interval(counts.count, n, y=q * given.n, m=np.full_like(q, given.n))
        high = np.where(np.isfinite(high), high, generated.high / np.maximum(q, smallest))
        p = pearson_p(counts.count, np.full_like(q, n), y=q * given.n, m=np.full_like(q, given.n))
    else:
        low, high = (end / np.maximum(q, smallest) for end in (generated.low, generated.high))
        p = two_sided_p(np.nan_to_num(generated.shares - q), np.where(n > 0, q * (1 - q) / max(n, 1), 0))
    ratio = other = divide(generated.shares, q)
    if estimate.corrected:
        correction = estimate.corrected.generated
        corrected = SharesWithInterval(correction.shares, *correction.interval())
        count = len(correction.bootstrap_shares)
        replicates = np.tile(q, (count, 1))
        if given.n:
            replicates = resample_shares(np.random.default_rng([SEED, 3]), q, n=given.n, replicates=count)
        ratios = correction.bootstrap_shares / np.maximum(replicates, smallest)
        corrected_low, corrected_high = np.quantile(ratios, [0.025, 0.975], axis=0)
        variance = correction.bootstrap_shares.var(0) + replicates.var(0)
        p = np.maximum(p, two_sided_p(correction.shares - q, variance))
        ratio, other = divide(corrected.shares, q), ratio
        if estimate.best_estimate == "raw":
            ratio, other, generated = other, ratio, generated.extended(corrected)
        else:
            generated = corrected
        low, high = np.fmin(corrected_low, ratio), np.fmax(corrected_high, ratio)
        high = np.where(np.isfinite(high), high, corrected_high)
    verdicts = [verdict(*ends, other_ratio=value) for *ends, value in zip(low, high, other, strict=True)]
    columns = {
        "run": run,
        "attribute": counts.attribute,
        "group": counts.groups,
        "baseline": given.baseline,
        "estimate": estimate.best_estimate,
        "n": round(n),
        "count": np.round(counts.count),
        **generated.columns("share"),
        **reference.columns("reference"),
        "reference_n": given.n,
        "ratio": ratio,
        "ratio_low": low,
        "ratio_high": high,
        "verdict": [VERDICTS[item] if n else "inconclusive" for item in verdicts],
        "p": p,
    }
    return rows_from_columns(columns, len(counts.groups))
