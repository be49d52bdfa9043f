"""Imports the predictions of a detector that was trained elsewhere."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from pipeline.detection.evaluate import check_foreign, discard_predictions
from pipeline.labelling.import_labels import check_csv, read_csv_text
from pipeline.runtime import command_line, utc_now
from pipeline.training.lifecycle import check_own_files
from shards.atomic_io import atomic_write, file_sha256, remove_tree, write_parquet
from shards.attributes import Attribute, workspace_attributes
from shards.documents import PredictionsDocument, file_hashes, read_document, write_document
from shards.errors import FairfaceError
from shards.images_table import class_types
from shards.locks import exclusive_lock
from shards.workspace import DetectorFolder, Workspace

REQUIRED_COLUMNS = ("target", "logit")
TARGETS = {"0": "real", "1": "fake", "real": "real", "fake": "fake"}


@dataclass(frozen=True)
class ImportedPredictions:
    """The imported predictions and their folder."""

    folder: DetectorFolder
    document: PredictionsDocument


def import_predictions(
    workspace: Workspace, csv: Path, *, name: str | None = None, force: bool = False
) -> ImportedPredictions:
    """Write the predictions in `csv` as those of the detector `name`, by default the file's name.

    Columns: target (real, fake, or 0, 1), logit (0 or more: fake), at least one attribute as in images.parquet (empty
    if unknown), and optionally a key. Raises FairfaceError for any other file, and if the detector has
    other predictions already, unless `force` replaces them.
    """
    check_csv(csv)
    folder = workspace.detector(name or csv.stem)
    attributes = workspace_attributes(workspace).stored
    table, sha256 = read_predictions_csv(csv, attributes), file_sha256(csv)
    with exclusive_lock(folder.lock, "importing into it"):
        check_foreign(folder)
        if not force:
            check_replaceable(folder, sha256)
        check_own_files(folder)
        provenance = {"detector": folder.name, "part": "test", "perturbation": "none"}
        table = table.with_columns(**{name: pl.lit(value) for name, value in provenance.items()})
        # the new predictions are on disk under a temporary name before the previous ones are removed
        with atomic_write(folder.predictions) as file:
            write_parquet(folder.predictions, table, output=file)
            discard_predictions(folder)
            discard_training(folder)
        counts = dict(table["target"].value_counts().iter_rows())
        document = PredictionsDocument(
            images=len(table),
            real=counts.get("real", 0),
            fake=counts.get("fake", 0),
            created=utc_now(),
            command=command_line(),
            files=file_hashes(folder.predictions),
            imported=str(csv),
            sha256=sha256,
        )
        write_document(folder.predictions_document, document)
    return ImportedPredictions(folder, document)


def discard_training(folder: DetectorFolder) -> None:
    """Remove what the training of a detector wrote, config.json last: until then it is known as trained here."""
    for path in (folder.cached_predictions, folder.checkpoints, folder.tensorboard, folder.grids):
        remove_tree(path)
    for file in (folder.steps, folder.config):
        file.unlink(missing_ok=True)


def check_replaceable(folder: DetectorFolder, sha256: str) -> None:
    """Raise FairfaceError if the folder contains a training run, or predictions of a CSV with another hash."""
    if folder.config.exists():
        raise FairfaceError(f"{folder.folder} was trained here: choose another --name, or replace it with --force")
    previous = read_document(folder.predictions_document, PredictionsDocument)
    if previous and previous.sha256 != sha256:
        raise FairfaceError(
            f"{folder.folder} has other predictions: choose another --name, or replace them with --force"
        )


def read_predictions_csv(csv: Path, attributes: Mapping[str, Attribute]) -> pl.DataFrame:
    """Read the predictions in a CSV: key, target (text), logit (float64), and the classes of `attributes` in the file.

    Raises FairfaceError for missing columns, unknown values and duplicate keys.
    """
    table = read_csv_text(csv)
    missing = [column for column in REQUIRED_COLUMNS if column not in table.columns]
    named = {name: attribute for name, attribute in attributes.items() if name in table.columns}
    if missing or not named:
        missing += [] if named else ["an attribute"]
        raise FairfaceError(
            f"{csv} lacks {' and '.join(missing)}: the columns are {', '.join(REQUIRED_COLUMNS)}, at least one of "
            f"{', '.join(attributes)}, and optionally a key"
        )
    if not len(table):
        raise FairfaceError(f"{csv} holds no predictions")
    if "key" not in table.columns:
        table = table.with_columns(key=pl.int_range(pl.len()).cast(pl.String).str.zfill(9))
    table = table.select(pl.col("key", *named, *REQUIRED_COLUMNS).str.strip_chars().replace("", None))
    if table["key"].null_count() or table["key"].n_unique() < len(table):
        raise FairfaceError(f"{csv}: every row needs a unique key; or leave the column out")
    for name, attribute in named.items():
        if unknown := set(table[name].drop_nulls()) - set(attribute.names):
            raise FairfaceError(
                f"{csv}: {sorted(unknown)[0][:80]!r} is not a valid {name}; choose from {', '.join(attribute.names)}"
            )
    if (unknown_target := ~table["target"].is_in(list(TARGETS)).fill_null(False)).any():
        raise FairfaceError(f"{csv}: target in row {first_true(unknown_target)} is not one of {', '.join(TARGETS)}")
    logit = table["logit"].cast(pl.Float64, strict=False)
    if (not_finite := ~logit.is_finite().fill_null(False)).any():
        raise FairfaceError(f"{csv}: logit in row {first_true(not_finite)} is not a finite number")
    classes = [pl.col(name).cast(kind) for name, kind in class_types(named).items()]
    target = pl.col("target").replace_strict(TARGETS, return_dtype=pl.String)
    return table.with_columns(*classes, target, logit=logit)


def first_true(rows: pl.Series) -> int:
    """The number of the first row, counted from 1, that is true."""
    return int(rows.arg_true()[0]) + 1
