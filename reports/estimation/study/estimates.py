"""Computes the tables of a study from its labelled runs: means of arms over their seeds, and paired differences."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import duckdb
import numpy as np
import polars as pl

from reports.estimation import group_counts
from reports.estimation.attribute_estimate import SEED, AttributeEstimate, divide, estimate_attribute
from reports.estimation.correction import resample_shares
from reports.estimation.cross_counts import CrossCounter
from reports.estimation.distances import total_variation
from reports.estimation.estimate_rows import Rows, distance_rows, rows_from_columns
from reports.estimation.estimates import attribute_counts, confusion_table
from reports.estimation.intervals import holm_significant, ratio_interval, wilson
from reports.estimation.study.seeds import (
    LEVEL,
    least_sign_flip_p,
    mean_over_seeds,
    seeds_needed,
    sign_flip_p,
)
from shards.attributes import AttributeTable
from shards.documents import RunConfig
from shards.errors import FairfaceError

REPLICATES = 400  # bootstrap replicates of raw shares
FIRST_STREAM = 10  # of the runs' random numbers; the correction uses streams with smaller numbers
REFERENCE_STREAM = 5  # of the random numbers that resample the training faces
STUDY_SCHEMA: dict[str, Any] = {  # estimates.parquet of a study: a row for each run, and one for each arm
    **dict.fromkeys(("study", "arm"), pl.String),
    "seed": pl.Int64,  # null in the row of the arm, which is a mean over its seeds
    **dict.fromkeys(("run", "attribute", "group", "metric", "baseline", "estimate"), pl.String),
    "used": pl.Boolean,  # whether the page and the tests are based on this estimate
    **dict.fromkeys(("n", "seeds"), pl.Int64),
    **dict.fromkeys(("value", "low", "high"), pl.Float64),
    **dict.fromkeys(("seed_sd", "seed_sd_low", "seed_sd_high", "sampling_sd", "calibration_sd"), pl.Float64),
}
PAIRED_SCHEMA: dict[str, Any] = {  # paired.parquet of a study: differences of two arms over the seeds that both have
    **dict.fromkeys(("study", "arm", "compared_with", "attribute", "group"), pl.String),
    **dict.fromkeys(("metric", "baseline", "estimate"), pl.String),
    "used": pl.Boolean,
    "pairs": pl.Int64,
    **dict.fromkeys(("value", "compared_value", "difference", "low", "high", "sd", "p"), pl.Float64),
    **dict.fromkeys(("sign_flip_p", "least_sign_flip_p"), pl.Float64),
    "significant": pl.Boolean,
    "verdict": pl.String,
    "seeds_needed": pl.Int64,
}
LIMITS = {"share": (0.0, 1.0), "ratio": (0.0, np.inf), "total_variation": (0.0, 1.0)}  # possible values of a metric


@dataclass(frozen=True)
class LabelledRun:
    """A labelled run of a study, with its estimates."""

    arm: str
    seed: int
    run: str
    calibration: str  # identifies the calibration images by which the run is corrected
    estimates: dict[str, AttributeEstimate]  # of each attribute, by the selected method


@dataclass(frozen=True)
class SeedValues:
    """One metric over the seeds of an arm: of an attribute's G groups, or of the attribute itself (G = 1)."""

    metric: str  # share, ratio, total_variation
    baseline: str | None  # of a ratio or a distance: reference (the training images) or uniform (equal shares)
    groups: Sequence[str | None]  # names; None for the attribute itself
    values: np.ndarray  # [seeds, G]
    replicates: np.ndarray  # [R, seeds, G]
    low: np.ndarray  # ends of the interval that each run claims on its own, [seeds, G]; NaN where it claims none
    high: np.ndarray


