"""Which faces the page shows: the first, those of every group, the most and least certain, the nearest to training."""

import io
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
from PIL import Image

import sql
from shards import tar
from shards.errors import FairfaceError

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
        except (OSError, FairfaceError):  # a lost shard costs its pictures, not the report
            continue
    return {key: data for key, data in found.items() if decodes(data)}


def decodes(data: bytes) -> bool:
    """Whether an image is whole."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # all that Pillow raises for damage
        return False
    return True


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
) -> dict[str, dict[str, dict[str, list[bytes]]]]:
    """attribute -> group -> side -> the first images of it, unchosen; an empty list where no image is here.

    Samples are told by the labeller that counts; training images by their annotations where there are any. A side that
    has no such face is left out.
    """
    asked = f"""
        select attribute, "group", source, coalesce(rank, 1000) as rank, min(key, {OF_A_GROUP}) as key
        from classes left join vocabulary using (attribute, "group")
        where attribute <> 'intersection_age' and (source <> 'generated' or run = $run) group by all"""
    wanted = sql.select(connection, asked, {"run": run}).explode("key").sort("attribute", "rank", "group", "key")
    annotated = wanted.filter(source="annotated")["attribute"].unique().to_list()
    real = pl.when(pl.col("attribute").is_in(annotated)).then(pl.lit("annotated")).otherwise(pl.lit("train"))
    sides = {"generated": wanted.filter(source="generated"), "train": wanted.filter(pl.col("source") == real)}
    there = {
        side: images(folder_of(out, run, side), placed(connection, run, side, rows["key"]))
        for side, rows in sides.items()
    }
    found: dict[str, dict[str, dict[str, list[bytes]]]] = {}
    for row in wanted.iter_rows(named=True):
        found.setdefault(row["attribute"], {}).setdefault(row["group"], {})
    for side, rows in sides.items():
        for row in rows.iter_rows(named=True):
            faces = found[row["attribute"]][row["group"]].setdefault(side, [])
            if row["key"] in there[side]:
                faces.append(there[side][row["key"]])
    return found


def placed(connection: duckdb.DuckDBPyConnection, run: str, side: str, keys: pl.Series) -> pl.DataFrame:
    """key and shard of images named by their keys."""
    of, params = ("samples where run = $run and", {"run": run}) if side == "generated" else ("images where", {})
    asked = f"select key, shard from {of} key in (select unnest($keys::varchar[]))"
    return sql.select(connection, asked, params | {"keys": keys.unique().to_list()})


def certain(
    connection: duckdb.DuckDBPyConnection, out: Path, run: str, rows: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Those of the `rows` (of question `confidence`) whose image is here, with it."""
    there = images(folder_of(out, run, "generated"), pl.DataFrame(rows, {"key": pl.String, "shard": pl.String}))
    return [row | {"image": there[row["key"]]} for row in rows if row["key"] in there]


def nearest(
    connection: duckdb.DuckDBPyConnection, out: Path, run: str, rows: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Those of the `rows` (of question `neighbours`) whose two images are here, with them."""
    keys = [pl.Series([row[name] for row in rows], dtype=pl.String) for name in ("key", "nearest")]
    ours = images(folder_of(out, run, "generated"), placed(connection, run, "generated", keys[0]))
    theirs = images(folder_of(out, run, "train"), placed(connection, run, "train", keys[1]))
    return [
        row | {"image": ours[row["key"]], "train_image": theirs[row["nearest"]]}
        for row in rows
        if row["key"] in ours and row["nearest"] in theirs
    ]
