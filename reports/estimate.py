"""From the labels of both sides to shares, ratios, verdicts and distances, each with its uncertainty.

The reference is the training images as the generator was shown them: as the same labeller sees them beside raw
shares, as they are annotated beside corrected ones. Even where every training image is labelled, they count as a
sample of the faces that could have been collected: its intervals are those of a sample too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl

import sql
from reports import correct, distances, embeddings, groups, neighbours, quality
from reports.intervals import Z, pearson, ratio_interval, shifted, two_sided, wilson
from shards.files import read_json, write_parquet

PRESERVED = (
    0.8,
    1.25,
)  # the four-fifths rule (29 CFR 1607.4 D) and its inverse: our choice of what counts as kept
TABLES = ("estimates", "readings", "distances", "quality", "neighbours", "confusion")  # what `write` leaves in report/
COLUMNS = {  # of `estimates`
    **dict.fromkeys(("run", "attribute", "group", "method"), pl.String),
    **dict.fromkeys(("n", "count"), pl.Int64),
    **dict.fromkeys(("share", "share_low", "share_high"), pl.Float64),
    **dict.fromkeys(("reference_n", "reference_count"), pl.Int64),
    **dict.fromkeys(("reference", "reference_low", "reference_high"), pl.Float64),
    **dict.fromkeys(("corrected", "corrected_low", "corrected_high", "annotated"), pl.Float64),
    **dict.fromkeys(("best", "note"), pl.String),
    **dict.fromkeys(("best_share", "best_share_low", "best_share_high"), pl.Float64),
    **dict.fromkeys(("best_reference", "best_reference_low", "best_reference_high"), pl.Float64),
    "best_reference_n": pl.Int64,
    **dict.fromkeys(("ratio", "ratio_low", "ratio_high"), pl.Float64),
    **dict.fromkeys(("verdict", "why"), pl.String),
    "shifted": pl.Boolean,
    "n_needed": pl.Int64,
}
READING = {
    **dict.fromkeys(("run", "attribute", "group", "method", "labeller", "estimate"), pl.String),
    **dict.fromkeys(("share", "low", "high", "reference", "ratio"), pl.Float64),
    "used": pl.Boolean,
}
DISTANCE = {
    **dict.fromkeys(("run", "attribute", "estimate", "measure", "against"), pl.String),
    **dict.fromkeys(("value", "low", "high", "null_floor"), pl.Float64),
}
QUALITY = {
    **dict.fromkeys(("run", "attribute", "group"), pl.String),
    "n": pl.Int64,
    **dict.fromkeys(quality.FIGURES, pl.Float64),
}
SEED = 1  # of every bootstrap
MOST = 12  # groups of an attribute whose errors are corrected: of K there are K^2 to be known
NEAR = 500  # images of a group on either side that `near` compares


class NotYet(ValueError):
    """A stage before the estimates is missing; the message names the command to run."""


def verdict(low: float, high: float, other: float) -> str:
    """What an interval of generated / reference says. Too few to say is `inconclusive`, never fair.

    Nothing else is said where the `other` estimate's ratio points elsewhere: what a correction alone shows may be its
    own, and so may what the labels alone show.
    """
    if low >= PRESERVED[0] and high <= PRESERVED[1]:
        return "preserved" if PRESERVED[0] <= other <= PRESERVED[1] else "inconclusive"
    if low > 1:
        return "amplified" if other > 1 else "inconclusive"
    return "reduced" if high < 1 and other < 1 else "inconclusive"


def choose_run(connection: duckdb.DuckDBPyConnection, out: Path, run: str | None) -> str:
    """The name of the run that is meant, the newest for None. ValueError where there is none."""
    runs = sql.ask(connection, "runs")
    if not len(runs):
        raise ValueError(f"there is no run below {out}: train one with `fairface train`")
    if run is None:
        return sql.select(connection, "select the_run('newest') as run")["run"][0]
    if run not in runs["run"]:
        raise ValueError(f"there is no run {run!r} below {out}; the runs are: {', '.join(runs['run'])}")
    return run


def labelling(connection: duckdb.DuckDBPyConnection, run: str) -> dict[str, Any]:
    """The labellers of both sides, the sizes they saw, and how many images they labelled.

    `labeller` is the zero-shot one's name, `methods` are the names of all by method. NotYet where a side has no
    labels, ValueError where the two were labelled by different labellers; both with the command to run.
    """
    asked = """select source, method, labeller, size, count(*) as n from labels
        where source = 'train' or (source = 'generated' and run = $run) group by all order by all"""
    sides = sql.select(connection, asked, {"run": run})
    if "generated" not in sides["source"]:
        drawn = len(sql.ask(connection, "sampling", run=run))
        draw = "" if drawn else f"`fairface sample --run {run}`, then "
        raise NotYet(f"the samples of run {run} have no labels: run {draw}`fairface label --run {run}`")
    if "train" not in sides["source"]:
        raise NotYet(f"the training images have no labels to compare with: run `fairface label --run {run}`")
    if "imported" in sides["method"] and "imported" not in sides.filter(source="train")["method"]:
        raise NotYet(
            f"the labels of run {run} were made elsewhere, and no training image was labelled so: there is nothing to "
            f"compare them with (`fairface sql distribution --param run={run}` shows them)"
        )
    for method in sides["method"].unique():
        names = sides.filter(method=method)
        if names["labeller"].n_unique() > 1 or (names["source"].n_unique() < 2 and method != "pixels"):
            raise ValueError(
                "both sides must be labelled by one labeller, and here are "
                f"{', '.join(map(str, sides['labeller'].unique().sort()))}: run `fairface label --run {run}` again"
            )
    first = sides.filter(pl.col("method").is_in(["clip", "imported"]))
    number = {source: int(first.filter(source=source)["n"].sum()) for source in ("train", "generated")}
    methods = dict(sides.select("method", "labeller").unique().sort("method").iter_rows())
    return {
        "labeller": first["labeller"][0],
        "methods": methods,
        "sizes": sorted(set(sides["size"].drop_nulls())),
        **number,
    }


@dataclass
class Reading:
    """What one labeller says of one attribute: counts by group, [K] each, and what its errors leave of them."""

    attribute: str
    method: str
    groups: list[str]
    count: np.ndarray  # generated faces
    reference: np.ndarray  # training faces, labelled alike; effective numbers where they were weighted
    annotated: np.ndarray  # training faces, as annotated
    confusion: np.ndarray  # [K, K] of training faces, annotated by labelled
    whole: bool = True  # whether all but a few of the training faces are annotated
    note: str | None = None  # why nothing is corrected

    def __post_init__(self):
        self.raw, self.there = shares(self.count), shares(self.reference)
        self.found = self.without_errors()
        self.beside = self.without_errors_there() if self.found else None
        self.best = "corrected" if self.found and not correct.raw_is_better(self.count, self.found) else "raw"

    def without_errors(self) -> correct.Corrected | None:
        """The corrected shares, over the groups that anything is known of; None, with a note, where there are none."""
        seen = (self.count + self.reference + self.annotated + self.confusion.sum(0) + self.confusion.sum(1)) > 0
        if not self.count.sum() or not self.reference.sum():
            self.note = "no labels of either side"
        elif not self.confusion.sum() or not self.annotated.sum():
            self.note = "no annotated faces to measure the labeller's errors on"
        elif missing := [g for g, s, n in zip(self.groups, seen, self.confusion.sum(1), strict=True) if s and not n]:
            named = ", ".join(name[:40] for name in missing[:5]) + " and more" * (len(missing) > 5)
            self.note = f"no calibration images of {named}"
        elif seen.sum() < 2:
            self.note = "one group only"
        elif len(self.groups) > MOST:
            self.note = f"{len(self.groups)} cells are too many for annotated faces to tell the labeller's errors apart"
        if self.note:
            return None
        found = correct.corrected(self.count, self.confusion, SEED)
        if found.condition > correct.CONDITION:
            self.note = f"the labels tell too little of the groups apart (condition number {found.condition:.0f})"
            return None
        return found

    def without_errors_there(self) -> tuple[np.ndarray, np.ndarray]:
        """What corrected shares are compared with, [K], and draws of it: the training faces as they are annotated.

        Where only some are, those may be others than the rest: the labels of all of them, corrected by the same matrix.
        """
        if not self.whole:
            there = correct.corrected(self.reference, self.confusion, SEED, side=1)
            return there.shares, there.draws
        there = shares(self.annotated)
        n = round(self.annotated.sum())
        return there, correct.labelled(np.random.default_rng([SEED, 2]), there, n, len(self.found.draws))

    def ratios(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Of the better estimate: the ratio to its reference, its ends, the other estimate's ratio, and p.

        p is that of there being no difference, the greater of the two estimates'. An interval around raw labels does
        not hold what they get wrong: where there is a correction, it reaches as far as that one's.
        """
        n, m = self.count.sum(), self.reference.sum()
        raw = divided(self.raw, self.there)
        p = pearson(self.count, np.full_like(self.count, n), self.reference, np.full_like(self.count, m))
        if not self.found:
            low, high = ratio_interval(self.count, n, self.reference, m)
            said = n > 0 and m > 0
            return raw, np.where(said, low, 0), np.where(said, high, np.inf), raw, p
        there, again = self.beside
        ratio = divided(self.found.shares, there)
        least = 0.5 / max(self.annotated.sum(), 1)  # of a group that is not there: finite, as half a face would be
        drawn = self.found.draws / np.maximum(again, least)
        low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
        apart = two_sided(self.found.shares - there, self.found.draws.var(0) + again.var(0))
        best, other = (raw, ratio) if self.best == "raw" else (ratio, raw)
        return best, np.fmin(low, best), np.fmax(high, best), other, np.maximum(p, apart)

    def estimate_rows(self, run: str) -> list[dict[str, Any]]:
        """Rows of `estimates`, but for `shifted`, which is for all attributes together; `p` stands in its place."""
        n, m, total = self.count.sum(), self.reference.sum(), self.annotated.sum()
        raw, beside = (self.raw, *wilson(self.count, n)), (self.there, *wilson(self.reference, m))
        annotated = (shares(self.annotated), *wilson(self.annotated, total))
        corrected = (
            (self.found.shares, *self.found.interval()) if self.found else np.full((3, len(self.groups)), np.nan)
        )
        better = (self.reaching(raw, corrected), beside, m)
        if self.best == "corrected":
            better = (
                corrected,
                annotated if self.whole else with_percentiles(*self.beside),
                total if self.whole else m,
            )
        ratio, low, high, other, p = self.ratios()
        said = [verdict(*ends) for ends in zip(low, high, other, strict=True)]
        groups = zip(range(len(said)), said, ratio, other, strict=True)
        columns = {"run": run, "attribute": self.attribute, "group": self.groups, "method": self.method}
        columns |= {"n": round(n), "count": np.round(self.count)} | named("share", raw)
        columns |= {"reference_n": round(m), "reference_count": np.round(self.reference)} | named("reference", beside)
        columns |= named("corrected", corrected) | {"annotated": annotated[0], "best": self.best, "note": self.note}
        columns |= named("best_share", better[0]) | named("best_reference", better[1])
        columns |= {"best_reference_n": round(better[2])} | named("ratio", (ratio, low, high))
        columns |= {
            "verdict": said,
            "p": p,
            "why": [self.why(*group) for group in zip(said, ratio, other, strict=True)],
        }
        columns["n_needed"] = [self.needed(*group) for group in groups]
        return rows_of(columns, len(self.groups))

    def reaching(self, raw: Sequence[np.ndarray], corrected: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """A raw share and its interval, as far as the corrected one's where there is one."""
        if not self.found:
            return raw
        return raw[0], np.minimum(raw[0], corrected[1]), np.maximum(raw[0], corrected[2])

    def why(self, said: str, ratio: float, other: float) -> str | None:
        """Why nothing is said: there are no labels, raw and corrected ones disagree, or there are too few."""
        if said != "inconclusive":
            return None
        if not self.count.sum() or not self.reference.sum():
            return "no labels"
        return (
            "disagree" if self.found and (ratio - 1) * (other - 1) < 0 and abs(np.log(ratio / other)) > 0.2 else "few"
        )

    def needed(self, group: int, said: str, ratio: float, other: float) -> int | None:
        """How many generated faces would settle a group, were its ratio what it seems.

        The interval must come to lie between PRESERVED, or beside 1: whichever is nearer. Only the generated side's
        part of its width shrinks. None where no number would do, and where the verdict that is `said` is one.
        """
        if said != "inconclusive" or not (0 < ratio < np.inf) or not (0 < other < np.inf):
            return None
        n, inside = self.count.sum(), min(np.log(PRESERVED[1] / ratio), np.log(ratio / PRESERVED[0]))
        allowed = (max(inside, abs(np.log(ratio))) - abs(np.log(ratio / other))) / Z
        if self.found:
            share = max(self.found.shares[group], 1e-9)
            own = self.found.sampling_variance(self.count)[group] / share**2
            rest = max(self.found.draws.var(0)[group] / share**2 - own, 0)
            rest += self.beside[1].var(0)[group] / max(self.beside[0][group], 1e-9) ** 2
        else:
            own = (1 - self.raw[group]) / self.count[group]
            rest = (1 - self.there[group]) / self.reference[group]
        if allowed <= 0 or allowed**2 <= rest:
            return None
        return max(round(n * own / (allowed**2 - rest)), round(n) + 1)

    def reading_rows(self, run: str, labeller: str, used: bool) -> list[dict[str, Any]]:
        """Rows of `readings`: the labels as they are, and corrected where that can be."""
        sides = [("raw", self.raw, wilson(self.count, self.count.sum()), self.there)]
        if self.found:
            sides.append(("corrected", self.found.shares, self.found.interval(), self.beside[0]))
        about = {"run": run, "attribute": self.attribute, "group": self.groups, "method": self.method}
        found = []
        for name, p, (low, high), q in sides:
            columns = about | {"labeller": labeller, "estimate": name, "share": p, "low": low, "high": high}
            columns |= {"reference": q, "ratio": divided(p, q), "used": used and name == self.best}
            found += rows_of(columns, len(self.groups))
        return found

    def distance_rows(self, run: str, seed: int) -> list[dict[str, Any]]:
        """Rows of `distances`: of the raw and of the corrected shares, to the reference and to equal shares."""
        found, even = [], np.full(len(self.groups), 1 / len(self.groups))
        for estimate in ("raw", "corrected") if self.found else ("raw",):
            there = self.there if estimate == "raw" else self.beside[0]
            m = round(self.annotated.sum() if estimate == "corrected" and self.whole else self.reference.sum())
            p = self.raw if estimate == "raw" else self.found.shares
            for q, size in ((there, m), (even, None)):
                if not self.count.sum() or size == 0:
                    continue
                generator = np.random.default_rng(seed)
                sampler, draws = distances.counted(round(self.count.sum()), size, generator), distances.DRAWS
                if estimate == "corrected":
                    sampler, draws = self.sampler(size, generator), distances.CORRECTED_DRAWS
                about = {"run": run, "attribute": self.attribute, "estimate": estimate}
                about["against"] = "uniform" if size is None else "reference"
                found += [about | row for row in distances.rows(p, q, sampler, draws)]
        return found

    def sampler(self, size: int | None, generator: np.random.Generator) -> distances.Sampler:
        """What correcting would find of as many faces, with as much calibration, beside `size` reference faces."""
        n, matrix = round(self.count.sum()), correct.estimated(self.confusion)

        def draw(mixtures: np.ndarray, draws: int) -> tuple[np.ndarray, np.ndarray]:
            left = np.empty((len(mixtures), draws, mixtures.shape[1]))
            for i, mixture in enumerate(mixtures):
                again = correct.matrices(generator, self.confusion, draws)
                left[i] = correct.solve(again, correct.labelled(generator, mixture @ matrix, n, draws))
            if size is None:
                return left, mixtures[0]
            return left, generator.multinomial(size, mixtures[0], size=left.shape[:2]) / size

        return draw


def shares(counts: np.ndarray) -> np.ndarray:
    """Counts [K] over their sum; NaN of nothing."""
    total = counts.sum()
    return counts / total if total else np.full(len(counts), np.nan)


def divided(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return a / b


def with_percentiles(values: np.ndarray, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values [K] and the 95 % percentiles of their draws."""
    return values, *np.quantile(draws, [0.025, 0.975], axis=0)


def named(name: str, values: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """A value and the ends of its interval, as columns."""
    return dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))


def rows_of(columns: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """Columns of one value or of `count` as rows."""
    spread = {k: v if isinstance(v, list | np.ndarray) else [v] * count for k, v in columns.items()}
    return [{name: known(values[i]) for name, values in spread.items()} for i in range(count)]


def known(value: Any) -> Any:
    """None for a number that can't be said: a share of no images, a ratio to none, an unbounded end."""
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value


def confusion(connection: duckdb.DuckDBPyConnection) -> pl.DataFrame:
    """method, labeller, attribute, annotated, labelled, count over the training images that have both."""
    asked = """
        with names as (
            select method, any_value(labeller) as labeller from labels where source = 'train' group by method
        ), alike as (  -- counted before it is taken apart: the combinations are few
            select l.method, a.gender as g, l.gender as h, a.age as b, l.age as c, a.skin_tone as t, l.skin_tone as u,
                a.skin_group as s, count(*) as n
            from labels as l join images as a using (key) where l.source = 'train' and a.status = 'packed' group by all
        ), pairs as (
            select method, n, g, h, b, c, t::varchar as t, u::varchar as u, s, group_of(u) as v, g || '-' || s as i,
                h || '-' || v as j, i || '-' || b as k, j || '-' || c as l
            from alike
        )
        select method, names.labeller, attribute, annotated, labelled, sum(n)::bigint as count
        from (unpivot pairs on (g, h) as gender, (b, c) as age, (t, u) as skin_tone, (s, v) as skin_group,
            (i, j) as intersection, (k, l) as intersection_age into name attribute value annotated, labelled)
        join names using (method) where annotated is not null and labelled is not null
        group by all order by all"""
    return sql.select(connection, asked)


def accuracy(matrix: pl.DataFrame) -> pl.DataFrame:
    """Of each method and attribute of a `confusion` table: n, accuracy, interval, balanced accuracy (mean recall)."""
    right, by = pl.col("annotated") == pl.col("labelled"), ["method", "attribute"]
    hits = pl.col("count").filter(right).sum()
    recalls = matrix.group_by(*by, "annotated").agg(recall=hits / pl.col("count").sum())
    recalls = recalls.group_by(by).agg(balanced_accuracy=pl.col("recall").mean())
    table = matrix.group_by(by).agg(n=pl.col("count").sum(), hits=hits).join(recalls, on=by)
    low, high = wilson(table["hits"].to_numpy(), table["n"].to_numpy())
    return (
        table.with_columns(accuracy=pl.col("hits") / pl.col("n"), low=pl.Series(low), high=pl.Series(high))
        .select(*by, "n", "accuracy", "low", "high", "balanced_accuracy")
        .sort("attribute", "method")
    )


def read(
    connection: duckdb.DuckDBPyConnection, run: str, config: dict[str, Any], matrix: pl.DataFrame
) -> list[Reading]:
    """Every labeller's reading of every attribute, absent groups included."""
    cells, found = groups.cells(connection, run, config), []
    for (attribute, method), table in cells.group_by("attribute", "method", maintain_order=True):
        names = table["group"].to_list()
        places = {name: i for i, name in enumerate(names)}
        square = np.zeros((len(names), len(names)), int)
        for row in matrix.filter(attribute=attribute, method=method).iter_rows(named=True):
            square[places[row["annotated"]], places[row["labelled"]]] = row["count"]
        counts = (table[name].to_numpy() for name in ("count", "reference_count", "annotated_count"))
        found.append(Reading(attribute, method, names, *counts, square, bool(table["whole"][0])))
    return found


def near(out: Path, connection: duckdb.DuckDBPyConnection, run: str) -> pl.DataFrame:
    """How near the samples of each group are to its training images: rows of `quality`, none without embeddings.

    Of each group the first images by key are compared, on either side: packing and sampling have made them random ones.
    """
    paths = {"train": out / "shards" / "embeddings.parquet", "generated": out / "runs" / run / "embeddings.parquet"}
    if not all(path.is_file() for path in paths.values()):
        return pl.DataFrame(schema=QUALITY)
    most = {"train": 2 * NEAR, "generated": NEAR}
    asked = f"""select source, attribute, "group", min(key, {2 * NEAR}) as key from classes
        where attribute in ('gender', 'age', 'skin_group', 'intersection')
            and (source = 'train' or (source = 'generated' and run = $run)) group by all"""
    keys = sql.select(connection, asked, {"run": run}).explode("key")
    vectors = {}
    for source, path in paths.items():
        wanted = keys.filter(source=source).select("key").unique()
        vectors[source] = embeddings.of(path, wanted["key"])
    rows = []
    for seed, (attribute, names) in enumerate(vocabulary(connection).items()):
        sides, there = {}, keys.filter(attribute=attribute)
        for source, table in vectors.items():
            of = there.filter(source=source).group_by("group", maintain_order=True).head(most[source])
            sides[source] = table.join(of, on="key", how="inner", maintain_order="left")
        if not len(there) or not all(len(side) for side in sides.values()):
            continue
        arrays = [side["embedding"].to_numpy() for side in sides.values()]
        found = quality.rows(*arrays, *(side["group"] for side in sides.values()), names, seed, NEAR)
        rows += [{"run": run, "attribute": attribute, **row} for row in found]
    return pl.DataFrame(rows, schema=QUALITY)


def vocabulary(connection: duckdb.DuckDBPyConnection) -> dict[str, list[str]]:
    """Attribute -> its groups, in their order."""
    table = sql.select(connection, "from vocabulary order by attribute, rank")
    return {name[0]: rows["group"].to_list() for name, rows in table.group_by("attribute", maintain_order=True)}


def judged(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of `estimates` with `shifted` in place of `p`: of all groups together, the many small cells apart."""
    small = np.array([row["attribute"] == "intersection_age" for row in rows])
    p, moved = np.array([row.pop("p") for row in rows]), np.zeros(len(rows), bool)
    for family in (small, ~small):
        moved[family] = shifted(p[family])
    return [row | {"shifted": bool(m)} for row, m in zip(rows, moved, strict=True)]


def alike(connection: duckdb.DuckDBPyConnection) -> set[str]:
    """The runs whose rows in report/ were made by the labellers that the training images have now."""
    asked = """select run from runs join readings using (run) where used group by run
        having bool_and(labeller in (select labeller from labels where source = 'train'))"""
    return set(sql.select(connection, asked)["run"])


def write(out: Path, connection: duckdb.DuckDBPyConnection, run: str) -> dict[str, pl.DataFrame]:
    """One run's estimates, readings, distances, quality and confusion, written into `report/` beside other runs'."""
    config, matrix = read_json(out / "runs" / run / "config.json") or {}, confusion(connection)
    names, counting = labelling(connection, run)["methods"], groups.counting(connection, run)
    readings = read(connection, run, config, matrix)
    rows: dict[str, list[dict[str, Any]]] = {"estimates": [], "readings": [], "distances": []}
    for seed, reading in enumerate(readings):
        used = counting[reading.attribute] == reading.method
        rows["readings"] += reading.reading_rows(run, names[reading.method], used)
        if used:
            rows["estimates"] += reading.estimate_rows(run)
            rows["distances"] += reading.distance_rows(run, seed)
    rows["estimates"] = judged(rows["estimates"])
    kinds = {"estimates": COLUMNS, "readings": READING, "distances": DISTANCE}
    tables = {name: pl.DataFrame(rows[name], schema=kinds[name]) for name in rows}
    tables["quality"] = near(out, connection, run)
    tables["neighbours"] = neighbours.find(out, run)
    tables["confusion"] = matrix
    save(out, connection, run, tables)
    return tables


def forget(out: Path, connection: duckdb.DuckDBPyConnection, run: str) -> None:
    """Takes what was estimated of a run out of `report/`: its labels are not there, or not to be compared."""
    kinds = {"estimates": COLUMNS, "readings": READING, "distances": DISTANCE, "quality": QUALITY}
    kinds["neighbours"] = neighbours.COLUMNS
    empty = {name: pl.DataFrame(schema=kind) for name, kind in kinds.items()}
    save(out, connection, run, empty | {"confusion": confusion(connection)})


def save(out: Path, connection: duckdb.DuckDBPyConnection, run: str, tables: dict[str, pl.DataFrame]) -> None:
    """Writes a run's tables into `report/`, beside the rows of those runs that were labelled alike."""
    there = alike(connection) - {run}
    for name, table in tables.items():
        if name != "confusion":  # which is of the training images
            others = connection.sql(f"from {name}").pl().filter(pl.col("run").is_in(list(there)))
            table = pl.concat([others.select(table.columns), table], how="vertical_relaxed")
        write_parquet(out / "report" / f"{name}.parquet", table)
