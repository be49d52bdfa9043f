"""Every AI-Face table layout becomes one tidy frame."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from shards.errors import FairfaceError

GENDERS = ("female", "male")
AGES = ("child", "young", "adult", "middle", "senior")
SKIN_TONES = tuple(range(1, 11))  # the Monk Skin Tone scale
SKIN_GROUPS = ("light", "medium", "dark")  # Monk 1-3, 4-6, 7-10, as AI-Face groups them

# A table's own name of each column, in all the layouts in which AI-Face has been released.
COLUMNS = {
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
    "first": {0: "young", 1: "middle", 2: "senior"},  # 3, "others", is no age of ours
}
SPLITS = {"train": "train", "val": "val", "validation": "val", "test": "test"}
RACES = {0: "Asian", 1: "White", 2: "Black", 3: "others"}
TARGETS = ("real", "fake")
LABELS = ("gender", "age", "skin_tone", "skin_group", "race", "target", "split")

TYPES = {  # of the tidy columns: a byte each, for a table has a million rows
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
    """What the annotation tables of a data set say: one row a path, and what was odd about them."""

    frame: pl.DataFrame  # path (absolute or as written), gender, age, skin_tone, skin_group, race, target, split
    files: list[str] = field(default_factory=list)
    rows: int = 0
    repeated: int = 0  # rows whose path had been seen
    disagreeing: int = 0  # rows whose Intersection is not gender x skin group
    uncoded: int = 0  # rows with a label that is none of the codes


def skin_group(tone: str = "skin_tone") -> pl.Expr:
    """The skin group of a Monk tone column: light 1-3, medium 4-6, dark 7-10, null for null."""
    column = pl.col(tone)
    return (
        pl.when(column.is_between(1, 3))
        .then(pl.lit("light"))
        .when(column.is_between(4, 6))
        .then(pl.lit("medium"))
        .when(column.is_between(7, 10))
        .then(pl.lit("dark"))
    )


def intersection() -> pl.Expr:
    """Gender x skin group, such as `female-dark`; null where either is."""
    return pl.concat_str(pl.col("gender").cast(pl.String), pl.lit("-"), pl.col("skin_group").cast(pl.String))


def intersection_age() -> pl.Expr:
    """Gender x skin group x age, such as `female-dark-young`; null where any is."""
    return pl.concat_str(intersection(), pl.lit("-"), pl.col("age").cast(pl.String))


def columns_of(path: Path) -> dict[str, str]:
    """Our column names -> the table's own, as far as the CSV at `path` has them."""
    try:
        header = scan(path).collect_schema().names()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise csv_error(path, error) from error
    known = {name.strip().lower(): name for name in header}
    return {ours: known[name] for ours, names in COLUMNS.items() for name in names if name in known}


def scan(path: Path) -> pl.LazyFrame:
    """The CSV as text columns, lazily."""
    return pl.scan_csv(path, infer_schema=False, encoding="utf8-lossy", glob=False)


def csv_error(path: Path, error: Exception) -> FairfaceError:
    return FairfaceError(f"{path} can't be read as CSV: {str(error).splitlines()[0]}")


def find_tables(root: Path) -> tuple[list[Path], list[str]]:
    """Annotation tables in `root` and in its folders' first level, sorted, and other CSV files there.

    Where no CSV file looks like a table, all count as tables: reading them will say what is wrong.
    """
    found = sorted(path for path in [*root.glob("*.csv"), *root.glob("*/*.csv")] if not path.name.startswith("."))
    named = [path for path in found if is_text(str(path))]
    tables = [path for path in named if is_table(path)] or named
    return tables, [str(path).encode(errors="backslashreplace").decode() for path in found if path not in tables]


def is_text(path: str) -> bool:
    """Whether a path is valid Unicode: no other fits into a table or a tar of ours."""
    return path.encode(errors="replace").decode() == path


def is_table(path: Path) -> bool:
    try:
        return "path" in columns_of(path)
    except FairfaceError:  # no CSV at all
        return False


def read_tables(paths: Iterable[Path], age_codes: str = "auto") -> Tables:
    """Reads annotation tables of any AI-Face layout, told by their columns.

    `age_codes` is `auto` (by the values present), `readme`, `released` or `first`. Relative image paths are
    returned as the table has them. Raises FairfaceError for a table without the needed columns.
    """
    tables, frames = Tables(empty()), []
    for path in paths:
        frame = read_table(path, age_codes)
        frames.append(frame.drop("contradicts", "uncoded"))
        tables.files.append(str(path))
        tables.disagreeing += frame["contradicts"].sum()
        tables.uncoded += frame["uncoded"].sum()
    if frames:
        every = pl.concat(frames)
        tables.rows, tables.repeated = len(every), len(every) - every["path"].n_unique()
        tables.frame = every.unique("path", keep="first", maintain_order=True) if tables.repeated else every
    return tables


