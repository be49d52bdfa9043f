"""Rows of a detector's tables: its metrics with their intervals and floors, and the points of its trade-off."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np

import sql
from reports.estimation.bootstrap_metrics import fairness_gaps, overall_auc, utility_metrics
from reports.estimation.detection.faces import SEED, EvaluatedFaces, Groups, score_cells
from reports.estimation.detection.interval_columns import interval_columns
from reports.estimation.detection.operating_points import POINTS, group_rates, replicate_cuts
from reports.estimation.detection.repair import repair
from reports.estimation.intervals import wilson
from reports.estimation.permutation_null import permutation_null, score_null

UTILITY = ("auc", "average_precision", "eer", "fpr", "tpr", "accuracy", "positive_rate")
BENCHMARK_FAIRNESS = ("auc_gap", "fpr_gap", "error_rate_gap", "f_meo", "f_dp", "f_oae", "f_eo", "f_efpr")
ODDS_AND_CALIBRATION = (
    "equalized_odds_difference",
    "equalized_odds_ratio",
    "largest_calibration_error",
    "calibration_gap",
)
FAIRNESS = (*BENCHMARK_FAIRNESS, *ODDS_AND_CALIBRATION)
AT_POINTS = ("fpr_1", "fpr_5")  # whose TPR is a metric of each group
SCORE_PERMUTATIONS = 200  # of the faces; fewer than replicates, because each takes longer
Rows = list[dict[str, Any]]
Key = tuple[str, str]  # attribute, group


@dataclass(frozen=True)
class SqlMetrics:
    """The values of one detector's metrics, from the views, without intervals."""

    utility: dict[Key, dict[str, Any]]  # of the view `utility`
    calibration: dict[Key, float | None]  # calibration_error
    points: dict[str, dict[Key, dict[str, Any]]]  # of the view `operating_points`, by point

    def groups(self, attribute: str) -> list[str]:
        """The groups of an attribute."""
        return [group for name, group in self.utility if name == attribute]

    def compared(self, attribute: str) -> list[str]:
        """The groups with both real faces and fakes, over which fairness is measured; none if there is only one."""
        rows = {group: self.utility[attribute, group] for group in self.groups(attribute)}
        compared = [group for group, row in rows.items() if row["fakes"] and row["reals"]]
        return compared if len(compared) > 1 else []

    def threshold(self, point: str) -> float:
        """The logit of an operating point; infinite if no threshold reaches it."""
        threshold = self.points[point]["all", "all"]["threshold"]
        return np.inf if threshold is None else float(threshold)

    def rates(self, attribute: str, point: str) -> dict[str, np.ndarray]:
        """TPR and FPR of the compared groups at an operating point, [groups] each."""
        rows = [self.points[point][attribute, group] for group in self.compared(attribute)]
        return {rate: np.array([row[rate] for row in rows], float) for rate in ("tpr", "fpr")}

    def fairness(self, attribute: str) -> dict[str, float]:
        """The fairness metrics of an attribute, as in the views `fairness` and `worst_groups`."""
        rows = [self.utility[attribute, group] for group in self.groups(attribute)]
        overall = {}
        for rate, size in (("tpr", "fakes"), ("fpr", "reals")):
            overall[rate] = np.array(
                [sum((row[rate] or 0) * row[size] for row in rows) / sum(row[size] for row in rows)]
            )
        names = ("auc", "tpr", "fpr", "accuracy", "positive_rate")
        keys = [(attribute, group) for group in self.compared(attribute)]
        groups = {name: np.array([[self.utility[key][name]] for key in keys], float) for name in names}
        groups["calibration_error"] = np.array([[self.calibration[key]] for key in keys], float)
        return {name: float(value[0]) for name, value in fairness_gaps(groups, overall).items()}


def ask_metrics(
    connection: duckdb.DuckDBPyConnection, evaluation_set: str, *, detectors: Sequence[str]
) -> dict[str, SqlMetrics]:
    """The metrics of detectors of one evaluation set, by detector. One query for all of them is faster."""
    names = ", ".join(map(sql.quote, detectors))

    def ask(view: str) -> Rows:
        text = f"""select {view}.* from {view} left join vocabulary using (attribute, "group")
            where evaluation_set = $set and detector in ({names}) and perturbation = 'none'
            order by attribute_rank(attribute), rank"""
        return sql.select(connection, text, {"set": evaluation_set}).to_dicts()

    metrics = {name: SqlMetrics({}, {}, {point: {} for point in POINTS}) for name in detectors}
    for row in ask("utility"):
        metrics[row["detector"]].utility[row["attribute"], row["group"]] = row
    for row in ask("calibration"):
        metrics[row["detector"]].calibration[row["attribute"], row["group"]] = row["calibration_error"]
    for row in ask("operating_points"):
        metrics[row["detector"]].points[row["point"]][row["attribute"], row["group"]] = row
    return metrics


