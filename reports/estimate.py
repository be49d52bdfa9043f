"""From the labels of both sides to shares, ratios, verdicts and distances, each with its uncertainty.

The reference is the training images as the same labeller sees them. Even where every training image is
labelled, they count as a sample of the faces that could have been collected: its intervals are those of a
sample too.
"""

import math
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl

import sql
from shards.files import write_parquet

Z = 1.959964  # two-sided 95 %
PRESERVED = (
    0.8,
    1.25,
)  # the four-fifths rule (29 CFR 1607.4 D) and its inverse: our choice of what counts as kept
TABLES = ("estimates", "distances", "confusion")  # what `write` leaves in report/
DRAWS = 500  # resamples for each point of `distance_rows`
SHARE, REFERENCE = ["share", "share_low", "share_high"], ["reference", "reference_low", "reference_high"]
COUNTED = ["run", "attribute", "group", "n", "count", *SHARE, "reference_n", "reference_count", *REFERENCE]
COLUMNS = [*COUNTED, "annotated", "ratio", "ratio_low", "ratio_high", "verdict", "shifted"]
Counts = np.ndarray


def wilson(count: Counts, n: Counts) -> tuple[np.ndarray, np.ndarray]:
    """95 % score interval of a share; (0, 1) where n is 0. Wilson, JASA 22 (1927) 209-212."""
    count, n = np.asarray(count, float), np.maximum(np.asarray(n, float), 1e-12)
    centre = (count + Z**2 / 2) / (n + Z**2)
    half = Z / (n + Z**2) * np.sqrt(np.maximum(count * (n - count) / n, 0) + Z**2 / 4)
    return np.maximum(centre - half, 0), np.minimum(centre + half, 1)


def ratio_interval(x: Counts, n: Counts, y: Counts, m: Counts) -> tuple[np.ndarray, np.ndarray]:
    """95 % score interval of (x/n) / (y/m), two independent binomial shares: Koopman, Biometrics 40 (1984)
    513-517.

    It holds every ratio that a chi-squared test does not reject, found by bisection. It needs no correction
    at zero counts: x = 0 gives a low end of 0, y = 0 a high end of infinity.
    """
    x, n, y, m = np.broadcast_arrays(*(np.asarray(value, float) for value in (x, n, y, m)))

    def rejected(log_ratio: np.ndarray) -> np.ndarray:
        ratio = np.exp(log_ratio)
        b, c = ratio * (n + y) + x + m, ratio * (x + y)
        # the share x/n estimates, most likely where the ratio is this; written so that nothing cancels
        first = 2 * c / (b + np.sqrt(np.maximum(b**2 - 4 * (n + m) * c, 0)))
        first = np.clip(first, 1e-300, 1 - 1e-12)
        second = np.clip(first / ratio, 1e-300, 1 - 1e-12)
        chi2 = (x - n * first) ** 2 / (n * first * (1 - first)) + (y - m * second) ** 2 / (m * second * (1 - second))
        return chi2 > Z**2

    with np.errstate(divide="ignore", invalid="ignore"):
        best = np.log((x + 0.5) / (n + 0.5)) - np.log((y + 0.5) / (m + 0.5))
        best = np.where((x > 0) & (y > 0), np.log(x / n) - np.log(y / m), best)
        low, high = (np.exp(boundary(rejected, best, end)) for end in (-30.0, 30.0))
    return np.where(x > 0, low, 0.0), np.where(y > 0, high, np.inf)


def boundary(rejected: Any, inside: np.ndarray, outside: float) -> np.ndarray:
    """Where, between `inside` and `outside`, `rejected` turns true: 60 halvings."""
    kept, lost = inside, np.full_like(inside, outside)
    for _ in range(60):
        middle = (kept + lost) / 2
        out = rejected(middle)
        kept, lost = np.where(out, kept, middle), np.where(out, middle, lost)
    return kept


