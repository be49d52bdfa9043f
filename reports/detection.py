"""How sure the figures of detectors are: intervals, and what a detector that treats all groups alike would show."""

from pathlib import Path
from statistics import NormalDist
from typing import Any

import duckdb
import numpy as np
import polars as pl

import sql
from reports.intervals import Z, wilson
from shards.atomic_io import is_complete_parquet, write_parquet

BLOCK = 1e7  # weights that are summed at a time
DEALT = 200  # of the AUCs' gap, which takes longer
ATTRIBUTES = ("gender", "age", "skin_group", "intersection")
UTILITY = ("auc", "average_precision", "eer", "fpr", "tpr", "accuracy", "positive_rate")
FAIRNESS = ("auc_gap", "fpr_gap", "error_rate_gap", "f_meo", "f_dp", "f_oae", "f_eo", "f_efpr")
COLUMNS = {
    **dict.fromkeys(("detector", "attribute", "group", "measure"), pl.String),
    **dict.fromkeys(("value", "low", "high", "floor"), pl.Float64),
}
DRAWS, WORK, SEED = 500, 1e8, 1  # of the bootstrap: no more draws than make so many faces, but 50


def keep(out: Path, connection: duckdb.DuckDBPyConnection, detector: str) -> bool:
    """Writes a detector's figures, unless they are there and as new as its predictions and what is known of groups."""
    path = out / "detectors" / detector / "detection.parquet"
    if is_complete_parquet(path):
        views = ("predictions", "images", "labels", "labellers")
        if path.stat().st_mtime_ns > max(file.stat().st_mtime_ns for file in sql.files_below(out, *views)):
            return False
    write(out, connection, detector)
    return True


def keep_all(out: Path) -> None:
    """The same for every detector."""
    connection = sql.connect(out)
    for row in sql.select(connection, "select distinct detector from predictions order by detector").iter_rows():
        keep(out, connection, *row)


def write(out: Path, connection: duckdb.DuckDBPyConnection, detector: str) -> pl.DataFrame:
    """Writes and returns every figure that `utility` and `fairness` say of a detector, with interval and floor."""
    asked = "from judged where detector = $detector and change = 'none' order by logit desc, key"
    rows = detector_rows(connection, detector, sql.select(connection, asked, {"detector": detector}))
    found = pl.DataFrame(rows, schema=COLUMNS)
    write_parquet(out / "detectors" / detector / "detection.parquet", found)
    return found


def detector_rows(connection: duckdb.DuckDBPyConnection, detector: str, faces: pl.DataFrame) -> list[dict[str, Any]]:
    """Rows of `detection` from one detector's predictions, the surest fakes first.

    Of rates the intervals are Wilson's. For the rest faces are drawn again with Poisson(1) weights (Hanley and
    MacGibbon, Comput. Methods Programs Biomed. 83 (2006) 57-62); intervals are bias-corrected percentiles (Efron, Can.
    J. Statist. 9 (1981) 139-172), for ranges over groups are too large on average. The floor is the 95th percentile
    where groups are dealt out anew among the real and among the fake faces: what a detector of the same rates for all
    groups would show.
    """
    rng, rows = np.random.default_rng(SEED), []
    utility = {
        (row["attribute"], row["group"]): row for row in sql.ask(connection, "utility", detector=detector).to_dicts()
    }
    fairness = {row["attribute"]: row for row in sql.ask(connection, "fairness", detector=detector).to_dicts()}
    draws = int(np.clip(WORK / len(faces), 50, DRAWS))
    weights = np.stack([rng.poisson(1, len(faces)).astype(np.uint8) for _ in range(draws)])
    fake, said = (faces["target"] == "fake").to_numpy(), faces["called_fake"].to_numpy()
    ends = np.flatnonzero(np.append(np.diff(faces["logit"].to_numpy()) != 0, True))
    again = drawn(weights, fake, said, ends)
    rows += group_rows(detector, utility["all", "all"], again)
    for attribute in ATTRIBUTES:
        names = [group for a, group in utility if a == attribute]
        numbers = (
            faces[attribute].replace_strict(dict(zip(names, range(len(names)), strict=True)), default=-1).to_numpy()
        )
        groups = {}
        for number, name in enumerate(names):
            kept = np.flatnonzero(numbers == number)
            logits = faces["logit"].to_numpy()[kept]
            ends = np.flatnonzero(np.append(np.diff(logits) != 0, True))
            groups[name] = drawn(weights[:, kept], fake[kept], said[kept], ends)
            rows += group_rows(detector, utility[attribute, name], groups[name])
        if row := fairness.get(attribute):
            both = [g for g in names if utility[attribute, g]["fakes"] and utility[attribute, g]["reals"]]
            known = numbers >= 0
            whole = dict(zip(("tpr", "fpr"), rates(weights[:, known], fake[known], said[known]), strict=True))
            spread = unfairness({m: np.stack([groups[g][m] for g in both]) for m in groups[both[0]]}, whole)
            alike = dealt(rng, numbers, fake, said, draws)
            alike["auc_gap"] = dealt_auc(rng, numbers, fake, faces["logit"].to_numpy(), min(draws, DEALT))
            for m in FAIRNESS:
                rows.append(row_of(detector, attribute, None, m, row[m], spread[m], alike[m]))
    return rows


