"""Reads annotation tables of every layout, and labels in images' names, into one tidy frame."""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import polars as pl

from shards.atomic_io import check_regular
from shards.attributes import Attribute, AttributeTable, built_in_attributes
from shards.discover import SUFFIXES
from shards.errors import FairfaceError
from shards.layouts import FILE_NAMES, TARGETS, LabelColumn, Layout, LayoutTable, built_in_layouts, own_layout
from shards.workspace import is_unicode

AI_FACE_CROSS = "intersection"  # the attribute that AI-Face's column Intersection numbers
GENDERS, AGES = (built_in_attributes()[name].names for name in ("gender", "age"))
SKIN_TONES = tuple(map(int, built_in_attributes()["skin_tone"].names))
AGE_CODES = built_in_layouts().age_codes  # of AI-Face's releases
SPLITS = {"train": "train", "val": "val", "validation": "val", "test": "test"}
CSV_ERRORS = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError)
TABLE_NAMES = ("*.csv", "list_attr_*.txt")  # a CSV, or CelebA's text form
MIN_NAME_SHARE = 0.9  # least share of file names with labels, or of cells that are image names
HEADER_BYTES = 1 << 16  # read from the start of a text table: its image count and header


def label_types(attributes: AttributeTable) -> dict[str, pl.DataType | type[pl.DataType]]:
    """The column types of a tidy frame's labels: one byte per class, because a table has a million rows."""
    types: dict[str, pl.DataType | type[pl.DataType]] = {
        attribute.name: pl.Int8 if attribute.is_numbered else pl.Enum(attribute.names)
        for attribute in attributes.values()
        if not attribute.cross
    }
    return types | {"target": pl.Enum(list(TARGETS)), "split": pl.String}


@dataclass
class Tables:
    """The annotation tables of a data set: one row per path, and the numbers of irregular rows."""

    frame: pl.DataFrame  # path (absolute or as written) and the columns of `label_types`
    files: list[str] = field(default_factory=list)
    layouts: list[str] = field(default_factory=list)  # the titles of the files' layouts, each once
    rows: int = 0
    repeated: int = 0  # rows that repeat the path of an earlier row
    disagreeing: int = 0  # rows whose Intersection is not gender x skin group
    uncoded: int = 0  # rows with a label that is neither a class nor listed as no class


@dataclass(frozen=True)
class TextTable:
    """The cells of one annotation table as text, lazily."""

    name: str  # in messages
    cells: pl.LazyFrame
    columns: Mapping[str, str]  # a column's name, in lower case and without blanks around -> as the table has it
    repeated: frozenset[str]  # names in lower case that several columns have


@dataclass(frozen=True)
class Coding:
    """How the values of a column become classes."""

    codes: Mapping[str, str | None]  # `normalise_word` of a value -> class; None for a value that is known to be none
    years: tuple[tuple[int, int, str], ...] = ()  # the first and the last year of age, and their class

    @property
    def is_numeric(self) -> bool:
        """Whether all codes are integers, which tables may write in several ways, such as `1` and `1.0`."""
        return all(re.fullmatch(r"-?\d+", value) for value in self.codes)


@dataclass(frozen=True)
class ReadOptions:
    """The meaning of tables' columns."""

    age_codes: str = "auto"  # a key of AGE_CODES; auto: by the values present
    columns: tuple[tuple[str, str], ...] = ()  # `parse_columns` of a user's own table; empty: a known layout
    layouts: LayoutTable = field(default_factory=built_in_layouts)
    attributes: AttributeTable = field(default_factory=built_in_attributes)


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


def open_table(path: Path) -> TextTable:
    """Open a CSV, or CelebA's text form, in which blanks separate the cells.

    Raises FairfaceError for a file that is neither.
    """
    try:
        check_regular(path)
        cells = scan_text_form(path, header) if (header := text_form_header(path)) else scan_csv(path)
        names = cells.collect_schema().names()
    except CSV_ERRORS as error:
        raise csv_error(path, error) from error
    lower = [original_name(name, names).strip().lower() for name in names]
    repeated = frozenset(name for name in lower if lower.count(name) > 1)
    return TextTable(str(path), cells, dict(zip(lower, names, strict=True)), repeated)


def original_name(name: str, names: Collection[str]) -> str:
    """A column's name in the file: Polars numbers the columns that share a name."""
    original = re.sub(r"_duplicated_\d+$", "", name)
    return original if original in names else name


