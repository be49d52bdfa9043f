"""Which annotation row belongs to which image: by the longest path suffix, with every miss accounted for."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from shards.annotations import LABELS
from shards.discover import describe
from shards.errors import FairfaceError

MAX_SUFFIX_DEPTH = 12  # folders and name that a suffix may have
# Folders that AI-Face's tables and archives spell differently, folded (lower case, no "_" or "-").
ALIASES = {
    "stylegan2ffhq": "stylegan2",
    "mmdganceleba": "mmdgan",
    "stganceleba": "stgan",
    "tamingtransformervqgan": "vqgan",
    "tamingtransformer": "vqgan",
}
COMPARED_LABELS = [name for name in LABELS if name != "split"]  # a row may be in the tables of two splits
UNMATCHED = dict.fromkeys(("what", "reason", "path", "family", "subset"), pl.String)


@dataclass
class Matched:
    """`files`: path, family, subset, LABELS, matched, in the order given. `unmatched`: an UNMATCHED row each."""

    files: pl.DataFrame
    unmatched: pl.DataFrame


def normalise_name(name: str) -> str:
    """A folder's name without case, `_` and `-`."""
    return name.lower().replace("_", "").replace("-", "")


def with_aliases(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """ALIASES and a user's own pairs of folder names, all folded; a name stands for the last one of its chain."""
    aliases = ALIASES | {
        normalise_name(one): normalise_name(other)
        for one, other in pairs
        if normalise_name(one) != normalise_name(other)
    }
    ends = {}
    for name, end in aliases.items():
        passed = {name}
        while end in aliases and end not in passed:
            passed.add(end)
            end = aliases[end]
        if end in passed:
            raise FairfaceError(f"the aliases of {name} lead back to it: give each pair of names once")
        ends[name] = end
    return ends


@dataclass
class Side:
    """Files or rows that wait for a counterpart, by the number of their folder: folders are far fewer than paths."""

    waiting: pl.DataFrame  # number, folder (number), name
    exact: pl.Series  # each folder's full path
    folded: pl.Series  # without case, "_", "-" and aliases
    reach: pl.Series  # how many folders a suffix must hold at least

    @classmethod
    def of(cls, paths: pl.Series, root: Path, top: str, aliases: dict[str, str]) -> "Side":
        """Paths below `root`; `top` is put before those that are relative, for their full path."""
        parts = pl.DataFrame({"path": paths}).select(
            folder=pl.col("path").str.extract(r"(?s)^(.*/)").fill_null(""), name=pl.col("path").str.extract(r"([^/]*)$")
        )
        folders = parts.select(pl.col("folder").unique(maintain_order=True))
        full = folders.select(
            pl.when(pl.col("folder").str.starts_with("/")).then("folder").otherwise(top + pl.col("folder"))
        )
        numbered = folders.with_columns(number=pl.int_range(pl.len(), dtype=pl.UInt32))
        waiting = parts.join(numbered, on="folder", how="left", maintain_order="left").select(
            number=pl.int_range(pl.len(), dtype=pl.UInt32), folder="number", name="name"
        )
        seen = full.to_series() if str(root) != "/" else folders.to_series()
        return cls(
            waiting,
            full.to_series(),
            normalise_folders(seen, aliases),
            describe(folders["folder"] + "x", root)["reach"],
        )

    def keyed(self, keys: pl.Series, numbers: pl.DataFrame) -> pl.DataFrame:
        """number, key (of the folder), name of what waits in a folder whose key is one of `numbers`."""
        found = keys.alias("text").to_frame().join(numbers, on="text", how="left", maintain_order="left")["key"]
        return self.waiting.select("number", found.gather(self.waiting["folder"]).alias("key"), "name").drop_nulls(
            "key"
        )

    def suffixes(self, count: int) -> pl.Series:
        """The last `count` folders of each folder's path; null where it has fewer, or they don't reach far enough."""
        last = self.folded.str.extract(f"((?:[^/]*/){{{count}}})$")
        return last.to_frame("last").select(pl.when(self.reach <= count).then("last")).to_series()

    def drop(self, numbers: pl.Series) -> None:
        self.waiting = self.waiting.join(numbers.to_frame("number"), on="number", how="anti", maintain_order="left")


def normalise_folders(folders: pl.Series, aliases: dict[str, str]) -> pl.Series:
    """Folders' paths, folded and aliased, without a slash before them."""
    text = folders.str.strip_chars_start("/").str.to_lowercase().str.replace_all("[_-]", "")
    for alias, name in aliases.items():
        text = text.str.replace_all(f"(^|/){re.escape(alias)}/", f"${{1}}{name.replace('$', '$$')}/")
    return text


def match_rows(files: pl.DataFrame, rows: pl.DataFrame, root: Path, aliases: dict[str, str] = ALIASES) -> Matched:
    """Gives each file (`path` relative to `root`, and its `describe`) its row's labels, by the longest path suffix.

    A row that names a file exactly (absolute, or relative to `root`) takes it; otherwise the suffix must hold at
    least one folder, and the subset's where either path names a family, for names repeat across methods. A suffix
    that fits several files or several rows is `ambiguous` and joins none of them, but rows that say the same are one,
    and the others `repeated`; what nothing fits is `missing` its counterpart.
    """
    top = str(root.resolve()).rstrip("/") + "/"
    ours, theirs = Side.of(files["path"], root, top, aliases), Side.of(rows["path"], Path("/"), top, aliases)
    pairs, vague_files, vague_rows, repeated = [], [], [], []
    said = rows.select(pl.struct(COMPARED_LABELS).hash()).to_series()
    deepest = min(MAX_SUFFIX_DEPTH, theirs.folded.str.count_matches("/").max() or 0)
    for count in range(deepest + 1, 0, -1):
        keys = (ours.exact, theirs.exact) if count > deepest else (ours.suffixes(count), theirs.suffixes(count))
        shared = keys[0].alias("text").to_frame().join(keys[1].alias("text").to_frame(), on="text", how="semi")
        numbers = shared.unique().with_columns(key=pl.int_range(pl.len(), dtype=pl.UInt32))
        left, right = ours.keyed(keys[0], numbers), theirs.keyed(keys[1], numbers)
        # counted before they are joined: a suffix that fits a thousand of each would make a million pairs
        counted = pl.len().over("key", "name").alias("n")
        hit_files = left.join(right, on=["key", "name"], how="semi").with_columns(counted)
        hit_rows = right.join(left, on=["key", "name"], how="semi", maintain_order="left")
        theirs.drop(hit_rows["number"])
        fresh = (
            hit_rows.with_columns(said=said.gather(hit_rows["number"]))
            .select(pl.struct("key", "name", "said").is_first_distinct())
            .to_series()
        )
        repeated.append(hit_rows.filter(~fresh)["number"])
        hit_rows = hit_rows.filter(fresh).with_columns(counted)
        sole = hit_files.filter(pl.col("n") == 1).join(hit_rows.filter(pl.col("n") == 1), on=["key", "name"])
        pairs.append(sole.select(file="number", row="number_right"))
        vague_files.append(hit_files.join(pairs[-1], left_on="number", right_on="file", how="anti")["number"])
        vague_rows.append(hit_rows.join(pairs[-1], left_on="number", right_on="row", how="anti")["number"])
        ours.drop(hit_files["number"])
    matched = pl.concat(pairs)
    numbers = files.select(file=pl.int_range(pl.len(), dtype=pl.UInt32))
    row = numbers.join(matched, on="file", how="left", maintain_order="left")["row"]
    labels = rows.select(pl.col(LABELS).gather(row)) if len(rows) else rows.select(LABELS).clear(len(files))
    missed = [
        unmatched("row", "missing", rows[theirs.waiting["number"]]),
        unmatched("row", "ambiguous", rows[pl.concat(vague_rows)]),
        unmatched("row", "repeated", rows[pl.concat(repeated)]),
        unmatched("image", "missing", files[ours.waiting["number"]]),
        unmatched("image", "ambiguous", files[pl.concat(vague_files)]),
    ]
    joined = files.drop("reach").hstack(labels).with_columns(matched=row.is_not_null())
    return Matched(joined, pl.concat(missed))


def unmatched(what: str, reason: str, frame: pl.DataFrame) -> pl.DataFrame:
    """UNMATCHED rows for the paths of a frame; a table's paths name their family and subset themselves."""
    if "subset" not in frame.columns:
        frame = describe(frame["path"], Path("/"))
    found = frame.select(pl.lit(what).alias("what"), pl.lit(reason).alias("reason"), "path", "family", "subset")
    return found.cast(UNMATCHED).sort("path")
