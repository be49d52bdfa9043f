"""Imports external labels: the original FairFace Generator's CSV, or one written by `fairface label`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from pipeline.labelling import tables
from pipeline.runtime import utc_now
from shards.atomic_io import check_regular, file_sha256, fingerprint, read_parquet
from shards.attributes import Attribute, workspace_attributes
from shards.csv_output import unescape_formulas
from shards.documents import LabelsDocument, RunConfig, SamplesDocument, read_document, write_document
from shards.errors import FairfaceError
from shards.layouts import Layout, built_in_layouts
from shards.locks import exclusive_lock, shared_lock
from shards.workspace import RunFolder, Workspace, is_valid_name

DUPLICATE_COLUMN = re.compile(r"_duplicated_\d+$")  # Polars' suffix for a column whose name occurs again
SAMPLE_NAME = r"sample_([0-9]+)\.\w+$"  # a sample's file name, in the original and here
MAX_PROBABILITY = 1.001  # leaves room for rounding


@dataclass
class ImportResult:
    """The run that labels were imported for, and how many."""

    folder: RunFolder
    images: int


def import_labels(workspace: Workspace, csv: Path, *, run: str | None = None, force: bool = False) -> ImportResult:
    """Write the labels in `csv` as those of `run`, by default of a new run with the name of the file.

    If the run has samples, the file must name exactly these. Raises FairfaceError for a file that is not a table of
    labels, for unknown classes, for samples that do not match, for other labels that exist already, and for a folder
    with files that don't belong to a run.
    """
    check_csv(csv)
    if run is None and not is_valid_name(csv.stem):
        raise FairfaceError(f"--import {csv}: {csv.stem!r} can't be the name of a run: choose one with --run")
    folder, labeller = workspace.run(run or csv.stem), f"imported {csv.name}@{file_sha256(csv)[:8]}"
    csv_labels = read_labels_csv(csv, workspace_attributes(workspace).labelled)
    labels = add_keys(csv_labels)
    files = folder.label_files
    with (
        exclusive_lock(folder.lock, "importing labels"),
        shared_lock(folder.samples_lock, "importing labels"),
        exclusive_lock(files.lock, "importing labels"),
    ):
        samples = read_document(folder.samples_document, SamplesDocument)
        if samples:
            labels = add_keys(csv_labels, keys=keys_by_path(folder, samples))
            check_keys(labels["key"], folder, samples)
        images_hash = samples.fingerprint if samples else None
        document = LabelsDocument(
            source="generated",
            run=folder.name,
            labeller=labeller,
            size=None,
            images=len(labels),
            fingerprint=fingerprint([labeller, images_hash]),
            files={},
            images_hash=images_hash,
        )
        if not folder.config.exists() and any(not path.name.startswith(".") for path in folder.folder.iterdir()):
            raise FairfaceError(f"{folder.folder} holds files that don't belong to a run: choose another --run")
        old = None if force else read_document(files.document, LabelsDocument)
        if old and old.labeller != labeller:
            raise FairfaceError(
                f"{folder.folder} has labels of {old.labeller}: choose another --run, or replace them with --force"
            )
        if not folder.config.exists():
            config = RunConfig(name=folder.name, status="imported", started=utc_now(), imported=str(csv))
            write_document(folder.config, config)
        table = tables.label_table(labels, document=document, method="imported", labeller=labeller)
        tables.replace_tables(files.document, {files.labels: table}, document, obsolete=files.all())
    return ImportResult(folder, len(labels))


def check_csv(csv: Path) -> None:
    """Raise FairfaceError for a file that does not exist or whose name could not be written to a document."""
    if not csv.is_file():
        raise FairfaceError(f"--import {csv}: there is no such file")
    try:
        str(csv).encode()
    except UnicodeEncodeError as error:
        raise FairfaceError(f"--import {str(csv)!r}: give the file a name in UTF-8") from error


def read_csv_text(csv: Path) -> pl.DataFrame:
    """Read a CSV with all values as text; formulas are as they were before our CSVs escaped them.

    Raises FairfaceError for any other file, and for duplicate columns.
    """
    try:
        check_regular(csv)
        table = pl.read_csv(csv, infer_schema=False, glob=False)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, UnicodeDecodeError) as error:
        reason = (str(error).splitlines() or [""])[0][:200]
        raise FairfaceError(f"{csv} can't be read as CSV ({reason})") from error
    if twice := next((name for name in table.columns if DUPLICATE_COLUMN.search(name)), None):
        raise FairfaceError(f"{csv} has the column {DUPLICATE_COLUMN.sub('', twice)!r} twice")
    return unescape_formulas(table)


def read_labels_csv(csv: Path, attributes: Mapping[str, Attribute]) -> pl.DataFrame:
    """Read path, the classes of those `attributes` that are in the file, and their probabilities if there are any.

    Raises FairfaceError for missing columns, unknown classes and invalid probabilities.
    """
    table = read_csv_text(csv)
    lower = {name.lower(): name for name in table.columns}
    known = [layout for layout in built_in_layouts().imports.values() if lower.keys() >= layout.required_columns]
    if known:
        labels = rename_columns(table, known[0], columns=lower, attributes=attributes)
    elif "Image Path" in table.columns and attributes.keys() & set(table.columns):
        named = [name for name in attributes if name in table.columns]
        probabilities = [
            pl.concat_list(columns).alias(tables.probabilities_column(name))
            for name in named
            if set(columns := tables.flat_columns(attributes[name])) <= set(table.columns)
        ]
        labels = table.select(pl.col("Image Path").alias("path"), *named, *probabilities)
    else:
        theirs = "".join(
            f"nor those of the {layout.title} ({', '.join(sorted(layout.required_columns))}), "
            for layout in built_in_layouts().imports.values()
        )
        raise FairfaceError(
            f"{csv} has neither our columns (Image Path, and at least one of {', '.join(attributes)}) "
            f"{theirs.rstrip(', ')}"
        )
    if (nameless := labels["path"].is_null() | (labels["path"] == "")).any():
        raise FairfaceError(f"{csv}: row {(nameless.arg_max() or 0) + 1} names no image")
    named_attributes = {name: attribute for name, attribute in attributes.items() if name in labels.columns}
    return parse_labels(labels, csv, named_attributes)


def rename_columns(
    table: pl.DataFrame, layout: Layout, *, columns: Mapping[str, str], attributes: Mapping[str, Attribute]
) -> pl.DataFrame:
    """A labeller's table of a known layout with our columns, for those of its labels that are among `attributes`.

    `columns` maps names in lower case to the table's own.
    """
    selected = [pl.col(columns[layout.path]).alias("path")]
    for name, label in layout.labels.items():
        if name in attributes:
            codes = {value: item for value, item in label.codes.items() if item is not None}
            selected.append(pl.col(columns[label.column]).str.strip_chars().replace(codes).alias(name))
            order = [columns.get(label.probabilities.get(item, "")) for item in attributes[name].names]
            if None not in order:
                selected.append(pl.concat_list(order).alias(tables.probabilities_column(name)))
    return table.select(selected)


def parse_labels(labels: pl.DataFrame, csv: Path, attributes: Mapping[str, Attribute]) -> pl.DataFrame:
    """`labels` as columns of `tables.label_schema`; classes without surrounding spaces, null where empty.

    Raises FairfaceError for an unknown class, for what is not a probability, and for a table without rows.
    """
    labels = labels.with_columns(pl.col(name).str.strip_chars().replace("", None) for name in attributes)
    for name, attribute in attributes.items():
        if unknown := set(labels[name].drop_nulls()) - set(attribute.names):
            raise FairfaceError(
                f"{csv}: {min(unknown)[:80]!r} is not a valid {name}; choose from {', '.join(attribute.names)}"
            )
    if labels.is_empty():
        raise FairfaceError(f"{csv} has no labels")
    try:
        labels = labels.cast({name: kind for name, kind in tables.label_schema(attributes).items() if name in labels})
    except pl.exceptions.InvalidOperationError as error:
        raise FairfaceError(f"{csv}: a probability is not a number") from error
    lists = [name for name in map(tables.probabilities_column, attributes) if name in labels]
    is_complete = {name: ~pl.col(name).list.eval(pl.element().is_null()).list.any() for name in lists}
    labels = labels.with_columns(pl.when(known).then(name).alias(name) for name, known in is_complete.items())
    for name in lists:
        if not _are_probabilities(labels[name].explode().drop_nulls().drop_nans()):
            raise FairfaceError(f"{csv}: a probability of {name} is not between 0 and 1")
    return labels


def _are_probabilities(values: pl.Series) -> bool:
    return values.is_between(0, MAX_PROBABILITY).all()


def keys_by_path(folder: RunFolder, samples: SamplesDocument) -> dict[str, str]:
    """The keys of imported samples by the paths that a CSV of labels may name them by; empty for other samples."""
    if not samples.source:
        return {}
    rows = read_parquet(folder.samples_table, ("key", "path"), sha256=samples.files.get(folder.samples_table.name, ""))
    paths = {path: key for key, path in rows.iter_rows() if path is not None}
    return paths | {str(Path(samples.source.path, path)): key for path, key in paths.items()}


def add_keys(labels: pl.DataFrame, *, keys: Mapping[str, str] | None = None) -> pl.DataFrame:
    """`labels` with the keys of the samples instead of paths.

    If `keys` contains all paths, they are looked up in it. Otherwise the key is the number in a file name such as
    sample_00012.png if all have one, or else the path itself. Raises FairfaceError for keys that occur twice.
    """
    numbers = labels["path"].str.extract(SAMPLE_NAME).str.strip_chars_start("0").str.zfill(8)
    new_keys = labels["path"] if numbers.null_count() else numbers
    if keys:
        paths = [path if path in keys else str(Path(path).absolute()) for path in labels["path"]]
        if all(path in keys for path in paths):
            new_keys = pl.Series([keys[path] for path in paths], dtype=pl.String)
    labels = labels.drop("path").insert_column(0, new_keys.alias("key"))
    if labels["key"].n_unique() < len(labels):
        raise FairfaceError("the file names an image twice")
    return labels


def check_keys(keys: pl.Series, folder: RunFolder, samples: SamplesDocument) -> None:
    """Raise FairfaceError if the keys are not those of a run's samples."""
    table = folder.samples_table
    sampled = read_parquet(table, {"key": pl.String}, sha256=samples.files.get(table.name, ""))["key"]
    if different := len(set(sampled) ^ set(keys)):
        raise FairfaceError(
            f"{different:,} of {folder.name}'s samples and of the file's images don't match: choose another --run"
        )
