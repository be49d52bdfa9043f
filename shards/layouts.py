"""The layouts of annotation tables: those of layouts.toml, and those defined by --columns."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from shards.attributes import AttributeTable, built_in_attributes, normalise_word
from shards.errors import FairfaceError
from shards.toml_tables import parse_toml, read_text, refuse_unknown

BUILT_IN = Path(__file__).with_name("layouts.toml")
TARGETS = {"real": "real", "fake": "fake"}  # word -> class of `target`, which is no attribute of a face
FILE_NAMES = "file names"  # listed instead of a table's path when labels come from file names
OTHER_COLUMNS = ("path", "split", "target")  # that --columns can name in addition to attributes


@dataclass(frozen=True)
class LabelColumn:
    """A column of labels, and how its values become classes."""

    column: str  # its name, in lower case
    codes: Mapping[str, str | None] = field(default_factory=dict)  # `normalise_word` of a value -> class, or no class
    age_codes: tuple[str, ...] = ()  # names of sets of codes, one of which is used, the usual one first
    words: bool = False  # values are the attribute's `words`
    years: bool = False  # numbers are cut at the classes' `years`
    probabilities: Mapping[str, str] = field(default_factory=dict)  # of a labeller's table: class -> column


@dataclass(frozen=True)
class Layout:
    """The columns of an annotation table, with names in lower case, and the meaning of their values."""

    title: str
    path: str  # "" if there is no table
    labels: Mapping[str, LabelColumn]  # attribute or `target` -> its column
    columns: frozenset[str] = frozenset()  # that a table must have, in addition to `path`
    ignored_columns: frozenset[str] = frozenset()
    split: str | None = None
    intersection: str | None = None  # gender x skin group
    file_name: str | None = None  # a regular expression on the names of images, instead of a table

    def fits(self, header: Collection[str]) -> bool:
        """Whether a table with these columns, in lower case, has this layout."""
        needed = self.path in header and self.columns <= set(header)
        return needed and bool(self.labels_in(header)) and self.file_name is None

    @property
    def required_columns(self) -> set[str]:
        """The path's column and those of all labels."""
        return {self.path, *(label.column for label in self.labels.values())}

    def labels_in(self, header: Collection[str]) -> dict[str, LabelColumn]:
        """The labels whose columns are among these."""
        return {name: label for name, label in self.labels.items() if label.column in header}

    def count_known(self, header: Collection[str]) -> int:
        """How many of these columns belong to the layout."""
        read = {self.path, self.split, self.intersection, *(label.column for label in self.labels.values())}
        return len((read | self.columns | self.ignored_columns) & set(header))


@dataclass(frozen=True)
class LayoutTable:
    """All layouts by name, those of labellers' tables, and the sets of codes of ages that AI-Face's releases use."""

    layouts: Mapping[str, Layout]
    imports: Mapping[str, Layout]
    age_codes: Mapping[str, Mapping[str, str | None]]  # name -> value -> class; None for a value that is no class

    def recognise(self, header: Collection[str], attributes: AttributeTable) -> list[Layout]:
        """The layouts that fit a table with these columns, in lower case, and share the most columns with it.

        Attributes with `columns`, and those in no layout, are added to every layout.

        Layouts that read the same labels from it count as one: two remain only if the table is ambiguous.
        """
        own = self.own_labels(header, attributes)
        layouts = [replace(layout, labels={**layout.labels, **own}) for layout in self.layouts.values()]
        fitting = [layout for layout in layouts if layout.fits(header)]
        most = max((layout.count_known(header) for layout in fitting), default=0)
        best: list[Layout] = []
        for layout in fitting:
            labels = layout.labels_in(header)
            if layout.count_known(header) == most and all(labels != other.labels_in(header) for other in best):
                best.append(layout)
        return best

    def own_labels(self, header: Collection[str], attributes: AttributeTable) -> dict[str, LabelColumn]:
        """The columns, among these, of attributes with `columns` and of those in no layout."""
        known = {name for layout in self.layouts.values() for name in layout.labels}
        columns = {
            name: attribute.columns or (() if name in known else (name,))
            for name, attribute in attributes.labelled.items()
        }
        return {
            name: LabelColumn(next(column for column in names if column in header), words=True, years=True)
            for name, names in columns.items()
            if set(names) & set(header)
        }

    @property
    def by_file_name(self) -> list[Layout]:
        """The layouts that read the labels from the images' names."""
        return [layout for layout in self.layouts.values() if layout.file_name]