def text_form_header(path: Path) -> list[str]:
    """The names of the columns of CelebA's text form, in which the column of paths has none; empty for other files.

    Its first line is the number of images.
    """
    with open(path, "rb") as file:
        lines = file.read(HEADER_BYTES).decode(errors="replace").splitlines()
    if len(lines) < 2 or not lines[0].strip().isdecimal() or "," in lines[1]:
        return []
    return ["image_id", *lines[1].split()]


def scan_text_form(path: Path, header: list[str]) -> pl.LazyFrame:
    """The rows of CelebA's text form as text columns, lazily."""
    lines = pl.scan_csv(
        path,
        has_header=False,
        skip_lines=2,
        separator="\x01",
        quote_char=None,
        schema={"line": pl.String},
        encoding="utf8-lossy",
        glob=False,
    )
    words = lines.select(words=pl.col("line").str.extract_all(r"\S+"))
    return words.select(pl.col("words").list.get(i, null_on_oob=True).alias(name) for i, name in enumerate(header))


def scan_csv(path: Path) -> pl.LazyFrame:
    """The CSV as text columns, lazily."""
    return pl.scan_csv(path, infer_schema=False, encoding="utf8-lossy", glob=False)


def csv_error(path: Path | str, error: Exception) -> FairfaceError:
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    return FairfaceError(f"{path} can't be read as CSV: {reason}")


def find_tables(root: Path, attributes: AttributeTable | None = None) -> tuple[list[Path], list[str]]:
    """The annotation tables in `root` and its immediate subfolders, sorted, and the other files of TABLE_NAMES there.

    Tables have labels of some of `attributes`, by default the built-in ones. If no file looks like a table, all are
    returned as tables: reading them raises an error that says why.
    """
    files = [path for name in TABLE_NAMES for path in [*root.glob(name), *root.glob(f"*/{name}")]]
    files = sorted(path for path in files if not is_hidden(path, root))
    readable = [path for path in files if is_unicode(str(path)) and is_regular(path)]
    tables = [path for path in readable if is_table(path, attributes or built_in_attributes())] or readable
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


def is_table(path: Path, attributes: AttributeTable) -> bool:
    """Whether a file has the columns of a known layout."""
    try:
        return bool(built_in_layouts().recognise(open_table(path).columns, attributes))
    except FairfaceError:  # not a CSV
        return False


def find_layout_of_names(paths: pl.Series) -> Layout | None:
    """The layout, such as UTKFace's, that at least 90 % of the file names follow; None if there is none."""
    names = pl.DataFrame({"name": paths.str.extract(r"([^/]*)$")})
    for layout in built_in_layouts().by_file_name:
        share = names.select(pl.col("name").str.contains(layout.file_name or "").mean()).item()
        if share is not None and share >= MIN_NAME_SHARE:
            return layout
    return None


def read_tables(paths: Iterable[Path], options: ReadOptions | None = None) -> Tables:
    """Read annotation tables, whose layouts are recognised by their columns or stated by the options.

    Relative image paths are returned as the table has them. Raises FairfaceError for a table of no known layout, of
    several, or without a stated column.
    """
    options = options or ReadOptions()
    tables, frames = Tables(empty_frame(options.attributes)), []
    for path in paths:
        table = open_table(path)
        layout = choose_layout(table, options)
        frame = read_labels(table, layout, options, split=split_from_name(path))
        frames.append(frame.drop("disagrees", "uncoded"))
        tables.files.append(str(path))
        if layout.title not in tables.layouts:
            tables.layouts.append(layout.title)
        tables.disagreeing += int(frame["disagrees"].sum())
        tables.uncoded += int(frame["uncoded"].sum())
    if frames:
        rows = pl.concat(frames)
        tables.rows, tables.repeated = len(rows), len(rows) - rows["path"].n_unique()
        tables.frame = rows.unique("path", keep="first", maintain_order=True) if tables.repeated else rows
    return tables


def read_names(paths: pl.Series, layout: Layout, options: ReadOptions | None = None) -> Tables:
    """Read the labels that images' names state in a layout that has a `file_name`; other names give no row."""
    assert layout.file_name
    groups = pl.col("path").str.extract(r"([^/]*)$").str.extract_groups(layout.file_name)
    cells = pl.LazyFrame({"path": paths}).with_columns(groups.alias("groups")).unnest("groups")
    columns = {name: name for name in cells.collect_schema().names()}
    title = f"{FILE_NAMES} ({layout.title})"
    labelled = cells.filter(pl.any_horizontal(pl.exclude("path").is_not_null()))
    table = TextTable(title, labelled, columns, frozenset())
    frame = read_labels(table, replace(layout, path="path"), options or ReadOptions(), split=None)
    rows = frame.drop("disagrees", "uncoded")
    return Tables(rows, [title], rows=len(rows), uncoded=int(frame["uncoded"].sum()))


