"""Decides which images are packed, with which labels, in which order and into which tar."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from shards import annotations, discover, match, selection
from shards.atomic_io import fingerprint
from shards.attributes import AttributeTable, OwnAttributes, built_in_attributes
from shards.documents import PackInputs, ShardsDocument
from shards.errors import FairfaceError
from shards.layouts import TARGETS, Layout
from shards.tar import BLOCK
from shards.workspace import SYNTHETIC_MARKER, is_unicode

# A family of deepfakes contains real images and fakes, so the family alone does not determine the target.
TARGET_OF_FAMILY = pl.col("family").replace_strict(
    {"GANs": "fake", "DMs": "fake", "Real": "real"}, default=None, return_dtype=pl.Enum(list(TARGETS))
)


@dataclass(frozen=True)
class PackConfig:
    """The options that, with the images and tables, decide what is packed."""

    subsets: tuple[str, ...] = ()  # families or methods; all when empty
    splits: tuple[str, ...] = ()  # all when empty
    where: str | None = None  # a DuckDB predicate over the tidy columns
    annotated_only: bool = False  # leave out the images that have no row
    limit: int | None = None  # images, a seeded random sample
    seed: int = 0  # of the global shuffle, and of the limit's sample
    age_codes: str = "auto"  # a key of annotations.AGE_CODES, or auto
    columns: tuple[tuple[str, str], ...] = ()  # (attribute, the tables' column); empty for tables of a known layout
    attributes: str | None = None  # path of a file of attributes; None: those of the workspace
    aliases: tuple[tuple[str, str], ...] = ()  # (a folder's name in one place, its name in the other)
    shard_images: int = 2048  # a tar
    shard_bytes: int | None = None  # a tar, instead of the number of images
    check: bool = True  # decode every image once
    size: int | None = None  # pixels of the shorter side of re-encoded images; None keeps the original size
    quality: int = 90  # of the JPEGs that `size` asks for


@dataclass
class Survey:
    """The files that a pack depends on, before any of them is read."""

    root: Path
    config: PackConfig
    tree: discover.Tree
    table_paths: list[Path]
    options: annotations.ReadOptions  # of the tables
    names_layout: Layout | None  # in which the images' names state their labels; None if they don't
    fingerprint: str  # of the paths, sizes and times of all files, and of the options


@dataclass
class Plan:
    """The place of each image, decided before the first byte is written."""

    images: pl.DataFrame  # key, shard, path, family, subset, labels, matched of the selected images, in tar order
    unmatched: pl.DataFrame  # match.UNMATCHED_SCHEMA, of the selected subsets
    attributes: AttributeTable
    inputs: PackInputs


def survey(
    root: Path,
    config: PackConfig,
    *,
    tables: list[Path] | None = None,
    exclude: Path | None = None,
    own: OwnAttributes | None = None,
) -> Survey:
    """Find images and annotation tables below `root`, outside the folder `exclude`.

    `tables` names the annotation tables; None looks for them, and for labels in the images' names if there are none.
    They are read for the user's `own` attributes, by default for the built-in ones.
    Raises FairfaceError for a missing folder, and for one without images.
    """
    if not is_unicode(str(root)):
        raise FairfaceError(f"the name of the folder {str(root)!r} is not valid Unicode: rename it, or link to it")
    if not root.is_dir():
        raise FairfaceError(f"there is no folder {root}: give the images' root with --data")
    if exclude and root.resolve() == exclude.resolve():
        raise FairfaceError(f"{root} is both --data and --out: choose another folder for the output with --out")
    tree = discover.find_images(root, exclude=exclude)
    if tree.files.is_empty():
        closed = f"; {', '.join(tree.unreadable[:3])} can't be read" if tree.unreadable else ""
        raise FairfaceError(f"no images below {root} (looked for {', '.join(discover.SUFFIXES)}){closed}")
    options = annotations.ReadOptions(
        age_codes=config.age_codes, columns=config.columns, attributes=own.table if own else built_in_attributes()
    )
    table_paths, other_files = annotations.find_tables(root, options.attributes) if tables is None else (tables, [])
    names_layout = None
    if tables is None and not any(annotations.is_table(path, options.attributes) for path in table_paths):
        names_layout = annotations.find_layout_of_names(tree.files["path"])
        if names_layout:
            table_paths, other_files = [], sorted(other_files + [str(path) for path in table_paths])
    tree.unreadable += other_files
    inputs = [ShardsDocument.FORMAT, str(root.resolve()), options_of(config), identity_hash(tree, table_paths)]
    inputs += [names_layout.title] if names_layout else []
    inputs += [own.text] if own else []
    return Survey(root, config, tree, table_paths, options, names_layout, fingerprint(inputs))


def options_of(config: PackConfig) -> dict[str, Any]:
    """The options by name; `columns` only if it is set, so that packs of earlier versions keep their fingerprint.

    The content of a file of attributes counts, not its path.
    """
    return {
        name: value for name, value in vars(config).items() if name != "attributes" and (name != "columns" or value)
    }


def identity_hash(tree: discover.Tree, table_paths: list[Path]) -> str:
    """A hash of the paths, sizes and times of images and tables."""
    digest = hashlib.sha256()
    for files in tree.files.iter_slices(10_000):  # paths relative to the root, which can be spelt in many ways
        digest.update("\0".join(files["path"]).encode())
        digest.update(files.select("size", "mtime").fill_null(-1).to_numpy().tobytes())
    for path in table_paths:
        status = os.stat(path)
        digest.update(f"{path.resolve()}\0{status.st_size} {status.st_mtime_ns}\0".encode())
    return digest.hexdigest()


def make_plan(survey: Survey) -> Plan:
    """Read the tables, label the images, select and shuffle them, and assign them to tars.

    Raises FairfaceError for a file that is not an annotation table, and for a selection that is invalid or empty.
    """
    config, aliases = survey.config, match.with_aliases(survey.config.aliases)
    if survey.names_layout:
        tables = annotations.read_names(survey.tree.files["path"], survey.names_layout, survey.options)
    else:
        tables = annotations.read_tables(survey.table_paths, survey.options)
    files = discover.describe(survey.tree.files["path"], survey.root)
    matched = match.match_rows(files, tables.frame, root=survey.root, aliases=aliases)
    selected, unmatched = select_images(matched, config, aliases=aliases, attributes=survey.options.attributes)
    if not tables.files:  # without a table, images are not counted as lacking a row
        unmatched = unmatched.clear()
    selected = selected[selection.shuffled_sample(len(selected), config.limit, seed=config.seed)]
    images = selected.select(
        pl.int_range(pl.len()).cast(pl.String).str.zfill(8).alias("key"),
        ("shard-" + shard_numbers(selected, survey).cast(pl.String).str.zfill(6) + ".tar").alias("shard"),
        pl.all(),
    )
    counts = unmatched.group_by("what", "reason", maintain_order=True).len()
    inputs = PackInputs(
        fingerprint=survey.fingerprint,
        order=order_hash(images),
        synthetic=(survey.root / SYNTHETIC_MARKER).exists(),
        root=str(survey.root.resolve()),
        options=options_of(config),
        images_found=len(files),
        unreadable=survey.tree.unreadable,
        tables=tables.files,
        layouts=tables.layouts,
        rows=tables.rows,
        rows_repeated=tables.repeated,
        rows_disagreeing=tables.disagreeing,
        rows_uncoded=tables.uncoded,
        matched=int(images["matched"].sum()),
        unmatched={f"{reason}_{what}s": count for what, reason, count in counts.iter_rows()},
    )
    return Plan(images, unmatched, survey.options.attributes, inputs)


def select_images(
    matched: match.Matched, config: PackConfig, *, aliases: dict[str, str], attributes: AttributeTable
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The images that the options select, and the unmatched rows and images of the selected subsets."""
    images, unmatched = matched.files, matched.unmatched
    if config.subsets:
        kept = selection.in_subsets(images, config.subsets, aliases=aliases)
        selection.check_selection("--subset", config.subsets, frame=images, selected=kept, columns=("family", "subset"))
        images = images.filter(kept)
        unmatched = unmatched.filter(selection.in_subsets(unmatched, config.subsets, aliases=aliases))
    images = images.with_columns(target=pl.coalesce("target", TARGET_OF_FAMILY))
    if config.splits:
        kept = pl.col("split").is_in(config.splits).fill_null(False)
        selection.check_selection("--split", config.splits, frame=images, selected=kept, columns=("split",))
        images = images.filter(kept)
    if config.where is not None:
        images = images[selection.rows_matching(images, config.where, attributes)]
    if config.annotated_only:
        images = images.filter("matched")
        if images.is_empty():
            raise FairfaceError("--annotated-only selects nothing: no image has an annotation row")
    return images, unmatched


def shard_numbers(images: pl.DataFrame, survey: Survey) -> pl.Series:
    """The number of each image's tar: tars with equally many images, or with about equally many source bytes."""
    config = survey.config
    if not config.shard_bytes:
        return images.select(pl.int_range(pl.len()) // config.shard_images).to_series()
    sizes = images.select("path").join(survey.tree.files, on="path", how="left", maintain_order="left")["size"]
    blocks = (sizes.fill_null(0) + BLOCK - 1) // BLOCK + 1  # one for the header
    return ((blocks.cum_sum() - blocks) * BLOCK // config.shard_bytes).rle_id()


def order_hash(images: pl.DataFrame) -> str:
    """A hash of the images' order, so that shards of another order are not mistaken for those of this plan."""
    digest = hashlib.sha256()
    for rows in images.iter_slices(10_000):
        digest.update(rows.select("shard", "path").write_csv(include_header=False).encode())
    return digest.hexdigest()
