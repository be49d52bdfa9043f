"""Reads the annotation tables of every AI-Face release into one tidy frame."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from shards.atomic_io import check_regular
from shards.attributes import Attribute, built_in_attributes
from shards.errors import FairfaceError
from shards.workspace import is_unicode

GENDERS, AGES, SKIN_GROUPS = (built_in_attributes()[name].names for name in ("gender", "age", "skin_group"))
SKIN_TONES = tuple(map(int, built_in_attributes()["skin_tone"].names))

# Our column -> its names, in lower case, in the layouts in which AI-Face has been released.
COLUMN_NAMES = {
    "path": ("image path",),
    "gender": ("gender", "predicted gender", "ground truth gender"),
    "age": ("age", "predicted age", "ground truth age"),
    "race": ("race", "ground truth race"),
    "skin_tone": ("skin tone",),
    "intersection": ("intersection",),
    "target": ("target",),
    "split": ("split",),
}
AGE_CODES = {
    "readme": {0: "child", 1: "young", 3: "adult", 4: "middle", 5: "senior"},
    "released": dict(enumerate(AGES)),
    "first": {0: "young", 1: "middle", 2: "senior"},  # 3, "others", is not an age
}
SPLITS = {"train": "train", "val": "val", "validation": "val", "test": "test"}
RACES = {0: "Asian", 1: "White", 2: "Black", 3: "others"}
TARGETS = ("real", "fake")
CSV_ERRORS = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError)
LABELS = ("gender", "age", "skin_tone", "skin_group", "race", "target", "split")

TYPES: dict[str, pl.DataType | type[pl.DataType]] = {  # one byte per value: a table has a million rows
    "gender": pl.Enum(GENDERS),
    "age": pl.Enum(AGES),
    "skin_tone": pl.Int8,
    "skin_group": pl.Enum(SKIN_GROUPS),
    "race": pl.Enum(list(RACES.values())),
    "target": pl.Enum(TARGETS),
    "split": pl.String,
}


@dataclass
class Tables:
    """The annotation tables of a data set: one row per path, and the numbers of irregular rows."""

    frame: pl.DataFrame  # path (absolute or as written) and LABELS
    files: list[str] = field(default_factory=list)
    rows: int = 0
    repeated: int = 0  # rows that repeat the path of an earlier row
    disagreeing: int = 0  # rows whose Intersection is not gender x skin group
    uncoded: int = 0  # rows with a label that is not one of the codes


def derived_class(attribute: Attribute) -> pl.Expr:
    """A derived attribute's class, from the column of its parent; or a cross's, from those of its attributes.

    Null where one of these columns is null or has another value.
    """
    if attribute.cross:
        return pl.concat_str(pl.col(attribute.cross).cast(pl.String), separator="-").alias(attribute.name)
    assert attribute.parent
    classes = {name: item.name for item in attribute.classes for name in item.of}
    parent = pl.col(attribute.parent).cast(pl.String)
    return parent.replace_strict(classes, default=None, return_dtype=pl.String).alias(attribute.name)


def find_columns(path: Path) -> dict[str, str]:
    """Our column names -> the table's own, for those that the CSV at `path` has."""
    try:
        check_regular(path)
        header = scan_csv(path).collect_schema().names()
    except CSV_ERRORS as error:
        raise csv_error(path, error) from error
    known = {name.strip().lower(): name for name in header}
    return {ours: known[name] for ours, names in COLUMN_NAMES.items() for name in names if name in known}


def scan_csv(path: Path) -> pl.LazyFrame:
    """The CSV as text columns, lazily."""
    return pl.scan_csv(path, infer_schema=False, encoding="utf8-lossy", glob=False)


def csv_error(path: Path, error: Exception) -> FairfaceError:
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    return FairfaceError(f"{path} can't be read as CSV: {reason}")


def find_tables(root: Path) -> tuple[list[Path], list[str]]:
    """The annotation tables in `root` and its immediate subfolders, sorted, and the other CSV files there.

    If no CSV file looks like a table, all are returned as tables: reading them raises an error that says why.
    """
    files = sorted(path for path in [*root.glob("*.csv"), *root.glob("*/*.csv")] if not is_hidden(path, root))
    readable = [path for path in files if is_unicode(str(path)) and is_regular(path)]
    tables = [path for path in readable if is_table(path)] or readable
    return tables, [str(path).encode(errors="backslashreplace").decode() for path in files if path not in tables]


def is_hidden(path: Path, root: Path) -> bool:
    """Whether a file or folder of a path below `root` is hidden."""
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def is_regular(path: Path) -> bool:
    """Whether a path leads to a regular file: reading a pipe or a device might never end."""
    try:
        return path.is_file()
    except OSError:  # in a folder without permission
        return False


def is_table(path: Path) -> bool:
    """Whether a file is a CSV with a column of image paths."""
    try:
        return "path" in find_columns(path)
    except FairfaceError:  # not a CSV
        return False


def read_tables(paths: Iterable[Path], age_codes: str = "auto") -> Tables:
    """Read annotation tables of any AI-Face layout, recognised by their columns.

    `age_codes` is `auto` (by the values present), `readme`, `released` or `first`. Relative image paths are
    returned as the table has them. Raises FairfaceError for a table without the required columns.
    """
    tables, frames = Tables(empty_frame()), []
    for path in paths:
        frame = read_table(path, age_codes)
        frames.append(frame.drop("disagrees", "uncoded"))
        tables.files.append(str(path))
        tables.disagreeing += int(frame["disagrees"].sum())
        tables.uncoded += int(frame["uncoded"].sum())
    if frames:
        rows = pl.concat(frames)
        tables.rows, tables.repeated = len(rows), len(rows) - rows["path"].n_unique()
        tables.frame = rows.unique("path", keep="first", maintain_order=True) if tables.repeated else rows
    return tables