def verdict(low: float, high: float) -> str:
    """What an interval of generated / reference says. Too few to say is `inconclusive`, never fair."""
    if low >= PRESERVED[0] and high <= PRESERVED[1]:
        return "preserved"
    return "amplified" if low > 1 else "reduced" if high < 1 else "inconclusive"


def shifted(x: Counts, n: Counts, y: Counts, m: Counts, level: float = 0.05) -> np.ndarray:
    """Which shares x/n differ from y/m beyond chance, all groups taken together: bool, like `x`.

    Pearson's chi-squared test of two proportions for each, and Holm's step-down procedure (Scand. J. Statist. 6
    (1979) 65-70), under which a generator without any shift is accused in at most `level` of all reports.
    """
    x, n, y, m = (np.asarray(value, float) for value in (x, n, y, m))
    pooled = (x + y) / np.maximum(n + m, 1)
    spread = pooled * (1 - pooled) * (1 / np.maximum(n, 1) + 1 / np.maximum(m, 1))
    distance = np.abs(x / np.maximum(n, 1) - y / np.maximum(m, 1))
    known = (n > 0) & (m > 0) & (spread > 0)
    p = np.array(
        [math.erfc(d / math.sqrt(2 * s)) if k else 1.0 for d, s, k in zip(distance, spread, known, strict=True)]
    )
    order = np.argsort(p)
    passed = np.minimum.accumulate(p[order] <= level / np.arange(len(p), 0, -1))
    found = np.zeros(len(p), bool)
    found[order] = passed
    return found