def read_table(path: Path, age_codes: str) -> pl.DataFrame:
    """One table's tidy frame, and for each row whether it contradicts its own `Intersection` or holds unknown codes."""
    columns = columns_of(path)
    if "path" not in columns or not columns.keys() & {"gender", "age", "skin_tone", "race", "target"}:
        header = ", ".join(scan(path).collect_schema().names()[:12])
        raise FairfaceError(
            f"{path} is no AI-Face annotation table: it needs `Image Path` and at least one of Gender, Age, Skin Tone, "
            f"Target; it has {header}. Name the right one with --annotations, or pass --no-annotations"
        )
    codes = {
        name: code(columns[name]) if name in columns else pl.lit(None, pl.Int64)
        for name in ("gender", "age", "race", "skin_tone", "intersection", "target")
    }
    told = [name for name in ("gender", "age", "skin_tone", "race", "target") if name in columns]
    split = pl.col(columns["split"]) if "split" in columns else pl.lit(split_of(path))
    picked = scan(path).select(
        local_path(columns["path"]).alias("path"),
        split.cast(pl.String).alias("split"),
        *[expression.alias(name) for name, expression in codes.items()],
        *[(pl.col(columns[name]).str.strip_chars() != "").alias(f"{name} said") for name in told],
    )
    words = {"gender": dict(enumerate(GENDERS)), "race": RACES, "target": dict(enumerate(TARGETS))}
    try:
        layout = age_code_set(path, columns, age_codes)
        words["age"] = AGE_CODES[layout]
        return (
            picked.drop_nulls("path")
            .with_columns(pl.col("age").alias("age code"))
            .with_columns(
                *[pl.col(n).replace_strict(w, default=None, return_dtype=TYPES[n]) for n, w in words.items()],
                skin_tone=pl.when(pl.col("skin_tone").is_between(1, 10)).then("skin_tone").cast(pl.Int8),
            )
            .with_columns(skin_group=skin_group().cast(TYPES["skin_group"]))
            .select(
                "path",
                *LABELS,
                contradicts=intersection_disagrees() if "skin_tone" in columns else False,
                uncoded=uncoded(told, layout),
            )
            .collect(engine="streaming")
        )
    except pl.exceptions.PolarsError as error:
        raise csv_error(path, error) from error


def uncoded(told: list[str], layout: str) -> pl.Expr:
    """Whether one of the labels that a row tells is no code; the first release's age 3, "others", is one."""
    lost = {name: pl.col(f"{name} said") & pl.col(name).is_null() for name in told}
    if "age" in lost and layout == "first":
        lost["age"] &= pl.col("age code").ne_missing(3)
    return pl.any_horizontal(list(lost.values())).fill_null(False)


def local_path(column: str) -> pl.Expr:
    """A path without blanks around it; one of Windows' with our slashes."""
    path = pl.col(column).str.strip_chars()
    return (
        pl.when(path.str.contains("/", literal=True))
        .then(path)
        .otherwise(path.str.replace_all("\\", "/", literal=True))
    )


def code(column: str) -> pl.Expr:
    """Whole numbers out of text such as `1`, `1.0` or ` 1 `; null for anything else."""
    number = pl.col(column).str.strip_chars().cast(pl.Float64, strict=False)
    return pl.when(number == number.round()).then(number).cast(pl.Int64, strict=False)


def split_of(path: Path) -> str | None:
    """`train`, `val` or `test` where a table's file name says so."""
    words = re.split("[^a-z]+", path.stem.lower())
    return next((SPLITS[word] for word in words if word in SPLITS), None)


def age_code_set(path: Path, columns: dict[str, str], wanted: str) -> str:
    """Which of AGE_CODES a table uses: by --age-codes, else by the values present, else by its column's name."""
    if wanted != "auto":
        return wanted
    if "race" in columns or "age" not in columns:
        return "first" if "race" in columns else "released"
    present = set(scan(path).select(code(columns["age"]).unique()).collect(engine="streaming").to_series().drop_nulls())
    if {2, 5} <= present:
        raise FairfaceError(
            f"{path} mixes the age codes 2 and 5, which no release does: say which it uses with --age-codes"
        )
    if present & {2, 5}:
        return "released" if 2 in present else "readme"
    return "released" if columns["age"].strip().lower() == "predicted age" else "readme"


def intersection_disagrees() -> pl.Expr:
    """Whether a row's stated Intersection (0-2 female light, medium, dark; 3-5 male) is not gender x skin group."""
    group = (
        pl.col("skin_group")
        .cast(pl.String)
        .replace_strict({g: i for i, g in enumerate(SKIN_GROUPS)}, return_dtype=pl.Int64)
    )
    male = (pl.col("gender").cast(pl.String) == "male").cast(pl.Int64)
    return (group + 3 * male != pl.col("intersection")).fill_null(False)


def empty() -> pl.DataFrame:
    """A tidy frame without rows."""
    return pl.DataFrame(schema={"path": pl.String} | {name: TYPES[name] for name in LABELS})
