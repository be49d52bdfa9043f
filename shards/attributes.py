"""The attributes of a face, such as gender, and their classes: what attributes.toml describes."""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from shards.documents import AttributesDocument, changed_files, read_document
from shards.errors import FairfaceError
from shards.replacement import replace_described_files
from shards.toml_tables import parse_toml, read_text, refuse_unknown
from shards.workspace import Workspace

BUILT_IN = Path(__file__).with_name("attributes.toml")
MAX_CLASSES = 100  # of an attribute, crosses included
MAX_ATTRIBUTES = 100
MAX_LABELLED = 60  # SQL's `grouping` takes at most 64 columns
MAX_TEXT = 200  # characters
PROBABILITY_PREFIX = "p_"  # and an attribute: its column of probabilities
MAX_YEARS = 150  # of age
# The label of a face that a labeller abstains from: no class may have this name. In tables of labels its class is null
# and its probabilities are not (without probabilities, the labeller has not labelled the attribute at all).
UNSURE = "unsure"
ATTRIBUTE_NAME = re.compile("[a-z][a-z0-9_]{0,39}")
CLASS_NAME = re.compile(r"[^\W_][\w +&./()-]{0,39}")
NUMBER = re.compile("0|[1-9][0-9]{0,2}")
COLOUR = re.compile("#[0-9a-f]{6}")
# Columns next to those of attributes, in files, views and while tables are read, and values that questions use.
RESERVED_NAMES = {
    "all", "annotated", "attribute", "bin", "bytes", "called", "called_fake", "checkpoint", "count", "detector",
    "disagrees", "embedding", "evaluation_set", "every", "faces", "fake", "family", "filename",
    "full_called_fake", "full_logit", "group", "grouped_by", "grouping_id", "height", "index", "is_annotated",
    "is_fake", "is_held_out", "is_resolvable", "key", "labelled", "labeller", "logit", "matched", "method", "n",
    "name", "newest", "number", "orientation", "pair", "part", "path", "perturbation", "pixel_tone", "point",
    "probabilities", "probability", "rank", "reason", "requested", "run", "seed", "sha256", "shard", "side", "size",
    "source", "split", "status", "stratum", "subset", "target", "test", "threshold", "typology_angle", "uncoded",
    "width",
}  # fmt: skip


def normalise_word(text: str) -> str:
    """A word in lower case, without blanks and `_`; and without `-`, unless it contains a digit, as in `20-29`."""
    word = re.sub(r"[\s_]", "", text).lower()
    return word if re.search(r"\d", word) else word.replace("-", "")


@dataclass(frozen=True)
class AttributeClass:
    """One class of an attribute."""

    name: str
    plural: str | None = None  # its faces in a sentence, such as "women"; None for "faces of <name>"
    colour: str | None = None  # #rrggbb
    prompt: str | None = None  # its description for a zero-shot labeller
    of: tuple[str, ...] = ()  # of a derived attribute: the parent's classes that it consists of
    names: tuple[str, ...] = ()  # other words for it in annotation tables
    years: tuple[int, int] | None = None  # the first and the last year of age that belong to it

    @property
    def faces(self) -> str:
        """Its faces in a sentence."""
        return self.plural or f"faces of {self.name}"