def read_table(path: Path, age_codes: str) -> pl.DataFrame:
    """Read one table as a tidy frame, with two more columns: `disagrees` (with its own Intersection) and `uncoded`."""
    columns = find_columns(path)
    if "path" not in columns or not columns.keys() & {"gender", "age", "skin_tone", "race", "target"}:
        header = ", ".join(scan_csv(path).collect_schema().names()[:12])
        raise FairfaceError(
            f"{path} is not an AI-Face annotation table: it needs `Image Path` and at least one of Gender, Age, Skin "
            f"Tone, Target; it has {header}. Name the right file with --annotations, or pass --no-annotations"
        )
    labels = [name for name in ("gender", "age", "skin_tone", "race", "target") if name in columns]
    try:
        codes = choose_age_codes(path, columns, age_codes)
        return (
            scan_codes(path, columns, labels)
            .drop_nulls("path")
            .with_columns(pl.col("age").alias("age code"))
            .with_columns(
                *[
                    pl.col(name).replace_strict(words, default=None, return_dtype=TYPES[name])
                    for name, words in class_names(codes).items()
                ],
                skin_tone=pl.when(pl.col("skin_tone").is_between(1, 10)).then("skin_tone").cast(pl.Int8),
            )
            .with_columns(derived_class(built_in_attributes()["skin_group"]).cast(TYPES["skin_group"]))
            .select(
                "path",
                *LABELS,
                disagrees=intersection_disagrees() if "skin_tone" in columns else False,
                uncoded=has_unknown_code(labels, codes),
            )
            .collect(engine="streaming")
        )
    except CSV_ERRORS as error:
        raise csv_error(path, error) from error


def scan_codes(path: Path, columns: dict[str, str], labels: Sequence[str]) -> pl.LazyFrame:
    """path, split, the code of every label, and for each of `labels` whether its cell is filled (`<label> filled`)."""
    split = pl.col(columns["split"]) if "split" in columns else pl.lit(split_from_name(path))
    codes = [
        (parse_code(columns[name]) if name in columns else pl.lit(None, pl.Int64)).alias(name)
        for name in ("gender", "age", "race", "skin_tone", "intersection", "target")
    ]
    return scan_csv(path).select(
        local_path(columns["path"]).alias("path"),
        split.cast(pl.String).alias("split"),
        *codes,
        *[(pl.col(columns[name]).str.strip_chars() != "").alias(f"{name} filled") for name in labels],
    )


def class_names(age_codes: str) -> dict[str, dict[int, str]]:
    """Label -> code -> class."""
    return {
        "gender": dict(enumerate(GENDERS)),
        "race": RACES,
        "target": dict(enumerate(TARGETS)),
        "age": AGE_CODES[age_codes],
    }


def has_unknown_code(labels: Sequence[str], age_codes: str) -> pl.Expr:
    """Whether a row has a label that is not one of the codes. The first release's age 3, "others", is one."""
    unknown = {name: pl.col(f"{name} filled") & pl.col(name).is_null() for name in labels}
    if "age" in unknown and age_codes == "first":
        unknown["age"] &= pl.col("age code").ne_missing(3)
    return pl.any_horizontal(list(unknown.values())).fill_null(False)


def local_path(column: str) -> pl.Expr:
    """A path without surrounding blanks; the backslashes of a Windows path become slashes."""
    path = pl.col(column).str.strip_chars()
    return (
        pl.when(path.str.contains("/", literal=True))
        .then(path)
        .otherwise(path.str.replace_all("\\", "/", literal=True))
    )


def parse_code(column: str) -> pl.Expr:
    """The integer in text such as `1`, `1.0` or ` 1 `; null for anything else."""
    number = pl.col(column).str.strip_chars().cast(pl.Float64, strict=False)
    return pl.when(number == number.round()).then(number).cast(pl.Int64, strict=False)


def split_from_name(path: Path) -> str | None:
    """`train`, `val` or `test` if a table's file name contains such a word."""
    words = re.split("[^a-z]+", path.stem.lower())
    return next((SPLITS[word] for word in words if word in SPLITS), None)


def choose_age_codes(path: Path, columns: dict[str, str], option: str) -> str:
    """Choose a table's AGE_CODES: by `option`, otherwise by the values present, otherwise by the column's name.

    Raises FairfaceError for a table that mixes values of different releases.
    """
    if option != "auto":
        return option
    if "race" in columns or "age" not in columns:
        return "first" if "race" in columns else "released"
    codes = scan_csv(path).select(parse_code(columns["age"]).unique()).collect(engine="streaming")
    present = set(codes.to_series().drop_nulls())
    if {2, 5} <= present:
        raise FairfaceError(
            f"{path} mixes the age codes 2 and 5, which no release does: name its codes with --age-codes"
        )
    if present & {2, 5}:
        return "released" if 2 in present else "readme"
    return "released" if columns["age"].strip().lower() == "predicted age" else "readme"


def intersection_disagrees() -> pl.Expr:
    """Whether a row's Intersection (0-2 female light, medium, dark; 3-5 male) is not its gender x skin group."""
    group = (
        pl.col("skin_group")
        .cast(pl.String)
        .replace_strict({g: i for i, g in enumerate(SKIN_GROUPS)}, return_dtype=pl.Int64)
    )
    male = (pl.col("gender").cast(pl.String) == "male").cast(pl.Int64)
    return (group + 3 * male != pl.col("intersection")).fill_null(False)


def empty_frame() -> pl.DataFrame:
    """A tidy frame without rows."""
    return pl.DataFrame(schema={"path": pl.String} | {name: TYPES[name] for name in LABELS})