def rates(weights: np.ndarray, fake: np.ndarray, said: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """TPR and FPR [draws] of weighted faces; NaN where there are none to have one."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return (
            weights[:, fake & said].sum(1) / weights[:, fake].sum(1),
            weights[:, ~fake & said].sum(1) / weights[:, ~fake].sum(1),
        )


def drawn(weights: np.ndarray, fake: np.ndarray, said: np.ndarray, ends: np.ndarray) -> dict[str, np.ndarray]:
    """Every measure [draws] of faces that are sorted by falling logit; `ends` are the last ones of equal logits."""
    block = max(int(BLOCK / max(len(fake), 1)), 1)
    if len(weights) > block:
        parts = [drawn(weights[i : i + block], fake, said, ends) for i in range(0, len(weights), block)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    tp, fp = (np.cumsum(weights * side, 1, dtype=float)[:, ends] for side in (fake, ~fake))
    fakes, reals = tp[:, -1], fp[:, -1]
    new_tp, new_fp = np.diff(tp, prepend=0), np.diff(fp, prepend=0)
    tpr, fpr = rates(weights, fake, said)
    with np.errstate(invalid="ignore", divide="ignore"):
        auc = (new_fp * (tp - new_tp / 2)).sum(1) / (fakes * reals)
        precision = np.where(tp + fp > 0, tp / np.maximum(tp + fp, 1), 0)
        along = fp / reals[:, None]
        corner = np.argmin(np.abs(1 - tp / fakes[:, None] - along), 1)
        found = {"tpr": tpr, "fpr": fpr, "auc": auc, "average_precision": (new_tp * precision).sum(1) / fakes}
        found["eer"] = along[np.arange(len(along)), corner] if len(ends) > 1 else np.full(len(along), np.nan)
        found["accuracy"] = (tpr * fakes + (1 - fpr) * reals) / (fakes + reals)
        found["positive_rate"] = (tpr * fakes + fpr * reals) / (fakes + reals)
    return found


def unfairness(groups: dict[str, np.ndarray], whole: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every figure of `fairness` [draws] from measures [groups, draws] and the TPR and FPR of all faces [draws]."""

    def spread(values: np.ndarray) -> np.ndarray:
        return np.fmax.reduce(values) - np.fmin.reduce(values)  # of those that are defined

    from_tpr, from_fpr = (np.nansum(np.abs(groups[m] - whole[m]), 0) for m in ("tpr", "fpr"))
    found = {"f_dp": spread(groups["positive_rate"]), "f_oae": spread(groups["accuracy"]), "f_efpr": from_fpr}
    found |= {"fpr_gap": spread(groups["fpr"]), "f_eo": from_tpr + from_fpr}
    found["f_meo"] = np.maximum(spread(groups["tpr"]), found["fpr_gap"])
    found["error_rate_gap"] = spread(1 - (groups["tpr"] + 1 - groups["fpr"]) / 2)
    if "auc" in groups:
        found["auc_gap"] = spread(groups["auc"])
    return found


def dealt(
    rng: np.random.Generator, numbers: np.ndarray, fake: np.ndarray, said: np.ndarray, draws: int
) -> dict[str, np.ndarray]:
    """The same [draws] where a group's faces called fake are as many as chance gives it, but for AUC's gap."""
    count = numbers.max() + 1
    known, tables = numbers >= 0, {}
    for name, side in (("tpr", fake & known), ("fpr", ~fake & known)):
        sizes = np.bincount(numbers[side], minlength=count)
        hits = rng.multivariate_hypergeometric(sizes, int((side & said).sum()), draws, method="marginals").T
        tables[name] = (sizes, hits)
    both = (tables["tpr"][0] > 0) & (tables["fpr"][0] > 0)
    (fakes, tp), (reals, fp) = ((sizes[both, None], hits[both]) for sizes, hits in tables.values())
    groups = {"tpr": tp / fakes, "fpr": fp / reals, "positive_rate": (tp + fp) / (fakes + reals)}
    groups["accuracy"] = (tp + reals - fp) / (fakes + reals)
    whole = {
        m: np.full(draws, (side & said).sum() / max(side.sum(), 1))
        for m, side in (("tpr", fake & known), ("fpr", ~fake & known))
    }
    return unfairness(groups, whole)


def dealt_auc(
    rng: np.random.Generator, numbers: np.ndarray, fake: np.ndarray, logits: np.ndarray, draws: int
) -> np.ndarray:
    """The gap of AUCs [draws] where groups are dealt out anew among the fake and among the real faces."""
    places, found = [np.flatnonzero(side & (numbers >= 0)) for side in (fake, ~fake)], np.empty(draws)
    for draw in range(draws):
        again = np.full(len(numbers), -1)
        for place in places:
            again[place] = rng.permutation(numbers[place])
        areas = [auc(fake[again == g], logits[again == g]) for g in range(numbers.max() + 1)]
        found[draw] = np.fmax.reduce(areas) - np.fmin.reduce(areas)
    return found


def auc(fake: np.ndarray, logits: np.ndarray) -> float:
    """How often a fake's logit is above a real one's, ties by halves; NaN without either."""
    fakes, reals = np.sort(logits[fake]), np.sort(logits[~fake])
    if not len(fakes) or not len(reals):
        return np.nan
    below = np.searchsorted(reals, fakes, "left") + np.searchsorted(reals, fakes, "right")
    return float(below.sum() / (2 * len(fakes) * len(reals)))


def group_rows(detector: str, row: dict[str, Any], again: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Rows of `detection` for one row of `utility`. Rates have Wilson's intervals: resampling 0 of 70 gives 0 alone."""
    sizes, rows = {"fpr": row["reals"], "tpr": row["fakes"], "accuracy": row["n"], "positive_rate": row["n"]}, []
    for measure in UTILITY:
        rows.append(row_of(detector, row["attribute"], row["group"], measure, row[measure], again[measure]))
        if measure in sizes and row[measure] is not None:
            low, high = wilson(np.array([row[measure] * sizes[measure]]), sizes[measure])
            rows[-1] |= {"low": float(low[0]), "high": float(high[0])}
    return rows


def row_of(
    detector: str,
    attribute: str,
    group: str | None,
    measure: str,
    value: float | None,
    again: np.ndarray,
    alike: np.ndarray | None = None,
) -> dict[str, Any]:
    """A row of `detection`; without interval where the value is undefined."""
    about = {"detector": detector, "attribute": attribute, "group": group, "measure": measure, "value": value}
    ends = dict.fromkeys(("low", "high", "floor"))
    again = again[np.isfinite(again)]
    if value is not None and len(again) and np.ptp(again):  # where all draws agree they say nothing of chance
        ends["low"], ends["high"] = corrected(value, again)
    if value is not None and alike is not None:
        ends["floor"] = float(np.quantile(alike, 0.95))
        # within the floor no difference between the groups can't be ruled out, nor what resampling reaches
        if value <= ends["floor"] and ends["high"] is not None:
            ends |= {"low": 0.0, "high": max(ends["high"], float(np.quantile(again, 0.975)))}
    return about | ends


def corrected(value: float, again: np.ndarray) -> tuple[float, float]:
    """Bias-corrected 95 % percentiles of draws."""
    normal = NormalDist()
    below = ((again < value).sum() + (again == value).sum() / 2 + 0.5) / (len(again) + 1)
    shift = 2 * normal.inv_cdf(float(np.clip(below, 1e-4, 1 - 1e-4)))
    low, high = (float(np.quantile(again, normal.cdf(shift + z))) for z in (-Z, Z))
    return min(low, value), max(high, value)