@dataclass(frozen=True)
class Attribute:
    """A property of a face with a fixed set of classes.

    It is annotated and labelled itself, derived from a `parent`, or a cross: the combination of several attributes.
    """

    name: str
    title: str
    subject: str  # what a sentence says is preserved, such as "gender balance"
    plural: str  # its groups in a sentence, such as "genders"
    classes: tuple[AttributeClass, ...] = field(repr=False)  # of a cross, named by the combined classes
    parent: str | None = None
    cross: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()  # of annotation tables, in lower case, in addition to those of layouts.toml
    headline: bool = False  # whether the verdict has a sentence on it
    expanded: bool = False  # whether the page shows its table expanded

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the classes, in their order."""
        return tuple(item.name for item in self.classes)

    @property
    def words(self) -> dict[str, str]:
        """The class of every name of a class and of every other word for it, as `normalise_word` spells them."""
        return {normalise_word(word): item.name for item in self.classes for word in (item.name, *item.names)}

    @property
    def is_numbered(self) -> bool:
        """Whether its classes are small numbers, which are stored as such."""
        return all(NUMBER.fullmatch(name) and int(name) < 128 for name in self.names)

    @property
    def is_labelled(self) -> bool:
        """Whether annotations and labellers give its classes, and it is not derived from other attributes."""
        return not self.parent and not self.cross

    @property
    def is_tabulated(self) -> bool:
        """Whether it has a figure and a table of its own; a cross of more than two has a grid of small cells."""
        return len(self.cross) < 3

    @property
    def prompts(self) -> dict[str, str]:
        """The description of each class for a zero-shot labeller; empty if one of them has none."""
        prompts = {item.name: item.prompt for item in self.classes}
        return {name: prompt for name, prompt in prompts.items() if prompt} if all(prompts.values()) else {}


class AttributeTable(Mapping[str, Attribute]):
    """All attributes by name, in their order."""

    def __init__(self, attributes: Mapping[str, Attribute]):
        self._attributes = dict(attributes)

    def __getitem__(self, name: str) -> Attribute:
        return self._attributes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._attributes)

    def __len__(self) -> int:
        return len(self._attributes)

    @property
    def labelled(self) -> dict[str, Attribute]:
        """The attributes that are annotated and labelled directly."""
        return {name: attribute for name, attribute in self.items() if attribute.is_labelled}

    @property
    def stored(self) -> dict[str, Attribute]:
        """The attributes with a column in images.parquet: all but the crosses."""
        return {name: attribute for name, attribute in self.items() if not attribute.cross}

    @property
    def crosses(self) -> list[Attribute]:
        """The crosses."""
        return [attribute for attribute in self.values() if attribute.cross]

    @property
    def derived(self) -> list[Attribute]:
        """The attributes that are derived from a parent."""
        return [attribute for attribute in self.values() if attribute.parent]

    @property
    def headlines(self) -> list[Attribute]:
        """The attributes that the verdict has a sentence on."""
        return [attribute for attribute in self.values() if attribute.headline]

    @property
    def tabulated(self) -> dict[str, Attribute]:
        """The attributes that have a figure and a table of their own."""
        return {name: attribute for name, attribute in self.items() if attribute.is_tabulated}


@cache
def built_in_attributes() -> AttributeTable:
    """The attributes of attributes.toml."""
    return read_attributes(BUILT_IN)


def workspace_attributes(workspace: Workspace) -> AttributeTable:
    """The attributes of a workspace: the built-in ones, and what the user's own file adds or replaces."""
    own = own_attributes(workspace)
    return own.table if own else built_in_attributes()


@dataclass(frozen=True)
class OwnAttributes:
    """A user's own file of attributes."""

    path: Path
    text: str  # its content
    table: AttributeTable  # with the built-in attributes, unless the file leaves them out


def own_attributes(workspace: Workspace) -> OwnAttributes | None:
    """The file of attributes in a workspace; None if there is none."""
    return read_own_attributes(workspace.attributes) if workspace.attributes.exists() else None


def read_own_attributes(path: Path) -> OwnAttributes:
    """Read a TOML file of attributes, which adds to the built-in ones and replaces those of the same name.

    With `built_in = false` at its top, the built-in attributes are left out. Raises FairfaceError, in one line, for
    anything else.
    """
    try:
        text = read_text(path)
        tables = parse_toml(text)
        with_built_in = _flag(tables, "built_in", "the file", default=True)
        tables.pop("built_in", None)
        if with_built_in:
            tables = parse_toml(read_text(BUILT_IN)) | tables
        return OwnAttributes(path, text, parse_attributes(tables))
    except FairfaceError as error:
        raise FairfaceError(f"{path}: {error}") from None


def keep_own_attributes(workspace: Workspace, own: OwnAttributes) -> None:
    """Copy a file of attributes into a workspace, where every command reads it and `verify` checks it."""
    document = read_document(workspace.attributes_document, AttributesDocument)
    if own.path != workspace.attributes or document is None or changed_files(workspace.root, document.files):
        replace_described_files(
            workspace.attributes_document,
            {workspace.attributes: lambda file: file.write(own.text.encode())},
            describe=lambda files: AttributesDocument(files=files),
        )


def read_attributes(path: Path) -> AttributeTable:
    """Read a TOML file with all attributes. Raises FairfaceError, in one line, for anything else."""
    try:
        return parse_attributes(parse_toml(read_text(path)))
    except FairfaceError as error:
        raise FairfaceError(f"{path}: {error}") from None