def detector_rows(faces: EvaluatedFaces, metrics: SqlMetrics, *, shuffle: np.ndarray) -> dict[str, Rows]:
    """The rows of every table of DETECTOR_TABLES, without the columns that name the detector.

    They describe every attribute that is a column of the predictions, except crosses of more than two.

    Rates have Wilson's intervals. For the other metrics, faces are resampled with Poisson(1) weights (Hanley and
    MacGibbon, Comput. Methods Programs Biomed. 83 (2006) 57-62), and thresholds that depend on the faces are set again.
    The intervals are bias-corrected percentiles (Efron, Can. J. Statist. 9 (1981) 139-172), because ranges over groups
    are too large on average. The floor is the 95th percentile when groups are permuted among the real and among the
    fake faces, as for a detector with the same rates for all groups. `shuffle` is a hash of each face's key, [N].
    """
    rng, cuts = np.random.default_rng(SEED), replicate_cuts(faces)
    overall = group_replicates(faces, faces.everyone, cuts=cuts)
    overall.utility[0]["auc"] = overall_auc(faces)
    tables: dict[str, Rows] = {
        "detection_metrics": group_rows("all", ["all"], metrics=metrics, replicates=overall),
        "tradeoff_points": overall_points(metrics, overall),
        "repair": [],
        "repair_thresholds": [],
    }
    compared = [name for name in faces.groups if metrics.compared(name)]
    nulls = score_null(rng, faces, compared, permutations=min(len(faces.weights), SCORE_PERMUTATIONS))
    for attribute, groups in faces.groups.items():
        replicates = group_replicates(faces, groups, cuts=cuts)
        added = {"detection_metrics": group_rows(attribute, groups.names, metrics=metrics, replicates=replicates)}
        if attribute in compared:
            kept = [groups.names.index(name) for name in metrics.compared(attribute)]
            null = nulls[attribute] | permuted(faces, groups, called=faces.called_fake, rng=rng)
            values = metrics.fairness(attribute)
            equal = {"equalized_odds_ratio": 1.0, "largest_calibration_error": metrics.calibration["all", "all"] or 0.0}
            added["detection_metrics"] += fairness_rows(values, replicates.fairness(kept), null=null, equal=equal)
            added["tradeoff_points"] = []
            for point in POINTS:
                null = permuted(faces, groups, called=faces.logits >= metrics.threshold(point), rng=rng)
                rates = {rate: of_groups[kept] for rate, of_groups in replicates.at[point].items()}
                added["tradeoff_points"] += fairness_points(metrics, attribute, point, replicates=rates, null=null)
            added["detection_metrics"] += worst_tpr_rows(added["tradeoff_points"])
            added["repair"], added["repair_thresholds"] = repair(faces, groups, shuffle=shuffle, rng=rng)
        for table, of_table in added.items():
            tables[table] += [row | {"attribute": attribute} for row in of_table]
    return tables


@dataclass(frozen=True)
class Replicates:
    """Metrics of the groups of an attribute in bootstrap replicates."""

    utility: list[dict[str, np.ndarray]]  # of each group, [replicates] each
    at: dict[str, dict[str, np.ndarray]]  # TPR and FPR at every operating point, [groups, replicates] each
    known: dict[str, np.ndarray]  # TPR, FPR, fakes and real faces of all groups together, [replicates] each

    def fairness(self, groups: list[int]) -> dict[str, np.ndarray]:
        """Every fairness metric over these groups, [replicates] each."""
        stacked = {name: np.stack([self.utility[number][name] for number in groups]) for name in self.utility[0]}
        return fairness_gaps(stacked, self.known)


