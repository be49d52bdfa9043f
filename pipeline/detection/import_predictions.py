"""What detectors of generated faces said: predictions that were made elsewhere are taken as they are."""

from pathlib import Path

import polars as pl

from models.clip import CLASSES
from pipeline.gan.train import clear_run
from pipeline.labelling.import_labels import read_csv_text
from pipeline.runtime import command_line, utc_now
from shards.atomic_io import exclusive_lock, file_sha256, read_json, write_json, write_parquet
from shards.errors import FairfaceError

REQUIRED_COLUMNS = ("gender", "skin_group", "age", "target", "logit")
GROUPS = {"gender": CLASSES["gender"], "skin_group": ("light", "medium", "dark"), "age": CLASSES["age"]}
TARGETS = {"0": "real", "1": "fake", "real": "real", "fake": "fake"}


def import_predictions(out: Path, csv: Path, name: str | None = None, force: bool = False) -> dict:
    """Writes the predictions in `csv` as those of the detector `name`, the file's name when left out.

    Columns: gender, skin_group and age as in images.parquet (empty where unknown), target (real, fake, or 0, 1),
    logit (0 or more: fake), and a key where there is one. Returns `folder`, `images`, `real` and `fake`. FairfaceError for
    any other file, and where the detector has other predictions already.
    """
    if not csv.is_file():
        raise FairfaceError(f"--import {csv}: there is no such file")
    name = name or csv.stem
    if name != Path(name).name or name.startswith(".") or name == "all":
        raise FairfaceError(f"--name {name}: a detector's name is the name of one folder, and not `all`")
    table, folder, stamp = read_predictions_csv(csv), out / "detectors" / name, file_sha256(csv)
    done = read_json(folder / "predictions.json") or {}
    with exclusive_lock(folder, "importing into it"):
        if (folder / "config.json").exists() and not force:
            raise FairfaceError(f"{folder} was trained here: choose another --name, or replace it with --force")
        if done and done.get("sha256") != stamp and not force:
            raise FairfaceError(f"{folder} has other predictions: choose another --name, or replace them with --force")
        if (folder / "config.json").exists():
            clear_run(folder)
        (folder / "detection.parquet").unlink(missing_ok=True)  # it described others
        write_parquet(folder / "predictions.parquet", table.with_columns(detector=pl.lit(name)))
        counts = dict(table["target"].value_counts().iter_rows())
        found = {"images": len(table), "real": counts.get("real", 0), "fake": counts.get("fake", 0)}
        about = {"imported": str(csv), "sha256": stamp, "when": utc_now(), "command": command_line()}
        write_json(folder / "predictions.json", about | found)
    return found | {"folder": str(folder)}


def read_predictions_csv(csv: Path) -> pl.DataFrame:
    """key, gender, skin_group, age, target (text), logit (float64)."""
    table = read_csv_text(csv)
    if missing := [column for column in REQUIRED_COLUMNS if column not in table.columns]:
        raise FairfaceError(
            f"{csv} lacks {', '.join(missing)}: the columns are {', '.join(REQUIRED_COLUMNS)}, and a key if you like"
        )
    if not len(table):
        raise FairfaceError(f"{csv} holds no predictions")
    if "key" not in table.columns:
        table = table.with_columns(key=pl.int_range(pl.len()).cast(pl.String).str.zfill(9))
    table = table.select(pl.col("key", *REQUIRED_COLUMNS).str.strip_chars().replace("", None))
    if table["key"].null_count() or table["key"].n_unique() < len(table):
        raise FairfaceError(f"{csv}: every row needs a key of its own, or leave the column out")
    for column, names in GROUPS.items():
        if wrong := set(table[column].drop_nulls()) - set(names):
            raise FairfaceError(f"{csv}: {sorted(wrong)[0][:80]!r} is no {column}; they are {', '.join(names)}")
    if (strange := ~table["target"].is_in(list(TARGETS)).fill_null(False)).any():
        raise FairfaceError(f"{csv}: target in row {strange.arg_max() + 1} is none of {', '.join(TARGETS)}")
    logit = table["logit"].cast(pl.Float64, strict=False)
    if (unclear := ~logit.is_finite().fill_null(False)).any():
        raise FairfaceError(f"{csv}: logit in row {unclear.arg_max() + 1} is no finite number")
    return table.with_columns(pl.col("target").replace_strict(TARGETS, return_dtype=pl.String), logit=logit)