def estimate_run(
    connection: duckdb.DuckDBPyConnection, config: RunConfig, *, attributes: AttributeTable, number: int
) -> dict[str, AttributeEstimate]:
    """The estimate of each attribute of a run by the selected method.

    The bootstrap replicates of the labels are independent between runs with different `number`s.
    """
    selected = group_counts.selected_methods(connection, config.name)
    confusion = confusion_table(connection, attributes)
    counter = CrossCounter(connection, config.name, config=config, attributes=attributes)
    groups = group_counts.count_groups(connection, config.name, config=config, attributes=attributes)
    estimates = {}
    for (attribute, method), table in groups.group_by("attribute", "method", maintain_order=True):
        if selected[str(attribute)] == method and table["count"].sum():
            counts = attribute_counts(str(attribute), str(method), table, confusion=confusion)
            counts = replace(counter.with_strata(counts), stream=FIRST_STREAM + number)
            estimates[str(attribute)] = estimate_attribute(counts)
    return estimates


def study_tables(
    study: str, arms: Sequence[str], *, runs: Sequence[LabelledRun], attributes: AttributeTable
) -> dict[str, pl.DataFrame]:
    """The tables `estimates` and `paired` of a study.

    Raises FairfaceError if the runs do not have the same groups.
    """
    estimates: Rows = []
    paired: Rows = []
    for attribute in attributes:
        estimated_runs = [run for run in runs if attribute in run.estimates]
        check_groups(estimated_runs, attribute)
        is_corrected = bool(estimated_runs) and all(run.estimates[attribute].corrected for run in estimated_runs)
        for estimate in ("raw", "corrected") if is_corrected else ("raw",):
            about: dict[str, Any] = {
                "study": study,
                "attribute": attribute,
                "estimate": estimate,
                "used": is_corrected == (estimate == "corrected"),
            }
            by_arm = {arm: [run for run in estimated_runs if run.arm == arm] for arm in arms}
            claims_distances = attributes[attribute].headline and about["used"]
            for arm, of_arm in by_arm.items():
                for values in seed_values(of_arm, attribute, estimate=estimate, claims_distances=claims_distances):
                    estimates += arm_rows(values, of_arm, about=about | {"arm": arm})
            for first, second in itertools.combinations(arms, 2):
                paired += paired_rows(by_arm[first], by_arm[second], about=about)
    return {
        "estimates": pl.DataFrame(estimates, schema=STUDY_SCHEMA),
        "paired": pl.DataFrame(add_verdicts(paired, attributes), schema=PAIRED_SCHEMA),
    }


def check_groups(runs: Sequence[LabelledRun], attribute: str) -> None:
    """Raise FairfaceError if the runs have different groups of an attribute."""
    groups = {tuple(run.estimates[attribute].counts.groups) for run in runs}
    if len(groups) > 1:
        raise FairfaceError(
            f"the arms have different groups of {attribute}: label all runs with the same attributes (--attributes)"
        )


def seed_values(
    runs: Sequence[LabelledRun], attribute: str, *, estimate: str, claims_distances: bool = False
) -> Iterator[SeedValues]:
    """Yield every metric of an attribute over the runs of an arm; nothing without runs.

    The intervals that single runs claim for distances take long to compute: they are NaN unless `claims_distances`.
    """
    if not runs:
        return
    of_runs = [run.estimates[attribute] for run in runs]
    groups = of_runs[0].counts.groups
    sides = [both_sides(item, estimate) for item in of_runs]
    size = min(len(side) for pair in sides for _, side in pair)
    (shares, share_replicates), (references, reference_replicates) = (
        (np.stack([pair[i][0] for pair in sides]), np.stack([pair[i][1][:size] for pair in sides], 1)) for i in (0, 1)
    )
    low, high = (np.stack(ends) for ends in zip(*(share_interval(item, estimate) for item in of_runs), strict=True))
    yield SeedValues("share", None, groups, shares, share_replicates, low, high)
    if np.isfinite(references).all():
        smallest = 0.5 / max(of_runs[0].counts.annotated.sum(), 1)  # half a face keeps the ratio finite
        ratios = share_replicates / np.maximum(reference_replicates, smallest)
        low, high = (
            np.stack(ends)
            for ends in zip(*(ratio_ends(item, estimate, ratios[:, i]) for i, item in enumerate(of_runs)), strict=True)
        )
        values = np.where(references > 0, divide(shares, references), np.nan)
        yield SeedValues("ratio", "reference", groups, values, ratios, low, high)
    claimed_ends = [distance_ends(item, estimate) if claims_distances else {} for item in of_runs]
    baselines = {
        "uniform": (np.full(len(groups), 1 / len(groups)),) * 2,
        "reference": (references, reference_replicates),
    }
    for baseline, (q, q_replicates) in baselines.items():
        values = total_variation(shares, q)
        if np.isfinite(values).all():
            ends = np.array([ends.get(baseline, (np.nan, np.nan)) for ends in claimed_ends])
            yield SeedValues(
                "total_variation",
                baseline,
                [None],
                values[:, None],
                total_variation(share_replicates, q_replicates)[..., None],
                ends[:, :1],
                ends[:, 1:],
            )


