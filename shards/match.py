"""Joins annotation rows to images by their longest common path suffix, and lists everything that stays unmatched."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from shards.discover import describe
from shards.errors import FairfaceError

MAX_SUFFIX_DEPTH = 12  # parts of a suffix: folders and the name
# Folders that AI-Face's tables and archives spell differently, as normalise_name spells them.
ALIASES = {
    "stylegan2ffhq": "stylegan2",
    "mmdganceleba": "mmdgan",
    "stganceleba": "stgan",
    "tamingtransformervqgan": "vqgan",
    "tamingtransformer": "vqgan",
}
UNMATCHED_SCHEMA = pl.Schema(dict.fromkeys(("what", "reason", "path", "family", "subset"), pl.String))


@dataclass
class Matched:
    """Images with the labels of their rows, and the unmatched images and rows."""

    files: pl.DataFrame  # path, family, subset, the rows' labels, matched; in the order of the input
    unmatched: pl.DataFrame  # UNMATCHED_SCHEMA


def normalise_name(name: str) -> str:
    """A folder's name in lower case, without `_` and `-`."""
    return name.lower().replace("_", "").replace("-", "")


def with_aliases(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """ALIASES and a user's own pairs of folder names, normalised; chains of aliases are resolved.

    Raises FairfaceError for a cycle.
    """
    aliases = ALIASES | {
        normalise_name(one): normalise_name(other)
        for one, other in pairs
        if normalise_name(one) != normalise_name(other)
    }
    resolved = {}
    for name, end in aliases.items():
        visited = {name}
        while end in aliases and end not in visited:
            visited.add(end)
            end = aliases[end]
        if end in visited:
            raise FairfaceError(f"the aliases of {name} lead back to it: give each pair of names once")
        resolved[name] = end
    return resolved


@dataclass
class PathIndex:
    """The paths of one side of the join, grouped by folder because there are far fewer folders than paths."""

    paths: pl.DataFrame  # number of the path, folder (its number), name
    pending: pl.DataFrame  # the unmatched ones
    full_paths: pl.Series  # of each folder
    normalised_paths: pl.Series  # of each folder: without case, "_", "-" and aliases
    min_depth: pl.Series  # of each folder: folders that a suffix must contain at least
    relative_depth: pl.Series  # of each folder: folders of a relative path that names no family; null for other paths

    @classmethod
    def build(cls, paths: pl.Series, *, root: Path, prefix: str, aliases: dict[str, str]) -> "PathIndex":
        """Index paths below `root`; `prefix` makes a relative path a full one."""
        parts = pl.DataFrame({"path": paths}).select(
            folder=pl.col("path").str.extract(r"(?s)^(.*/)").fill_null(""), name=pl.col("path").str.extract(r"([^/]*)$")
        )
        folders = parts.select(pl.col("folder").unique(maintain_order=True))
        full = folders.select(
            pl.when(pl.col("folder").str.starts_with("/")).then("folder").otherwise(prefix + pl.col("folder"))
        )
        numbered = folders.with_columns(number=pl.int_range(pl.len(), dtype=pl.UInt32))
        indexed = parts.join(numbered, on="folder", how="left", maintain_order="left").select(
            number=pl.int_range(pl.len(), dtype=pl.UInt32), folder="number", name="name"
        )
        visible = full.to_series() if str(root) != "/" else folders.to_series()
        described = describe(folders["folder"] + "x", root)
        relative = described.select(
            pl.when(pl.col("family").is_null() & ~pl.col("path").str.starts_with("/"))
            .then(pl.col("path").str.count_matches("/", literal=True))
            .alias("relative_depth")
        )
        normalised = normalise_folders(visible, aliases)
        return cls(indexed, indexed, full.to_series(), normalised, described["depth"], relative.to_series())

    def select_folders(self, keys: pl.Series, numbers: pl.DataFrame) -> pl.DataFrame:
        """number, key (of the folder), name of the pending paths in folders whose key is in `numbers` (text, key)."""
        folder_keys = keys.alias("text").to_frame().join(numbers, on="text", how="left", maintain_order="left")["key"]
        keyed = self.pending.select("number", folder_keys.gather(self.pending["folder"]).alias("key"), "name")
        return keyed.drop_nulls("key")

    def last_folders(self, count: int) -> pl.Series:
        """The last `count` folders of each folder's path; null where it has fewer."""
        return self.normalised_paths.str.extract(f"((?:[^/]*/){{{count}}})$")

    def suffixes(self, count: int) -> pl.Series:
        """The last `count` folders of each folder's path; null where it has fewer, or more are needed."""
        last = self.last_folders(count)
        return last.to_frame("last").select(pl.when(self.min_depth <= count).then("last")).to_series()

    def unique_ends(self, count: int, *, names: pl.Series) -> pl.DataFrame:
        """number, end (the last `count` folders and the name) of the paths with one of `names` whose end is unique."""
        named = self.paths.join(names.to_frame("name"), on="name", how="semi")
        ends = named.select("number", end=self.last_folders(count).gather(named["folder"]) + pl.col("name"))
        return ends.drop_nulls("end").filter(pl.col("end").is_unique())

    def remove(self, numbers: pl.Series) -> None:
        """Take paths out of `pending`."""
        self.pending = self.pending.join(numbers.to_frame("number"), on="number", how="anti", maintain_order="left")


def normalise_folders(folders: pl.Series, aliases: dict[str, str]) -> pl.Series:
    """Folders' paths, normalised and with aliases applied, without a leading slash."""
    text = folders.str.strip_chars_start("/").str.to_lowercase().str.replace_all("[_-]", "")
    for alias, name in aliases.items():
        text = text.str.replace_all(f"(^|/){re.escape(alias)}/", f"${{1}}{name.replace('$', '$$')}/")
    return text


@dataclass
class MatchState:
    """The join of files and rows, from the longest suffix to the shortest."""

    files: PathIndex
    rows: PathIndex
    labels_hash: pl.Series  # of each row's labels except its split: a row may be in the tables of two splits
    pairs: list[pl.DataFrame] = field(default_factory=list)  # file, row: numbers
    ambiguous_files: list[pl.Series] = field(default_factory=list)  # numbers
    ambiguous_rows: list[pl.Series] = field(default_factory=list)  # numbers
    repeated_rows: list[pl.Series] = field(default_factory=list)  # numbers

    def match(self, file_keys: pl.Series, row_keys: pl.Series) -> None:
        """Match pending files and rows that share a folder's key and a name."""
        shared = file_keys.alias("text").to_frame().join(row_keys.alias("text").to_frame(), on="text", how="semi")
        numbers = shared.unique().with_columns(key=pl.int_range(pl.len(), dtype=pl.UInt32))
        left, right = self.files.select_folders(file_keys, numbers), self.rows.select_folders(row_keys, numbers)
        # counted before they are joined: a suffix that fits a thousand of each would make a million pairs
        counted = pl.len().over("key", "name").alias("n")
        files = left.join(right, on=["key", "name"], how="semi").with_columns(counted)
        rows = right.join(left, on=["key", "name"], how="semi", maintain_order="left")
        self.rows.remove(rows["number"])
        distinct = (
            rows.with_columns(labels=self.labels_hash.gather(rows["number"]))
            .select(pl.struct("key", "name", "labels").is_first_distinct())
            .to_series()
        )
        self.repeated_rows.append(rows.filter(~distinct)["number"])
        rows = rows.filter(distinct).with_columns(counted)
        unique = files.filter(pl.col("n") == 1).join(rows.filter(pl.col("n") == 1), on=["key", "name"])
        pairs = unique.select(file="number", row="number_right")
        self.pairs.append(pairs)
        self.ambiguous_files.append(files.join(pairs, left_on="number", right_on="file", how="anti")["number"])
        self.ambiguous_rows.append(rows.join(pairs, left_on="number", right_on="row", how="anti")["number"])
        self.files.remove(files["number"])

    def match_whole_rows(self) -> None:
        """Match pending rows whose whole relative path ends exactly one file's path, and no other row's."""
        pending = self.rows.pending.with_columns(self.rows.relative_depth.gather(self.rows.pending["folder"]))
        for count in sorted(pending["relative_depth"].drop_nulls().unique(), reverse=True):
            rows = pending.filter(relative_depth=count)
            files, ends = (index.unique_ends(count, names=rows["name"]) for index in (self.files, self.rows))
            pairs = files.join(ends, on="end").select(file="number", row="number_right")
            pairs = pairs.join(rows, left_on="row", right_on="number", how="semi")
            pairs = pairs.join(self.files.pending, left_on="file", right_on="number", how="semi")
            self.pairs.append(pairs)
            self.files.remove(pairs["file"])
            self.rows.remove(pairs["row"])


def match_rows(files: pl.DataFrame, rows: pl.DataFrame, *, root: Path, aliases: dict[str, str] = ALIASES) -> Matched:
    """Give each file (`path` relative to `root`, and its `describe`) its row's labels, by the longest path suffix.

    `rows` has `path` and the labels. A row that names a file exactly (absolute, or relative to `root`) is matched to
    it; otherwise the suffix must contain at least one folder, and the subset's folder if either path names a family,
    because names repeat across methods. A suffix that fits several files or several rows is `ambiguous` and matches
    none of them, but rows with the same labels count as one, and the others are `repeated`. Last, a relative row that
    names no family, perhaps only a name, is matched to the only file whose path it ends, if it ends no other row's.
    A file or row without any match is `missing`.
    """
    prefix, labels = str(root.resolve()).rstrip("/") + "/", [name for name in rows.columns if name != "path"]
    state = MatchState(
        PathIndex.build(files["path"], root=root, prefix=prefix, aliases=aliases),
        PathIndex.build(rows["path"], root=Path("/"), prefix=prefix, aliases=aliases),
        rows.select(pl.struct(name for name in labels if name != "split").hash()).to_series(),
    )
    state.match(state.files.full_paths, state.rows.full_paths)
    deepest = max(state.rows.normalised_paths.str.count_matches("/").to_list(), default=0)
    for count in range(min(MAX_SUFFIX_DEPTH, deepest), 0, -1):
        state.match(state.files.suffixes(count), state.rows.suffixes(count))
    state.match_whole_rows()
    numbers = files.select(file=pl.int_range(pl.len(), dtype=pl.UInt32))
    row = numbers.join(pl.concat(state.pairs), on="file", how="left", maintain_order="left")["row"]
    labelled = rows.select(pl.col(labels).gather(row)) if len(rows) else rows.select(labels).clear(len(files))
    unmatched = [
        describe_unmatched("row", "missing", frame=rows[state.rows.pending["number"]]),
        describe_unmatched("row", "ambiguous", frame=rows[pl.concat(state.ambiguous_rows)]),
        describe_unmatched("row", "repeated", frame=rows[pl.concat(state.repeated_rows)]),
        describe_unmatched("image", "missing", frame=files[state.files.pending["number"]]),
        describe_unmatched("image", "ambiguous", frame=files[pl.concat(state.ambiguous_files)]),
    ]
    joined = files.drop("depth").hstack(labelled).with_columns(matched=row.is_not_null())
    return Matched(joined, pl.concat(unmatched))


def describe_unmatched(what: str, reason: str, *, frame: pl.DataFrame) -> pl.DataFrame:
    """UNMATCHED_SCHEMA of the paths of a frame; a table's paths contain their family and subset."""
    if "subset" not in frame.columns:
        frame = describe(frame["path"], Path("/"))
    columns = frame.select(pl.lit(what).alias("what"), pl.lit(reason).alias("reason"), "path", "family", "subset")
    return columns.cast(UNMATCHED_SCHEMA).sort("path")