def parse_attributes(tables: dict[str, Any]) -> AttributeTable:
    """The attributes that the `tables` of a TOML file describe. Raises FairfaceError, which names the attribute."""
    if not 1 <= len(tables) <= MAX_ATTRIBUTES:
        raise FairfaceError(f"there are {len(tables)} attributes; there must be from 1 to {MAX_ATTRIBUTES}")
    parsed = {name: _parse_attribute(name, table) for name, table in tables.items()}
    for attribute in parsed.values():
        if attribute.parent:
            _check_parent(attribute, parsed)
    if (labelled := sum(item.is_labelled for item in parsed.values())) > MAX_LABELLED:
        raise FairfaceError(f"{labelled} attributes are labelled directly; at most {MAX_LABELLED} can be")
    _check_flat_columns(parsed)
    crossed = {name: _with_combinations(item, parsed) if item.cross else item for name, item in parsed.items()}
    return AttributeTable(crossed)


def _check_flat_columns(attributes: Mapping[str, Attribute]) -> None:
    """Raise FairfaceError if two columns of class probabilities in a flat table would have the same name."""
    named: dict[str, str] = {}  # column -> its attribute
    for item in attributes.values():
        for each in item.names if item.is_labelled else ():
            column = f"{PROBABILITY_PREFIX}{item.name}_{each}"
            if (other := named.setdefault(column, item.name)) != item.name:
                raise FairfaceError(f"{other} and {item.name} would both have a column {column[:80]!r}: rename one")


def _parse_attribute(name: str, table: Any) -> Attribute:
    """One attribute, without the classes of a cross."""
    if not ATTRIBUTE_NAME.fullmatch(name) or name in RESERVED_NAMES or name.startswith(PROBABILITY_PREFIX):
        raise FairfaceError(
            f"{name[:80]!r} can't name an attribute: use a letter, then at most 39 letters, digits and _, all in lower "
            "case, no name of a column, and nothing that starts with p_"
        )
    if not isinstance(table, dict):
        raise FairfaceError(f"{name} is not a table")
    parent, cross = table.get("parent"), table.get("cross", [])
    keys = {"title", "subject", "plural", "headline", "expanded", "parent", "cross", "classes", "columns"}
    refuse_unknown(table, keys, name)
    if not isinstance(parent, str | None):
        raise FairfaceError(f"{name}: 'parent' is not the name of an attribute")
    if not isinstance(cross, list) or not all(isinstance(item, str) for item in cross) or len(cross) == 1:
        raise FairfaceError(f"{name}: 'cross' is not a list of at least two attributes")
    if bool(cross) == ("classes" in table) or (cross and parent is not None):
        raise FairfaceError(f"{name} needs either 'classes' (and optionally a 'parent') or a 'cross'")
    columns = table.get("columns", [])
    if not isinstance(columns, list) or not all(isinstance(item, str) and item.strip() for item in columns):
        raise FairfaceError(f"{name}: 'columns' is not a list of column names")
    if columns and (cross or parent is not None):
        raise FairfaceError(f"{name}: a derived attribute or a cross can't have 'columns'")
    classes = () if cross else _parse_classes(name, table["classes"], is_derived=parent is not None)
    return Attribute(
        name=name,
        title=_text(table, "title", name),
        subject=_text(table, "subject", name),
        plural=_text(table, "plural", name),
        classes=classes,
        parent=parent,
        cross=tuple(cross),
        columns=tuple(column.strip().lower() for column in columns),
        headline=_flag(table, "headline", name),
        expanded=_flag(table, "expanded", name),
    )


def _parse_classes(attribute: str, tables: Any, *, is_derived: bool) -> tuple[AttributeClass, ...]:
    """The classes of an attribute, in their order."""
    if not isinstance(tables, dict) or not 2 <= len(tables) <= MAX_CLASSES:
        raise FairfaceError(f"{attribute}: 'classes' must be a table of 2 to {MAX_CLASSES} classes")
    classes = []
    for name, table in tables.items():
        place = f"{attribute}, class {name[:80]!r}"
        if not CLASS_NAME.fullmatch(name):
            raise FairfaceError(
                f"{place}: a class has at most 40 letters, digits, blanks and _ + & . / ( ) -, the first of them a "
                "letter or a digit"
            )
        if normalise_word(name) == UNSURE:
            raise FairfaceError(f"{place}: {UNSURE!r} is reserved for faces that a labeller abstains from")
        if not isinstance(table, dict):
            raise FairfaceError(f"{place} is not a table; write {{}} for a class without keys")
        own = ["of"] if is_derived else ["names", "years"]
        refuse_unknown(table, {"plural", "colour", "prompt", *own}, place)
        texts = {key: _text(table, key, place) for key in ("plural", "colour", "prompt") if key in table}
        if "colour" in texts and not COLOUR.fullmatch(texts["colour"]):
            raise FairfaceError(f"{place}: {texts['colour']!r} is not a colour; write it as #rrggbb in lower case")
        of, names = table.get("of", []), table.get("names", [])
        if not isinstance(of, list) or not all(isinstance(item, str) for item in of) or (is_derived and not of):
            raise FairfaceError(f"{place}: 'of' is not a list of classes")
        if not isinstance(names, list) or not all(isinstance(word, str) and word.strip() for word in names):
            raise FairfaceError(f"{place}: 'names' is not a list of words")
        years = _years(table["years"], place) if "years" in table else None
        classes.append(AttributeClass(name=name, of=tuple(of), names=tuple(names), years=years, **texts))
    _check_distinct(attribute, classes)
    return tuple(classes)