def choose_layout(table: TextTable, options: ReadOptions) -> Layout:
    """The layout of a table: that of --columns, or the known layout that fits best.

    Raises FairfaceError, in one line, if a column is missing, if no layout fits, or if several do.
    """
    if options.columns:
        layout = own_layout(options.columns, options.attributes, path=path_column(table, options))
    else:
        fitting = options.layouts.recognise(table.columns, options.attributes)
        if not fitting:
            titles = ", ".join(layout.title for layout in options.layouts.layouts.values() if not layout.file_name)
            raise FairfaceError(
                f"{table.name} has the columns {column_list(table.columns.values())}, which are not those of a known "
                f"layout ({titles}): name another table with --annotations, say what its columns are with --columns, "
                "or pass --no-annotations"
            )
        if len(fitting) > 1:
            titles = " and ".join(layout.title for layout in fitting)
            raise FairfaceError(
                f"{table.name} fits the layouts {titles} equally well: remove the columns of one, or name its columns "
                "with --columns"
            )
        layout = fitting[0]
    used = {layout.path, layout.split, *(label.column for label in layout.labels.values())}
    if repeated := sorted(table.repeated & used):
        raise FairfaceError(f"{table.name} has several columns {repeated[0]!r}: rename all but one of them")
    return layout


def path_column(table: TextTable, options: ReadOptions) -> str:
    """The column of image paths of a table in a user's columns: the stated one, or the only one of image names.

    Raises FairfaceError if there is none or there are several, and for any stated column that the table lacks.
    """
    for _, column in options.columns:
        if column.lower() not in table.columns:
            raise FairfaceError(
                f"{table.name} has no column {column!r}: its columns are {column_list(table.columns.values())}"
            )
    stated = {name: column.lower() for name, column in options.columns}
    if "path" in stated:
        return stated["path"]
    candidates = {name: column for name, column in table.columns.items() if name not in stated.values()}
    image = f"(?i)({'|'.join(map(re.escape, SUFFIXES))})\\s*$"
    try:
        shares = table.cells.select(
            pl.col(column).drop_nulls().str.contains(image).mean().alias(name) for name, column in candidates.items()
        ).collect(engine="streaming")
    except CSV_ERRORS as error:
        raise csv_error(table.name, error) from error
    images = [name for name in shares.columns if (shares[name].item() or 0) >= MIN_NAME_SHARE]
    if len(images) != 1:
        several = f"several columns of image names ({column_list(images)})" if images else "no column of image names"
        raise FairfaceError(f"{table.name} has {several}: name the right one with --columns path=COLUMN,...")
    return images[0]


def column_list(names: Collection[str]) -> str:
    """The first of these names of columns, shortened and on one line."""
    shown = [name if name.isprintable() else ascii(name)[1:-1] for name in names]
    return ", ".join(name[:40] for name in shown[:12])


def read_labels(table: TextTable, layout: Layout, options: ReadOptions, *, split: str | None) -> pl.DataFrame:
    """A table as a tidy frame, with two more columns: `disagrees` (with its own Intersection) and `uncoded`.

    `split` is the split of all rows of a table without a column of splits.
    """
    columns, types = table.columns, label_types(options.attributes)
    labels = {name: label for name, label in layout.labels_in(columns).items() if name in types}
    derived = [attribute for attribute in options.attributes.derived if attribute.parent in labels]
    known = {"split", *labels, *(attribute.name for attribute in derived)}
    split_column = columns.get(layout.split) if layout.split else None
    cross = built_in_attributes()[AI_FACE_CROSS]
    is_numbered = known.issuperset(cross.cross) and all(
        options.attributes[name].classes == built_in_attributes()[name].classes for name in cross.cross
    )
    intersection = columns.get(layout.intersection) if layout.intersection and is_numbered else None
    try:
        cells = {name: columns[label.column] for name, label in labels.items()}
        codings = {name: choose_coding(name, label, table=table, options=options) for name, label in labels.items()}
        return (
            table.cells.drop_nulls(columns[layout.path])
            .select(
                local_path(columns[layout.path]).alias("path"),
                (pl.col(split_column) if split_column else pl.lit(split, pl.String)).alias("split"),
                *[label_class(cells[name], coding, types[name]).alias(name) for name, coding in codings.items()],
                *[needs_class(cells[name], coding).alias(f"{name} stated") for name, coding in codings.items()],
                *[pl.lit(None, kind).alias(name) for name, kind in types.items() if name not in known],
                (parse_code(intersection) if intersection else pl.lit(None, pl.Int64)).alias("intersection code"),
            )
            .with_columns(derived_class(attribute).cast(types[attribute.name]) for attribute in derived)
            .select(
                "path",
                *types,
                disagrees=intersection_disagrees(cross) if intersection else pl.lit(False),
                uncoded=pl.any_horizontal(
                    pl.lit(False), *[pl.col(f"{name} stated") & pl.col(name).is_null() for name in codings]
                ),
            )
            .with_columns(pl.col("disagrees", "uncoded").fill_null(False))
            .collect(engine="streaming")
        )
    except CSV_ERRORS as error:
        raise csv_error(table.name, error) from error


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