@cache
def built_in_layouts() -> LayoutTable:
    """The layouts of layouts.toml."""
    return read_layouts(BUILT_IN)


def read_layouts(path: Path) -> LayoutTable:
    """Read a TOML file of layouts of the built-in attributes. Raises FairfaceError, in one line, for anything else."""
    try:
        return parse_layouts(parse_toml(read_text(path)))
    except FairfaceError as error:
        raise FairfaceError(f"{path}: {error}") from None


def parse_layouts(tables: dict[str, Any]) -> LayoutTable:
    """The layouts that the `tables` of a TOML file describe. Raises FairfaceError, which names the layout."""
    refuse_unknown(tables, {"age_codes", "layouts", "imports"}, "the file")
    ages = built_in_attributes()["age"].names
    age_codes = {
        name: _parse_codes(codes, ages, f"age_codes.{name}")
        for name, codes in _table(tables, "age_codes", "the file").items()
    }
    layouts, imports = (
        {
            name: _parse_layout(name, table, set(age_codes), of_labeller=key == "imports")
            for name, table in _table({"imports": {}} | tables, key, "the file").items()
        }
        for key in ("layouts", "imports")
    )
    return LayoutTable(layouts, imports, age_codes)


def parse_columns(text: str) -> tuple[tuple[str, str], ...]:
    """Parse `gender=sex,age=years`: pairs of an attribute, `path`, `split` or `target`, and a table's column.

    Raises FairfaceError for anything else, and for a name that is there twice.
    """
    pairs = []
    for item in text.split(","):
        name, sign, column = (part.strip() for part in item.partition("="))
        if not sign or not name or not column:
            raise FairfaceError(f"{item.strip()!r} is not ATTRIBUTE=COLUMN, such as gender=sex")
        pairs.append((name, column))
    for names in ([name for name, _ in pairs], [column.lower() for _, column in pairs]):
        if repeated := next((name for name in names if names.count(name) > 1), None):
            raise FairfaceError(f"{repeated!r} is named twice")
    if {name for name, _ in pairs} <= {"path", "split"}:
        raise FairfaceError(f"{text!r} names no labels: name the column of an attribute or of target as well")
    return tuple(pairs)


def own_layout(columns: Collection[tuple[str, str]], attributes: AttributeTable, *, path: str) -> Layout:
    """The layout of a table in a user's `columns` (see `parse_columns`): words for classes, and ages in years.

    Raises FairfaceError for an unknown attribute.
    """
    known = (*attributes.labelled, *OTHER_COLUMNS)
    if unknown := [name for name, _ in columns if name not in known]:
        raise FairfaceError(f"--columns: {unknown[0]!r} is not one of {', '.join(known)}")
    named = {name: column.lower() for name, column in columns}
    labels = {
        name: LabelColumn(column, words=True, years=True)
        for name, column in named.items()
        if name not in ("path", "split")
    }
    return Layout("columns of --columns", path.lower(), labels, split=named.get("split"))


def _parse_layout(name: str, table: Any, age_codes: Collection[str], *, of_labeller: bool) -> Layout:
    """One layout, of annotations or of a labeller's labels."""
    if not isinstance(table, dict):
        raise FairfaceError(f"{name} is not a table")
    keys = {"title", "path", "file_name", "columns", "ignored_columns", "split", "intersection", "labels"}
    refuse_unknown(table, keys, name)
    if ("path" in table) == ("file_name" in table):
        raise FairfaceError(f"{name} needs either 'path' or 'file_name'")
    labels = {
        attribute: _parse_label(
            f"{name}.{attribute}", label, attribute=attribute, age_codes=age_codes, of_labeller=of_labeller
        )
        for attribute, label in _table(table, "labels", name).items()
    }
    file_name = _text(table, "file_name", name) if "file_name" in table else None
    if file_name is not None:
        _check_file_name(file_name, labels, name)
    return Layout(
        title=_text(table, "title", name),
        path=_column(table, "path", name) if "path" in table else "",
        labels=labels,
        columns=_columns(table, "columns", name),
        ignored_columns=_columns(table, "ignored_columns", name),
        split=_column(table, "split", name) if "split" in table else None,
        intersection=_column(table, "intersection", name) if "intersection" in table else None,
        file_name=file_name,
    )


