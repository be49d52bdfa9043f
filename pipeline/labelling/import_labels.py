"""Takes labels that were made elsewhere for a run: the original FairFace Generator's CSV, or one of our own."""

import re
from pathlib import Path

import polars as pl

from models.clip import CLASSES
from pipeline.labelling import tables
from pipeline.runtime import utc_now
from shards.atomic_io import LABELS, file_sha256, read_json, read_parquet, write_json
from shards.errors import FairfaceError

ORIGINAL_COLUMNS = {"Image Path", "GenderIdx", "SkinTonePred"}
OUR_COLUMNS = {"Image Path", *CLASSES}
DUPLICATED = re.compile(r"_duplicated_\d+$")  # Polars' name for a column that comes again
PICTURE = re.compile(r"sample_(\d+)\.\w+$")  # how samples are named, the original's and ours


def import_labels(out: Path, csv: Path, run: str | None, force: bool = False) -> dict:
    """Writes the labels in `csv` as those of `run`, a new one of the file's name when left out.

    Of a run that has samples, every one must be named. Returns `folder` and `images`. FairfaceError for another kind of
    file, for classes that are none of ours, for samples that don't match, and for labels that are there already.
    """
    if not csv.is_file():
        raise FairfaceError(f"--import {csv}: there is no such file")
    try:
        str(csv).encode()
    except UnicodeEncodeError as error:
        raise FairfaceError(f"--import {str(csv)!r}: give the file a name in UTF-8") from error
    name = run or csv.stem
    if name != Path(name).name or name.startswith("."):
        raise FairfaceError(f"--run {name}: a run's name is the name of one folder")
    folder, labeller = out / "runs" / name, f"imported {csv.name}@{file_sha256(csv)[:8]}"
    labels = add_keys(read_labels_csv(csv), folder)
    done = read_json(folder / "labels.json") or {}
    if done and done.get("labeller") != labeller and not force:
        raise FairfaceError(
            f"{folder} has labels of {done.get('labeller')}: choose another --run, or replace them with --force"
        )
    stamp = {"source": "generated", "run": name, "labeller": labeller, "size": None, "images": len(labels)}
    if not (folder / "config.json").exists():
        write_json(
            folder / "config.json", {"run": name, "status": "imported", "started": utc_now(), "imported": str(csv)}
        )
    tables.write_label_table(
        folder / "labels.parquet", labels, stamp, "imported", labeller
    )  # first: a full disk costs nothing
    for old in LABELS:
        if old != "labels.parquet":
            (folder / old).unlink(missing_ok=True)
    write_json(folder / "labels.json", stamp | {"fingerprint": labeller})
    return {"folder": str(folder), "images": len(labels)}


def read_csv_text(csv: Path) -> pl.DataFrame:
    """A CSV as text. FairfaceError where it is none, or has a column twice."""
    try:
        table = pl.read_csv(csv, infer_schema=False, glob=False)
    except (pl.exceptions.PolarsError, OSError, UnicodeDecodeError) as error:
        raise FairfaceError(f"{csv} can't be read as CSV ({str(error).splitlines()[0]})") from error
    if twice := next((name for name in table.columns if DUPLICATED.search(name)), None):
        raise FairfaceError(f"{csv} has the column {DUPLICATED.sub('', twice)!r} twice")
    return table


def read_labels_csv(csv: Path) -> pl.DataFrame:
    """path, gender, age, skin_tone, and the probabilities that the file has."""
    table = read_csv_text(csv)
    if set(table.columns) >= ORIGINAL_COLUMNS:
        labels = from_original_columns(table)
    elif set(table.columns) >= OUR_COLUMNS:
        labels = table.select(
            pl.col("Image Path").alias("path"), *CLASSES, *(c for c in tables.PROBABILITY_COLUMNS if c in table.columns)
        )
    else:
        raise FairfaceError(
            f"{csv} has neither the original FairFace Generator's columns ({', '.join(sorted(ORIGINAL_COLUMNS))}) nor ours "
            f"({', '.join(sorted(OUR_COLUMNS))})"
        )
    if (nameless := labels["path"].is_null() | (labels["path"] == "")).any():
        raise FairfaceError(f"{csv}: row {nameless.arg_max() + 1} names no image")
    labels = labels.with_columns(pl.col(name).str.strip_chars().replace("", None) for name in CLASSES)
    for name, classes in CLASSES.items():
        if wrong := set(labels[name].drop_nulls()) - set(classes):
            raise FairfaceError(f"{csv}: {sorted(wrong)[0]!r} is no {name}; they are {', '.join(classes)}")
    if not len(labels):
        raise FairfaceError(f"{csv} holds no labels")
    try:
        shares = [pl.col(name).cast(pl.Float32) for name in tables.PROBABILITY_COLUMNS if name in labels.columns]
        labels = labels.with_columns(pl.col("skin_tone").cast(pl.Int8), *shares)
    except pl.exceptions.InvalidOperationError as error:
        raise FairfaceError(f"{csv}: a probability is no number") from error
    for name in set(labels.columns) & set(tables.PROBABILITY_COLUMNS):
        if not labels[name].drop_nulls().drop_nans().is_between(0, 1.001).all():
            raise FairfaceError(f"{csv}: a probability of {name} is not between 0 and 1")
    return labels


def from_original_columns(table: pl.DataFrame) -> pl.DataFrame:
    """The original's columns in our words: GenderIdx counts man, woman from 0; it has no ages."""
    both = {"p_female": "GenderProb_woman", "p_male": "GenderProb_man"}
    return table.select(
        pl.col("Image Path").alias("path"),
        pl.col("GenderIdx").replace({"0": "male", "1": "female"}).alias("gender"),
        pl.lit(None, pl.String).alias("age"),
        pl.col("SkinTonePred").alias("skin_tone"),
        *(pl.col(theirs).alias(ours) for ours, theirs in both.items() if theirs in table.columns),
    )


def add_keys(labels: pl.DataFrame, folder: Path) -> pl.DataFrame:
    """The labels with their samples' keys: the number in a name such as sample_00012.png, otherwise the path itself."""
    numbers = [PICTURE.search(path or "") for path in labels["path"]]
    keys = [f"{int(found[1]):08d}" for found in numbers] if all(numbers) else labels["path"].to_list()
    labels = labels.drop("path").insert_column(0, pl.Series("key", keys, dtype=pl.String))
    if labels["key"].n_unique() < len(labels):
        raise FairfaceError("the file names an image twice")
    if (folder / "samples.parquet").exists():
        samples = read_parquet(folder / "samples.parquet")["key"]
        if missing := len(set(samples) ^ set(labels["key"])):
            raise FairfaceError(
                f"{missing:,} of {folder.name}'s samples and of the file's images don't match: choose another --run"
            )
    return labels