def _years(value: Any, place: str) -> tuple[int, int]:
    """The first and the last year of a class."""
    if not isinstance(value, list) or len(value) != 2 or not all(type(year) is int for year in value):
        raise FairfaceError(f"{place}: 'years' is not a list of two integers")
    first, last = value
    if not 0 <= first <= last <= MAX_YEARS:
        raise FairfaceError(f"{place}: 'years' must be two ages in ascending order, from 0 to {MAX_YEARS}")
    return first, last


def _check_distinct(attribute: str, classes: Sequence[AttributeClass]) -> None:
    """Raise FairfaceError if a word or a year belongs to two classes."""
    words = [(normalise_word(word), item.name) for item in classes for word in (item.name, *item.names)]
    for word, name in words:
        if any(word == other and name != owner for other, owner in words):
            raise FairfaceError(f"{attribute}: {word!r} is a word for two classes")
    spans = sorted(item.years for item in classes if item.years)
    if any(last >= first for (_, last), (first, _) in itertools.pairwise(spans)):
        raise FairfaceError(f"{attribute}: the 'years' of two classes overlap")


def _check_parent(attribute: Attribute, attributes: Mapping[str, Attribute]) -> None:
    """Raise FairfaceError unless every class consists of classes of the parent, and none of these is used twice."""
    parent = attributes.get(attribute.parent or "")
    if parent is None or not parent.is_labelled:
        raise FairfaceError(
            f"{attribute.name}: the parent {attribute.parent!r} is not an attribute with classes of its own"
        )
    used = [name for item in attribute.classes for name in item.of]
    if unknown := [name for name in used if name not in parent.names]:
        raise FairfaceError(
            f"{attribute.name}: {unknown[0]!r} is not a class of {parent.name}; if you replace {parent.name}, replace "
            f"{attribute.name} as well"
        )
    if twice := [name for name in used if used.count(name) > 1]:
        raise FairfaceError(f"{attribute.name}: {twice[0]!r} of {parent.name} belongs to two classes")


def _with_combinations(attribute: Attribute, attributes: Mapping[str, Attribute]) -> Attribute:
    """A cross with its classes: the combinations of those of its attributes, the last of which varies fastest."""
    parts = [attributes.get(name) for name in attribute.cross]
    for name, part in zip(attribute.cross, parts, strict=True):
        if part is None or part.cross:
            raise FairfaceError(f"{attribute.name} can't cross {name!r}: it is unknown, or is itself a cross")
    if len(set(attribute.cross)) < len(attribute.cross):
        raise FairfaceError(f"{attribute.name} crosses an attribute with itself")
    names = ["-".join(combination) for combination in itertools.product(*(part.names for part in parts if part))]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise FairfaceError(f"{attribute.name}: two combinations of classes have the name {twice!r}")
    if len(names) > MAX_CLASSES:
        raise FairfaceError(f"{attribute.name} has {len(names)} classes; a cross has at most {MAX_CLASSES}")
    classes = tuple(AttributeClass(name, plural=f"{name.replace('-', ' ')} faces") for name in names)
    return replace(attribute, classes=classes)


def _text(table: dict[str, Any], key: str, place: str) -> str:
    """The table's text under `key`, checked to be non-empty and printable."""
    value = table.get(key)
    if not isinstance(value, str) or not value.strip() or not value.isprintable() or len(value) > MAX_TEXT:
        raise FairfaceError(f"{place}: '{key}' must be a non-empty printable string of at most {MAX_TEXT} characters")
    return value


def _flag(table: dict[str, Any], key: str, place: str, *, default: bool = False) -> bool:
    value = table.get(key, default)
    if not isinstance(value, bool):
        raise FairfaceError(f"{place}: '{key}' must be true or false")
    return value