def both_sides(estimate: AttributeEstimate, name: str) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """The shares, [K], and their replicates, [R, K], of the generated and of the training faces.

    `name` is the estimate: raw or corrected.
    """
    if name == "corrected" and estimate.corrected:
        generated, reference = estimate.corrected.generated, estimate.corrected.reference
        return (generated.shares, generated.bootstrap_shares), (reference.shares, reference.bootstrap_shares)
    counts = estimate.counts
    sides = (
        (estimate.shares, counts.count, counts.stream),
        (estimate.reference_shares, counts.reference, REFERENCE_STREAM),
    )
    return tuple((shares, raw_replicates(shares, count.sum(), stream=stream)) for shares, count, stream in sides)


def raw_replicates(shares: np.ndarray, n: float, *, stream: int) -> np.ndarray:
    """Replicates of the raw shares of `n` faces, [R, K]; NaN without faces."""
    if not n:
        return np.full((REPLICATES, len(shares)), np.nan)
    generator = np.random.default_rng([SEED, stream])
    return resample_shares(generator, shares, n=round(n), replicates=REPLICATES)


def share_interval(estimate: AttributeEstimate, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The interval of the shares that a single run claims, [K] each."""
    if name == "corrected" and estimate.corrected:
        return estimate.corrected.generated.interval()
    return wilson(estimate.counts.count, estimate.counts.count.sum())


def ratio_ends(estimate: AttributeEstimate, name: str, replicates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The interval of the ratios to the reference that a single run claims, [K] each."""
    counts = estimate.counts
    if name == "corrected":
        low, high = np.quantile(replicates, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
        return low, high
    return ratio_interval(counts.count, counts.count.sum(), y=counts.reference, m=counts.reference.sum())


def distance_ends(estimate: AttributeEstimate, name: str) -> dict[str, tuple[float, float]]:
    """The interval of the total variation from each baseline that a single run claims."""
    rows = distance_rows(estimate, "", seed=SEED)
    return {
        row["baseline"]: (row["low"], row["high"])
        for row in rows
        if row["estimate"] == name and row["measure"] == "total_variation"
    }


def arm_rows(values: SeedValues, runs: Sequence[LabelledRun], *, about: dict[str, Any]) -> Rows:
    """The rows of one metric: one for each run, and one for the mean over the seeds."""
    count = len(values.groups)
    n = [round(run.estimates[about["attribute"]].counts.count.sum()) for run in runs]
    metric = about | {"group": list(values.groups), "metric": values.metric, "baseline": values.baseline}
    empty = dict.fromkeys(STUDY_SCHEMA)
    rows: Rows = []
    for i, run in enumerate(runs):
        ends = {"value": values.values[i], "low": values.low[i], "high": values.high[i]}
        rows += rows_from_columns(empty | metric | {"seed": run.seed, "run": run.run, "n": n[i]} | ends, count)
    means = mean_over_seeds(values.values, values.replicates)
    lowest, highest = LIMITS[values.metric]
    over_seeds = {
        "n": sum(n),
        "seeds": len(runs),
        "value": means.mean,
        "low": np.clip(means.low, lowest, highest),
        "high": np.clip(means.high, lowest, highest),
        "seed_sd": means.sd,
        "seed_sd_low": means.sd_low,
        "seed_sd_high": means.sd_high,
        "sampling_sd": means.sampling_sd,
        "calibration_sd": means.shared_sd,
    }
    return rows + rows_from_columns(empty | metric | over_seeds, count)


def paired_rows(first: Sequence[LabelledRun], second: Sequence[LabelledRun], *, about: dict[str, Any]) -> Rows:
    """The rows of the differences `second` - `first` over the seeds that both arms have; see `add_verdicts`."""
    common = sorted({run.seed for run in first} & {run.seed for run in second})
    if not common:
        return []
    sides = [sorted((run for run in runs if run.seed in common), key=lambda run: run.seed) for runs in (first, second)]
    arms = {"arm": sides[1][0].arm, "compared_with": sides[0][0].arm, "pairs": len(common)}
    shares_calibration = sides[0][0].calibration == sides[1][0].calibration
    both = (seed_values(runs, about["attribute"], estimate=about["estimate"]) for runs in sides)
    rows: Rows = []
    for a, b in zip(*both, strict=True):
        size = min(len(a.replicates), len(b.replicates))
        # replicates with the same index share error rates; a shift makes those of different calibrations independent
        shift = 0 if shares_calibration else 1
        difference, replicates = b.values - a.values, b.replicates[:size] - np.roll(a.replicates[:size], shift, 0)
        means = mean_over_seeds(difference, replicates)
        spread = np.full(len(a.groups), np.nan)
        if len(common) > 1:
            spread = np.maximum(difference.std(0, ddof=1), means.sampling_sd)
        columns = {
            "group": list(a.groups),
            "metric": a.metric,
            "baseline": a.baseline,
            "value": b.values.mean(0),
            "compared_value": a.values.mean(0),
            "difference": means.mean,
            "low": means.low,
            "high": means.high,
            "sd": spread,
            "p": means.p,
            "sign_flip_p": sign_flip_p(difference),
            "least_sign_flip_p": least_sign_flip_p(len(common)),
            "shared_sd": means.shared_sd,
        }
        rows += rows_from_columns(about | arms | columns, len(a.groups))
    return rows


def add_verdicts(rows: Rows, attributes: AttributeTable) -> Rows:
    """Replace `shared_sd` by `significant`, `verdict` and `seeds_needed` in rows of `paired`.

    Holm's procedure covers all groups of a pair of arms, an estimate, a metric and a baseline; cells of many attributes
    are tested separately. `seeds_needed` is for significance when a group is tested together with all the others.
    """
    families: dict[tuple[Any, ...], Rows] = {}
    for row in rows:
        key = ("compared_with", "arm", "estimate", "metric", "baseline")
        family = (*(row[name] for name in key), attributes[row["attribute"]].is_tabulated)
        families.setdefault(family, []).append(row)
    for family_rows in families.values():
        p = np.array([1.0 if row["p"] is None else row["p"] for row in family_rows])
        level = 1 - (1 - LEVEL) / len(family_rows)
        for row, is_significant in zip(family_rows, holm_significant(p), strict=True):
            spread = {"sd": row["sd"], "shared_sd": row.pop("shared_sd")}
            is_open = row["sd"] is not None and not is_significant
            row["significant"], row["verdict"] = bool(is_significant), verdict(row, is_significant)
            row["seeds_needed"] = seeds_needed(row["difference"], **spread, level=level) if is_open else None
    return rows


def verdict(row: dict[str, Any], is_significant: bool) -> str:
    """Whether an arm has `more` or `less` of a group, or of a metric, than the arm that it is compared with."""
    if not is_significant:
        return "inconclusive"
    return "more" if row["difference"] > 0 else "less"