def _parse_label(
    place: str, table: Any, *, attribute: str, age_codes: Collection[str], of_labeller: bool
) -> LabelColumn:
    """The column of an attribute's labels."""
    attributes = built_in_attributes()
    if attribute not in (*attributes.labelled, "target"):
        raise FairfaceError(f"{place}: {attribute!r} is not an attribute that tables have")
    if not isinstance(table, dict):
        raise FairfaceError(f"{place} is not a table")
    meanings = {"codes", "age_codes", "words", "years"}
    refuse_unknown(table, {"column", *meanings, *(["probabilities"] if of_labeller else [])}, place)
    if len(table.keys() & meanings) != 1:
        raise FairfaceError(f"{place} needs exactly one of {', '.join(sorted(meanings))}")
    column = _column(table, "column", place)
    classes = TARGETS.values() if attribute == "target" else attributes[attribute].names
    if "codes" in table:
        codes = _parse_codes(table["codes"], classes, place)
        return LabelColumn(column, codes=codes, probabilities=_parse_probabilities(table, classes, place))
    if "age_codes" in table:
        names = table["age_codes"]
        if not isinstance(names, list) or not names or not all(name in age_codes for name in names):
            raise FairfaceError(f"{place}: 'age_codes' is not a list of {', '.join(age_codes)}")
        return LabelColumn(column, age_codes=tuple(names))
    if table.get("words", table.get("years")) is not True:
        raise FairfaceError(f"{place}: 'words' and 'years' can only be true")
    if "years" in table and (attribute == "target" or not any(item.years for item in attributes[attribute].classes)):
        raise FairfaceError(f"{place}: no class of {attribute} has 'years'")
    return LabelColumn(column, words="words" in table, years="years" in table)


def _parse_probabilities(table: dict[str, Any], classes: Collection[str], place: str) -> dict[str, str]:
    """Class -> the column of its probability; empty if the label has none."""
    columns = table.get("probabilities", {})
    if not isinstance(columns, dict) or (columns and columns.keys() != set(classes)):
        raise FairfaceError(f"{place}: 'probabilities' is not a table with a column for each class")
    return {name: _column(columns, name, place) for name in columns}


def _parse_codes(table: Any, classes: Collection[str], place: str) -> dict[str, str | None]:
    """Value -> class, None for one that is no class."""
    if not isinstance(table, dict) or not table:
        raise FairfaceError(f"{place}: the codes are not a table")
    if unknown := [name for name in table.values() if name != "" and name not in classes]:
        raise FairfaceError(f"{place}: {unknown[0]!r} is not one of {', '.join(dict.fromkeys(classes))}")
    codes = {normalise_word(value): name or None for value, name in table.items()}
    if len(codes) < len(table):
        raise FairfaceError(f"{place}: two codes are equal")
    return codes


def _check_file_name(pattern: str, labels: Mapping[str, LabelColumn], place: str) -> None:
    """Raise FairfaceError unless the pattern is a regular expression with a group for every label."""
    try:
        groups = re.compile(pattern).groupindex
    except re.error as error:
        raise FairfaceError(f"{place}: 'file_name' is not a regular expression: {error}") from error
    if missing := [label.column for label in labels.values() if label.column not in groups]:
        raise FairfaceError(f"{place}: 'file_name' has no group {missing[0]!r}")


def _table(tables: dict[str, Any], key: str, place: str) -> dict[str, Any]:
    value = tables.get(key)
    if not isinstance(value, dict) or (not value and key != "imports"):
        raise FairfaceError(f"{place}: '{key}' is not a table")
    return value


def _text(table: dict[str, Any], key: str, place: str) -> str:
    value = table.get(key)
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise FairfaceError(f"{place}: '{key}' is not a printable string")
    return value


def _column(table: dict[str, Any], key: str, place: str) -> str:
    """The name of a column. Raises FairfaceError unless it is in lower case."""
    name = _text(table, key, place)
    if name != name.strip().lower():
        raise FairfaceError(f"{place}: {name!r} must be in lower case, without spaces around it")
    return name


def _columns(table: dict[str, Any], key: str, place: str) -> frozenset[str]:
    """A list of names of columns."""
    names = table.get(key, [])
    if not isinstance(names, list):
        raise FairfaceError(f"{place}: '{key}' is not a list of columns")
    return frozenset(_column({key: name}, key, place) for name in names)