def group_replicates(faces: EvaluatedFaces, groups: Groups, *, cuts: dict[str, np.ndarray]) -> Replicates:
    """Compute the metrics of each group in every replicate."""
    cells = score_cells(faces, groups)
    counts = np.stack([cells.count(cells.codes, weights).astype(np.float32) for weights in faces.weights])
    reals, fakes = np.moveaxis(counts.sum(1, dtype=float), 1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        called = counts[:, cells.called_fake].sum(1, dtype=float) / np.stack([reals, fakes], 1)
    return Replicates(
        utility=[
            utility_metrics(counts[:, cells.group(number)], cells, group=number) for number in range(len(groups.names))
        ],
        at=group_rates(faces, groups, cuts),
        known={"tpr": called[:, 1], "fpr": called[:, 0], "fakes": fakes, "reals": reals},
    )


def permuted(
    faces: EvaluatedFaces, groups: Groups, *, called: np.ndarray, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Fairness metrics of these decisions, bool [N], when groups are permuted, [replicates] each."""
    return permutation_null(
        rng, groups.numbers, is_fake=faces.is_fake, called_fake=called, permutations=len(faces.weights)
    )


def group_rows(attribute: str, groups: list[str], *, metrics: SqlMetrics, replicates: Replicates) -> Rows:
    """Rows of `detection_metrics` of each group.

    Rates have Wilson's intervals: resampling 0 of 70 faces always gives 0. A rate at a threshold that was set on these
    faces has the wider ends of Wilson's and the bootstrap's.
    """
    rows = []
    for number, group in enumerate(groups):
        row, own = metrics.utility[attribute, group], replicates.utility[number]
        sizes = {"fpr": row["reals"], "tpr": row["fakes"], "accuracy": row["n"], "positive_rate": row["n"]}
        columns = {
            measure: interval_columns(row[measure], own[measure])
            | (wilson_columns(row[measure], sizes[measure]) if measure in sizes else {})
            for measure in UTILITY
        }
        error = metrics.calibration[attribute, group]
        columns["calibration_error"] = interval_columns(error, own["calibration_error"])
        for point in AT_POINTS:
            rate = metrics.points[point][attribute, group]["tpr"]
            bootstrap = interval_columns(rate, replicates.at[point]["tpr"][number])
            exact = wilson_columns(rate, row["fakes"])
            columns[f"tpr_at_{point}"] = bootstrap | {
                name: end(value for value in (bootstrap[name], exact.get(name)) if value is not None)
                for name, end in (("low", min), ("high", max))
                if exact
            }
        rows += [{"attribute": attribute, "group": group, "measure": name, **cols} for name, cols in columns.items()]
    return rows


def wilson_columns(rate: float | None, size: int) -> dict[str, float | None]:
    """low and high of a rate of `size` faces; none if it is undefined."""
    if rate is None:
        return {}
    low, high = wilson(np.array([rate * size]), size)
    return {"low": float(low[0]), "high": float(high[0])}


def fairness_rows(
    values: dict[str, float],
    replicates: dict[str, np.ndarray],
    *,
    null: dict[str, np.ndarray],
    equal: dict[str, float],
) -> Rows:
    """Rows of `detection_metrics` of one attribute; `equal` are the metrics that aren't 0 if all groups are equal."""
    return [
        {"measure": name}
        | interval_columns(
            None if np.isnan(values[name]) else values[name],
            replicates[name],
            null=null[name],
            equal=equal.get(name, 0.0),
            smaller_is_fairer=name != "equalized_odds_ratio",
        )
        for name in FAIRNESS
    ]


def overall_points(metrics: SqlMetrics, replicates: Replicates) -> Rows:
    """Rows of `tradeoff_points` of all faces: the utility at every operating point."""
    rows = []
    fakes, reals = replicates.known["fakes"], replicates.known["reals"]
    for point, of_point in metrics.points.items():
        row, rates = of_point["all", "all"], replicates.at[point]
        if row["tpr"] is None or row["fpr"] is None:
            continue
        tpr, fpr = rates["tpr"][0], rates["fpr"][0]
        accuracy = (row["tpr"] * row["fakes"] + (1 - row["fpr"]) * row["reals"]) / (row["fakes"] + row["reals"])
        values = {
            "auc": (metrics.utility["all", "all"]["auc"], replicates.utility[0]["auc"]),
            "tpr": (row["tpr"], tpr),
            "fpr": (row["fpr"], fpr),
            "accuracy": (accuracy, (tpr * fakes + (1 - fpr) * reals) / (fakes + reals)),
        }
        rows += [point_row("all", point, name, value=value, replicates=many) for name, (value, many) in values.items()]
    return rows


def fairness_points(
    metrics: SqlMetrics,
    attribute: str,
    point: str,
    *,
    replicates: dict[str, np.ndarray],
    null: dict[str, np.ndarray],
) -> Rows:
    """Rows of `tradeoff_points` of one attribute: the fairness over the compared groups at one operating point.

    `replicates` are the TPR and FPR of these groups, [groups, replicates] each.
    """
    rates = metrics.rates(attribute, point)
    odds = point_row(
        attribute,
        point,
        "equalized_odds_difference",
        value=float(max(np.ptp(rates["tpr"]), np.ptp(rates["fpr"]))),
        replicates=np.maximum(*(np.fmax.reduce(rate) - np.fmin.reduce(rate) for rate in replicates.values())),
        null=null["equalized_odds_difference"],
    )
    worst = point_row(
        attribute,
        point,
        "worst_tpr",
        value=float(rates["tpr"].min()),
        replicates=np.fmin.reduce(replicates["tpr"]),
        null=null["worst_tpr"],
        equal=metrics.points[point]["all", "all"]["tpr"],
    )
    return [odds, worst]


def point_row(
    attribute: str,
    point: str,
    measure: str,
    *,
    value: float,
    replicates: np.ndarray,
    null: np.ndarray | None = None,
    equal: float = 0.0,
) -> dict[str, Any]:
    """A row of `tradeoff_points`."""
    columns = interval_columns(
        value, replicates, null=null, equal=equal, smaller_is_fairer=measure == "equalized_odds_difference"
    )
    many = [float(one) if np.isfinite(one) else None for one in replicates]
    return {"attribute": attribute, "point": point, "measure": measure, **columns, "replicates": many}


def worst_tpr_rows(points: Rows) -> Rows:
    """Rows of `detection_metrics`: the TPR of the worst group at the operating points of a low FPR."""
    return [
        {"measure": f"worst_tpr_at_{row['point']}"} | {name: row[name] for name in ("value", "low", "high", "floor")}
        for row in points
        if row["measure"] == "worst_tpr" and row["point"] in AT_POINTS
    ]