def choose_coding(attribute: str, label: LabelColumn, *, table: TextTable, options: ReadOptions) -> Coding:
    """The meaning of a column's values for an attribute's classes. Raises FairfaceError as `choose_age_codes` does."""
    if attribute == "target":
        return Coding(TARGETS if label.words else label.codes)
    described = options.attributes[attribute]
    codes = label.codes or choose_age_codes(label, table, options)
    codes = {value: name for value, name in codes.items() if name is None or name in described.names}
    years = [(*item.years, item.name) for item in described.classes if item.years]
    return Coding(described.words if label.words else codes, tuple(years) if label.years else ())


def choose_age_codes(label: LabelColumn, table: TextTable, options: ReadOptions) -> Mapping[str, str | None]:
    """The age codes of a column: those that `options` names, else those that its values imply; empty for other columns.

    Raises FairfaceError for a table that mixes the values of several sets.
    """
    sets, age_codes = options.layouts.age_codes, list(label.age_codes)
    if not age_codes:
        return {}
    if options.age_codes != "auto":
        return sets[options.age_codes]
    if len(age_codes) > 1:
        codes = table.cells.select(parse_code(table.columns[label.column]).unique()).collect(engine="streaming")
        present = set(map(str, codes.to_series().drop_nulls()))
        others = {name: {code for other in age_codes if other != name for code in sets[other]} for name in age_codes}
        telling = {name: present & (sets[name].keys() - others[name]) for name in age_codes}
        if sum(map(bool, telling.values())) > 1:
            values = " and ".join(sorted(set().union(*telling.values())))
            raise FairfaceError(
                f"{table.name} mixes the age codes {values}, which no release does: name its codes with --age-codes"
            )
        age_codes = [name for name in age_codes if telling[name]] or age_codes
    return sets[age_codes[0]]


def label_class(column: str, coding: Coding, kind: pl.DataType | type[pl.DataType]) -> pl.Expr:
    """The class of each value of a column, by its years, code or word; null for a value that is no class."""
    number = pl.col(column).str.strip_chars().cast(pl.Float64, strict=False)
    steps: list[pl.Expr] = [
        pl.when((number >= first) & (number < last + 1)).then(pl.lit(name, kind)) for first, last, name in coding.years
    ]
    classes = {
        int(value) if coding.is_numeric else value: int(name) if kind == pl.Int8 else name
        for value, name in coding.codes.items()
        if name is not None
    }
    if classes:
        steps.append(parse_value(column, coding).replace_strict(classes, default=None, return_dtype=kind))
    return pl.coalesce(*steps, pl.lit(None, kind))


def needs_class(column: str, coding: Coding) -> pl.Expr:
    """Whether a cell is filled, and not with a code that is known to be no class; null for an empty cell."""
    unclassed = [int(value) if coding.is_numeric else value for value, name in coding.codes.items() if name is None]
    filled = pl.col(column).str.strip_chars() != ""
    return filled & ~parse_value(column, coding).is_in(unclassed).fill_null(False) if unclassed else filled


def parse_value(column: str, coding: Coding) -> pl.Expr:
    """The code in each cell: an integer if all codes are, otherwise a word."""
    return parse_code(column) if coding.is_numeric else parse_word(column)


def parse_word(column: str) -> pl.Expr:
    """Text as `normalise_word` spells it."""
    word = pl.col(column).str.replace_all(r"[\s_]", "").str.to_lowercase()
    return pl.when(word.str.contains(r"\d")).then(word).otherwise(word.str.replace_all("-", "", literal=True))


def intersection_disagrees(cross: Attribute) -> pl.Expr:
    """Whether a row's Intersection, the number of a class of a cross, is not that of its labels."""
    code = pl.col("intersection code").replace_strict(dict(enumerate(cross.names)), default="", return_dtype=pl.String)
    return (derived_class(cross) != code).fill_null(False)


def empty_frame(attributes: AttributeTable) -> pl.DataFrame:
    """A tidy frame without rows."""
    return pl.DataFrame(schema={"path": pl.String, **label_types(attributes)})
