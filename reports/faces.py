"""Which faces the page shows: the first, those of every group, the most and least certain, the nearest to training."""

from pathlib import Path
from typing import Any

import duckdb
import polars as pl

import sql
from shards import tar

FIRST = 48  # of either side, unchosen
OF_A_GROUP, CERTAIN, NEAREST = 8, 8, 8


def folder_of(out: Path, run: str, side: str) -> Path:
    """Where the tars of a side are."""
    return out / "runs" / run / "samples" if side == "generated" else out / "shards"


def images(folder: Path, wanted: pl.DataFrame) -> dict[str, bytes]:
    """The encoded images of `wanted` (key, shard) by key; those are missing whose shard was moved away or cut."""
    found: dict[str, bytes] = {}
    for shard, keys in wanted.drop_nulls().unique(maintain_order=True).group_by("shard", maintain_order=True):
        try:
            there = tar.index(folder / shard[0])
            found |= tar.read(folder, shard[0], [key for key in keys["key"] if key in there])
        except (OSError, ValueError):  # a lost shard costs its pictures, not the report
            continue
    return found


def first(connection: duckdb.DuckDBPyConnection, out: Path, run: str, side: str) -> list[bytes]:
    """The first images of a side: samples by index, training images as packing has shuffled them."""
    if side == "generated":
        asked, params = "from samples where run = $run order by seed, index", {"run": run}
    else:
        asked, params = "from images where status = 'packed' order by key", {}
    wanted = sql.select(connection, f"select key, shard {asked} limit {FIRST}", params)
    there = images(folder_of(out, run, side), wanted)
    return [there[key] for key in wanted["key"] if key in there]


def by_group(
    connection: duckdb.DuckDBPyConnection, out: Path, run: str
) -> dict[tuple[str, str], dict[str, list[bytes]]]:
    """(attribute, group) -> side -> the first images of it, unchosen.

    Samples are told by the labeller that counts; training images by their annotations where there are any.
    """
    asked = f"""
        select attribute, "group", source, min(key, {OF_A_GROUP}) as key from classes
        where attribute <> 'intersection_age' and (source <> 'generated' or run = $run) group by all"""
    wanted = sql.select(connection, asked, {"run": run}).explode("key").sort("attribute", "group", "key")
    annotated = wanted.filter(source="annotated")["attribute"].unique().to_list()
    real = pl.when(pl.col("attribute").is_in(annotated)).then(pl.lit("annotated")).otherwise(pl.lit("train"))
    sides = {"generated": wanted.filter(source="generated"), "train": wanted.filter(pl.col("source") == real)}
    found: dict[tuple[str, str], dict[str, list[bytes]]] = {}
    for side, rows in sides.items():
        there = images(folder_of(out, run, side), placed(connection, run, side, rows["key"]))
        for row in rows.iter_rows(named=True):
            lists = found.setdefault((row["attribute"], row["group"]), {"generated": [], "train": []})
            if row["key"] in there:
                lists[side].append(there[row["key"]])
    return found


def placed(connection: duckdb.DuckDBPyConnection, run: str, side: str, keys: pl.Series) -> pl.DataFrame:
    """key and shard of images named by their keys."""
    of, params = ("samples where run = $run and", {"run": run}) if side == "generated" else ("images where", {})
    asked = f"select key, shard from {of} key in (select unnest($keys::varchar[]))"
    return sql.select(connection, asked, params | {"keys": keys.unique().to_list()})


def certain(connection: duckdb.DuckDBPyConnection, out: Path, run: str) -> list[dict[str, Any]]:
    """The samples of which the labeller is most and least sure: attribute, order, group, probability, key, image."""
    found = []
    for attribute in ("gender", "age", "skin_tone"):
        for order in ("most", "least"):
            rows = sql.ask(connection, "confidence", attribute=attribute, order=order, run=run, limit=CERTAIN)
            there = images(folder_of(out, run, "generated"), rows.select("key", "shard"))
            for row in rows.iter_rows(named=True):
                if row["key"] in there:
                    about = {name: row[name] for name in ("group", "probability", "key")}
                    found.append({"attribute": attribute, "order": order, **about, "image": there[row["key"]]})
    return found


def nearest(connection: duckdb.DuckDBPyConnection, out: Path, run: str) -> list[dict[str, Any]]:
    """The samples that are nearest to a training image: rows of question `neighbours`, with both images."""
    rows = sql.ask(connection, "neighbours", run=run, limit=NEAREST)
    ours = images(folder_of(out, run, "generated"), placed(connection, run, "generated", rows["key"]))
    theirs = images(folder_of(out, run, "train"), placed(connection, run, "train", rows["nearest"]))
    return [
        row | {"image": ours[row["key"]], "train_image": theirs[row["nearest"]]}
        for row in rows.iter_rows(named=True)
        if row["key"] in ours and row["nearest"] in theirs
    ]
