"""Which annotation row belongs to which image: by the longest path suffix, with every miss accounted for."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from shards.annotations import LABELS
from shards.tree import describe

DEEPEST = 12  # folders and name that a suffix may have
# Folders that AI-Face's tables and archives spell differently, folded (lower case, no "_" or "-").
ALIASES = {
    "stylegan2ffhq": "stylegan2",
    "mmdganceleba": "mmdgan",
    "stganceleba": "stgan",
    "tamingtransformervqgan": "vqgan",
    "tamingtransformer": "vqgan",
}
UNMATCHED = dict.fromkeys(("what", "reason", "path", "family", "subset"), pl.String)


@dataclass
class Matched:
    """`files`: path, family, subset, LABELS, matched, in the order given. `unmatched`: an UNMATCHED row each."""

    files: pl.DataFrame
    unmatched: pl.DataFrame


def fold(name: str) -> str:
    """A folder's name without case, `_` and `-`."""
    return name.lower().replace("_", "").replace("-", "")


def with_aliases(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """ALIASES and a user's own pairs of folder names, all folded; a name stands for the last one of its chain."""
    aliases = ALIASES | {fold(one): fold(other) for one, other in pairs if fold(one) != fold(other)}
    ends = {}
    for name, end in aliases.items():
        passed = {name}
        while end in aliases and end not in passed:
            passed.add(end)
            end = aliases[end]
        if end in passed:
            raise ValueError(f"the aliases of {name} lead back to it: give each pair of names once")
        ends[name] = end
    return ends


def folded(path: pl.Expr, aliases: dict[str, str]) -> pl.Expr:
    """A path whose folders are folded and aliased, and whose file name is kept, without a slash before it."""
    folders = path.str.extract(r"^/*(.*/)").fill_null("").str.to_lowercase().str.replace_all("[_-]", "")
    for alias, name in aliases.items():
        folders = folders.str.replace_all(f"(^|/){pl.escape_regex(alias)}/", f"${{1}}{name.replace('$', '$$')}/")
    return folders + path.str.extract(r"([^/]*)$")


def join(files: pl.DataFrame, rows: pl.DataFrame, root: Path, aliases: dict[str, str] = ALIASES) -> Matched:
    """Gives each file (`path` relative to `root`, and its `describe`) its row's labels, by the longest path suffix.

    A row that names a file exactly (absolute, or relative to `root`) takes it; otherwise the suffix must hold at
    least one folder, and the subset's where either path names a family, for names repeat across methods. A suffix
    that fits several files or several rows is `ambiguous` and joins none of them; what nothing fits is `missing`
    its counterpart.
    """
    top = str(root.resolve()).rstrip("/") + "/"
    full = pl.when(pl.col("path").str.starts_with("/")).then("path").otherwise(pl.lit(top) + pl.col("path"))
    open_files = files.select(file=pl.int_range(pl.len(), dtype=pl.UInt32), full=pl.lit(top) + pl.col("path"))
    open_rows = rows.select(row=pl.int_range(pl.len(), dtype=pl.UInt32), full=full, path="path")
    pairs = [open_files.join(open_rows, on="full").select("file", "row").unique("file", keep="first")]
    open_files = open_files.join(pairs[0], on="file", how="anti").select("file", path=folded(pl.col("full"), aliases))
    open_files = open_files.hstack(files[open_files["file"]].select("reach"))
    open_rows = open_rows.join(pairs[0], on="row", how="anti")
    reach = describe(open_rows["path"], Path("/"))["reach"]
    open_rows = open_rows.select("row", path=folded(pl.col("path"), aliases), reach=reach)
    vague = {"file": [], "row": []}
    deepest = open_rows["path"].str.count_matches("/").max() or 0
    for folders in range(min(deepest, DEEPEST - 1), 0, -1):
        key = pl.col("path").str.extract(f"((?:[^/]*/){{{folders}}}[^/]*)$")
        keyed_files, keyed_rows = (
            side.filter(pl.col("reach") <= folders).select(name, key=key)
            for side, name in ((open_files, "file"), (open_rows, "row"))
        )
        # counted before they are joined: a suffix that fits a thousand of each would make a million pairs
        hit_files = keyed_files.join(keyed_rows, on="key", how="semi").with_columns(n=pl.len().over("key"))
        hit_rows = keyed_rows.join(keyed_files, on="key", how="semi").with_columns(n=pl.len().over("key"))
        sole = hit_files.filter(pl.col("n") == 1).join(hit_rows.filter(pl.col("n") == 1), on="key")
        pairs.append(sole.select("file", "row"))
        vague["file"].append(hit_files.join(sole, on="file", how="anti")["file"])
        vague["row"].append(hit_rows.join(sole, on="row", how="anti")["row"])
        open_files = open_files.join(hit_files, on="file", how="anti")
        open_rows = open_rows.join(hit_rows, on="row", how="anti")
    pair = pl.concat(pairs)
    labels = pair.select("file").hstack(rows[pair["row"]].select(LABELS)).with_columns(matched=pl.lit(True))
    joined = files.with_columns(file=pl.int_range(pl.len(), dtype=pl.UInt32)).join(
        labels, on="file", how="left", maintain_order="left"
    )
    missed = [
        unmatched("row", "missing", rows[open_rows["row"]]),
        *(unmatched("row", "ambiguous", rows[part]) for part in vague["row"]),
    ]
    if len(rows):
        missed += [
            unmatched("image", "missing", files[open_files["file"]]),
            *(unmatched("image", "ambiguous", files[part]) for part in vague["file"]),
        ]
    return Matched(joined.drop("file", "reach").with_columns(pl.col("matched").fill_null(False)), pl.concat(missed))


def unmatched(what: str, reason: str, frame: pl.DataFrame) -> pl.DataFrame:
    """UNMATCHED rows for the paths of a frame; a table's paths name their family and subset themselves."""
    if "subset" not in frame.columns:
        frame = describe(frame["path"], Path("/"))
    found = frame.select(pl.lit(what).alias("what"), pl.lit(reason).alias("reason"), "path", "family", "subset")
    return found.cast(UNMATCHED).sort("path")