def total_variation(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Half the sum of absolute differences: the share of faces that would have to change group; 0 to 1."""
    return np.abs(p - q).sum(-1) / 2


def fairness_discrepancy(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Euclidean distance: Choi et al., Fair Generative Modeling via Weak Supervision, ICML 2020, sec. 5."""
    return np.sqrt(((p - q) ** 2).sum(-1))


def jensen_shannon(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Divergence in bits, 0 to 1: Lin, IEEE Trans. Inf. Theory 37 (1991) 145-151, eq. 4.1, equal weights."""
    middle = (p + q) / 2

    def relative(a: np.ndarray) -> np.ndarray:
        return np.where(a > 0, a * np.log2(np.where(a > 0, a, 1) / np.where(a > 0, middle, 1)), 0).sum(-1)

    return (relative(p) + relative(q)) / 2


MEASURES = {f.__name__: f for f in (total_variation, jensen_shannon, fairness_discrepancy)}


def distance_rows(count: Counts, reference: Counts | None, seed: int) -> list[dict[str, Any]]:
    """Every measure's value, 95 % interval and null floor, from counts by class (K,); to equal shares without
    reference.

    Distances of counts are biased upwards, most where the truth is near 0, so neither percentile nor basic
    bootstrap intervals hold it (0-80 % in a trial). The test is inverted instead: which mixtures, reference +
    t (generated - reference), would give the distance that was seen? (Carpenter, J. R. Stat. Soc. B 61 (1999)
    159-172.) The null floor is the 95th percentile at t = 0: what a generator that changes nothing would show
    at these n.
    """
    generator, n = np.random.default_rng(seed), int(count.sum())
    p = count / n
    q = np.full(len(count), 1 / len(count)) if reference is None else reference / reference.sum()

    def draws(mixtures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        size = (len(mixtures), DRAWS)
        left = generator.multinomial(n, mixtures[:, None, :], size=size) / n
        m = None if reference is None else int(reference.sum())
        return left, q if m is None else generator.multinomial(m, q, size=size) / m

    reach = np.quantile(total_variation(*draws(q[None])), 0.95) / max(total_variation(p, q), 1e-9)
    mixtures = np.clip(q + np.linspace(0, 1 + 1.5 * reach, 31)[:, None] * (p - q), 0, None)
    mixtures /= mixtures.sum(1, keepdims=True)
    resampled, rows = draws(mixtures), []
    for name, measure in MEASURES.items():
        value, truth, seen = float(measure(p, q)), measure(mixtures, q), measure(*resampled)
        below, above = np.maximum.accumulate(np.quantile(seen, [0.025, 0.975], axis=1), axis=1)
        low = 0.0 if above[0] >= value else float(np.interp(value, above, truth))
        high = 0.0 if below[0] > value else float(np.interp(value, below, truth))
        against, floor = "uniform" if reference is None else "reference", float(np.quantile(seen[0], 0.95))
        row = {"measure": name, "against": against, "value": value, "low": min(low, value)}
        rows.append({**row, "high": max(high, value), "null_floor": floor})
    return rows


def choose_run(connection: duckdb.DuckDBPyConnection, out: Path, run: str | None) -> str:
    """The name of the run that is meant, the newest for None. ValueError where there is none."""
    runs = sql.ask(connection, "runs")
    if not len(runs):
        raise ValueError(f"there is no run below {out}: train one with `fairface train`")
    if run is None:
        return sql.query(connection, "select the_run('newest') as run")["run"][0]
    if run not in runs["run"]:
        raise ValueError(f"there is no run {run!r} below {out}; the runs are: {', '.join(runs['run'])}")
    return run


def labelling(connection: duckdb.DuckDBPyConnection, run: str) -> dict[str, Any]:
    """The one labeller of both sides, the sizes it saw, and how many images it labelled.

    ValueError, with the command to run, where a side has no labels or the two were labelled by different
    labellers.
    """
    asked = """select source, labeller, size, count(*) as n from labels
        where source = 'train' or (source = 'generated' and run = $run) group by all"""
    sides = sql.query(connection, asked, {"run": run})
    if "generated" not in sides["source"]:
        drawn = len(sql.ask(connection, "sampling", run=run))
        draw = "" if drawn else f"`fairface sample --run {run}`, then "
        raise ValueError(f"the samples of run {run} have no labels: run {draw}`fairface label --run {run}`")
    if "train" not in sides["source"]:
        raise ValueError(f"the training images have no labels to compare with: run `fairface label --run {run}`")
    if len(names := sides["labeller"].unique().sort()) > 1:
        raise ValueError(
            f"both sides must be labelled by one labeller, and here are {', '.join(map(str, names))}: "
            f"run `fairface label --run {run}` again with one of them"
        )
    number = {source: int(sides.filter(source=source)["n"].sum()) for source in ("train", "generated")}
    return {"labeller": names[0], "sizes": sorted(set(sides["size"].drop_nulls())), **number}


def cells(connection: duckdb.DuckDBPyConnection, run: str) -> pl.DataFrame:
    """attribute, group, count, reference_count, annotated_count: every class of the vocabulary, in order."""
    asked = """
        with found as (select * from counts where source <> 'generated' or run = $run
                       union all by name from vocabulary)
        select attribute, "group", min(rank) as rank,
            coalesce(sum(count) filter (source = 'generated'), 0)::bigint as count,
            coalesce(sum(count) filter (source = 'train'), 0)::bigint as reference_count,
            coalesce(sum(count) filter (source = 'annotated'), 0)::bigint as annotated_count
        from found group by attribute, "group" order by attribute, rank, "group" """
    return sql.query(connection, asked, {"run": run})


def estimates(counts: pl.DataFrame, run: str) -> pl.DataFrame:
    """One row a group, as the view `estimates` names its columns, from the counts of `cells`.

    Null stands for what can't be said: a share of no images, a ratio to none, an unbounded high end.
    """
    table = counts.with_columns(
        pl.lit(run).alias("run"),
        pl.col("count").sum().over("attribute").alias("n"),
        pl.col("reference_count").sum().over("attribute").alias("reference_n"),
        (pl.col("annotated_count") / pl.col("annotated_count").sum().over("attribute")).alias("annotated"),
    )
    count, n, seen, m = (table[c].to_numpy() for c in ("count", "n", "reference_count", "reference_n"))
    low, high = ratio_interval(count, n, seen, m)
    known = (n > 0) & (m > 0)
    low, high = np.where(known, low, 0), np.where(known, high, np.inf)
    ends = dict(zip([*SHARE[1:], *REFERENCE[1:]], (*wilson(count, n), *wilson(seen, m)), strict=True))
    table = table.with_columns(
        (pl.col("count") / pl.col("n")).alias("share"),
        (pl.col("reference_count") / pl.col("reference_n")).alias("reference"),
        *(pl.Series(name, values) for name, values in ends.items()),
        pl.Series("ratio_low", low),
        pl.Series("ratio_high", high),
        pl.Series("verdict", [verdict(*ends) for ends in zip(low, high, strict=True)]),
        pl.Series("shifted", shifted(count, n, seen, m)),
    )
    table = table.with_columns((pl.col("share") / pl.col("reference")).alias("ratio"))
    ratios = [
        pl.when(pl.col(c).is_finite()).then(pl.col(c))
        for c in ("ratio", "ratio_high", "share", "reference", "annotated")
    ]
    return table.with_columns(ratios).select(COLUMNS)


def distances(counts: pl.DataFrame, run: str) -> pl.DataFrame:
    """run, attribute, measure, against, value, low, high, null_floor: to reference and to equal shares."""
    rows: list[dict[str, Any]] = []
    for seed, attribute in enumerate(sorted(set(counts["attribute"]))):
        group = counts.filter(attribute=attribute)
        count, reference = group["count"].to_numpy(), group["reference_count"].to_numpy()
        for against in (reference, None):
            if count.sum() and (against is None or against.sum()):
                found = distance_rows(count, against, seed)
                rows += [{"run": run, "attribute": attribute, **row} for row in found]
    kinds = {
        **dict.fromkeys(("run", "attribute", "measure", "against"), pl.String),
        **dict.fromkeys(("value", "low", "high", "null_floor"), pl.Float64),
    }
    return pl.DataFrame(rows, schema=kinds)


def confusion(connection: duckdb.DuckDBPyConnection, labeller: str) -> pl.DataFrame:
    """labeller, attribute, annotated, labelled, count over the training images that have both."""
    asked = """
        select $labeller as labeller, attribute, a."group" as annotated, l."group" as labelled,
            count(*) as count
        from (from classes where source = 'annotated') as a
        join (from classes where source = 'train') as l using (key, attribute)
        group by all order by all"""
    return sql.query(connection, asked, {"labeller": labeller})


def quality(matrix: pl.DataFrame) -> pl.DataFrame:
    """Of each attribute of a `confusion` table: n, accuracy and interval, balanced accuracy (mean recall)."""
    right = pl.col("annotated") == pl.col("labelled")
    hits = pl.col("count").filter(right).sum()
    recalls = matrix.group_by("attribute", "annotated").agg(recall=hits / pl.col("count").sum())
    recalls = recalls.group_by("attribute").agg(balanced_accuracy=pl.col("recall").mean())
    table = matrix.group_by("attribute").agg(n=pl.col("count").sum(), hits=hits).join(recalls, on="attribute")
    low, high = wilson(table["hits"].to_numpy(), table["n"].to_numpy())
    return (
        table.with_columns(accuracy=pl.col("hits") / pl.col("n"), low=pl.Series(low), high=pl.Series(high))
        .select("attribute", "n", "accuracy", "low", "high", "balanced_accuracy")
        .sort("attribute")
    )


def write(out: Path, connection: duckdb.DuckDBPyConnection, run: str) -> dict[str, pl.DataFrame]:
    """One run's estimates, distances and confusion; writes them into `report/`, beside other runs'."""
    counts, known = cells(connection, run), set(sql.ask(connection, "runs")["run"])
    tables = {"estimates": estimates(counts, run), "distances": distances(counts, run)}
    for name, table in tables.items():
        others = connection.sql(f"from {name}").pl().filter(pl.col("run").is_in(list(known - {run})))
        write_parquet(
            out / "report" / f"{name}.parquet",
            pl.concat([others.select(table.columns), table], how="vertical_relaxed"),
        )
    tables["confusion"] = confusion(connection, labelling(connection, run)["labeller"])
    write_parquet(out / "report" / "confusion.parquet", tables["confusion"])
    return tables
