"""From the labels of both sides to shares, ratios, verdicts and distances, each with its uncertainty.

The reference is the training images as the generator was shown them: as the same labeller sees them beside raw
shares, as they are annotated beside corrected ones. Even where every training image is labelled, they count as a
sample of the faces that could have been collected: its intervals are those of a sample too.
"""

from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl

import sql
from reports import embeddings, groups, neighbours, quality
from reports.intervals import shifted, wilson
from reports.reading import Reading
from shards.atomic_io import read_json, write_parquet
from shards.errors import FairfaceError

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
NEAR = 500  # images of a group on either side that `near` compares


class NotYet(ValueError):
    """A stage before the estimates is missing; the message names the command to run."""


def choose_run(connection: duckdb.DuckDBPyConnection, out: Path, run: str | None) -> str:
    """The name of the run that is meant, the newest for None. FairfaceError where there is none."""
    runs = sql.ask(connection, "runs")
    if not len(runs):
        raise FairfaceError(f"there is no run below {out}: train one with `fairface train`")
    if run is None:
        return sql.select(connection, "select the_run('newest') as run")["run"][0]
    if run not in runs["run"]:
        raise FairfaceError(f"there is no run {run!r} below {out}; the runs are: {', '.join(runs['run'])}")
    return run


def labelling(connection: duckdb.DuckDBPyConnection, run: str) -> dict[str, Any]:
    """The labellers of both sides, the sizes they saw, and how many images they labelled.

    `labeller` is the zero-shot one's name, `methods` are the names of all by method. NotYet where a side has no
    labels, FairfaceError where the two were labelled by different labellers; both with the command to run.
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
            raise FairfaceError(
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
