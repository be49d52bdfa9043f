"""The attributes of a face, such as gender, and their classes: what attributes.toml describes."""

import itertools
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from shards.atomic_io import read_bytes
from shards.errors import FairfaceError

BUILT_IN = Path(__file__).with_name("attributes.toml")
MAX_FILE_BYTES = 1 << 20
MAX_CLASSES = 100  # of an attribute, crosses included
MAX_ATTRIBUTES = 100
MAX_TEXT = 200  # characters
ATTRIBUTE_NAME = re.compile("[a-z][a-z0-9_]{0,39}")
CLASS_NAME = re.compile(r"[^\W_][\w +&./()-]{0,39}")
COLOUR = re.compile("#[0-9a-f]{6}")
# Columns of images, labels, samples, predictions and estimates, and values that questions use.
RESERVED_NAMES = {
    "all", "annotated", "attribute", "bytes", "called_fake", "checkpoint", "count", "detector", "embedding",
    "family", "group", "grouped_by", "height", "index", "key", "labelled", "labeller", "logit", "method", "n", "newest",
    "orientation", "part", "path", "perturbation", "probability", "rank", "reason", "requested", "run", "seed",
    "sha256", "shard", "size", "source", "split", "status", "stratum", "subset", "target", "typology_angle", "width",
}  # fmt: skip


@dataclass(frozen=True)
class AttributeClass:
    """One class of an attribute."""

    name: str
    plural: str | None = None  # its faces in a sentence, such as "women"; None for "faces of <name>"
    colour: str | None = None  # #rrggbb
    prompt: str | None = None  # its description for a zero-shot labeller
    of: tuple[str, ...] = ()  # of a derived attribute: the parent's classes that it consists of

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
    headline: bool = False  # whether the verdict has a sentence on it
    unfolded: bool = False  # whether the page shows its table unfolded

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the classes, in their order."""
        return tuple(item.name for item in self.classes)

    @property
    def is_labelled(self) -> bool:
        """Whether annotations and labellers give its classes, and it is not derived from other attributes."""
        return not self.parent and not self.cross

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
    def labelled(self) -> dict[str, tuple[str, ...]]:
        """The names of the classes of every attribute that is annotated and labelled itself."""
        return {name: attribute.names for name, attribute in self.items() if attribute.is_labelled}

    @property
    def crosses(self) -> list[Attribute]:
        """The crosses."""
        return [attribute for attribute in self.values() if attribute.cross]

    @property
    def derived(self) -> list[Attribute]:
        """The attributes that are derived from a parent."""
        return [attribute for attribute in self.values() if attribute.parent]


@cache
def built_in_attributes() -> AttributeTable:
    """The attributes of attributes.toml."""
    return read_attributes(BUILT_IN)


def read_attributes(path: Path) -> AttributeTable:
    """Read a TOML file of attributes. Raises FairfaceError, in one line, for anything else."""
    try:
        tables = tomllib.loads(read_bytes(path, limit=MAX_FILE_BYTES).decode())
    except OSError as error:
        raise FairfaceError(f"{path} can't be read: {error.strerror}") from error
    except ValueError as error:  # of TOML or UTF-8
        raise FairfaceError(f"{path} is not a TOML file of attributes: {str(error)[:200]}") from error
    except RecursionError:
        raise FairfaceError(f"{path} is not a TOML file of attributes: it is nested too deeply") from None
    try:
        return parse_attributes(tables)
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
    crossed = {name: _with_combinations(item, parsed) if item.cross else item for name, item in parsed.items()}
    return AttributeTable(crossed)


def _parse_attribute(name: str, table: Any) -> Attribute:
    """One attribute, without the classes of a cross."""
    if not ATTRIBUTE_NAME.fullmatch(name) or name in RESERVED_NAMES:
        raise FairfaceError(
            f"{name[:80]!r} can't name an attribute: use a letter, then at most 39 letters, digits and _, all in lower "
            "case, and no name of a column"
        )
    if not isinstance(table, dict):
        raise FairfaceError(f"{name} is not a table")
    parent, cross = table.get("parent"), table.get("cross", [])
    _refuse_unknown(table, {"title", "subject", "plural", "headline", "unfolded", "parent", "cross", "classes"}, name)
    if not isinstance(parent, str | None):
        raise FairfaceError(f"{name}: 'parent' is not the name of an attribute")
    if not isinstance(cross, list) or not all(isinstance(item, str) for item in cross) or len(cross) == 1:
        raise FairfaceError(f"{name}: 'cross' is not a list of at least two attributes")
    if bool(cross) == ("classes" in table) or (cross and parent is not None):
        raise FairfaceError(f"{name} needs 'classes', with or without a 'parent', or a 'cross'")
    classes = () if cross else _parse_classes(name, table["classes"], is_derived=parent is not None)
    return Attribute(
        name=name,
        title=_text(table, "title", name),
        subject=_text(table, "subject", name),
        plural=_text(table, "plural", name),
        classes=classes,
        parent=parent,
        cross=tuple(cross),
        headline=_flag(table, "headline", name),
        unfolded=_flag(table, "unfolded", name),
    )


def _parse_classes(attribute: str, tables: Any, *, is_derived: bool) -> tuple[AttributeClass, ...]:
    """The classes of an attribute, in their order."""
    if not isinstance(tables, dict) or not 2 <= len(tables) <= MAX_CLASSES:
        raise FairfaceError(f"{attribute}: 'classes' must be a table of from 2 to {MAX_CLASSES} classes")
    classes = []
    for name, table in tables.items():
        place = f"{attribute}, class {name[:80]!r}"
        if not CLASS_NAME.fullmatch(name):
            raise FairfaceError(
                f"{place}: a class has at most 40 letters, digits, blanks and _ + & . / ( ) -, the first of them a "
                "letter or a digit"
            )
        if not isinstance(table, dict):
            raise FairfaceError(f"{place} is not a table; write {{}} for a class without words")
        _refuse_unknown(table, {"plural", "colour", "prompt", *(["of"] if is_derived else [])}, place)
        texts = {key: _text(table, key, place) for key in ("plural", "colour", "prompt") if key in table}
        if "colour" in texts and not COLOUR.fullmatch(texts["colour"]):
            raise FairfaceError(f"{place}: {texts['colour']!r} is no colour; write it as #rrggbb in lower case")
        of = table.get("of", [])
        if not isinstance(of, list) or not all(isinstance(item, str) for item in of) or (is_derived and not of):
            raise FairfaceError(f"{place}: 'of' is not a list of classes")
        classes.append(AttributeClass(name=name, of=tuple(of), **texts))
    return tuple(classes)


def _check_parent(attribute: Attribute, attributes: Mapping[str, Attribute]) -> None:
    """Raise FairfaceError unless every class consists of classes of the parent, and none of these is used twice."""
    parent = attributes.get(attribute.parent or "")
    if parent is None or not parent.is_labelled:
        raise FairfaceError(
            f"{attribute.name}: the parent {attribute.parent!r} is not an attribute with classes of its own"
        )
    used = [name for item in attribute.classes for name in item.of]
    if unknown := [name for name in used if name not in parent.names]:
        raise FairfaceError(f"{attribute.name}: {unknown[0]!r} is not a class of {parent.name}")
    if twice := [name for name in used if used.count(name) > 1]:
        raise FairfaceError(f"{attribute.name}: {twice[0]!r} of {parent.name} belongs to two classes")


def _with_combinations(attribute: Attribute, attributes: Mapping[str, Attribute]) -> Attribute:
    """A cross with its classes: the combinations of those of its attributes, the last of which varies fastest."""
    parts = [attributes.get(name) for name in attribute.cross]
    for name, part in zip(attribute.cross, parts, strict=True):
        if part is None or part.cross:
            raise FairfaceError(f"{attribute.name} can't cross {name!r}: it is not an attribute, or a cross itself")
    if len(set(attribute.cross)) < len(attribute.cross):
        raise FairfaceError(f"{attribute.name} crosses an attribute with itself")
    names = ["-".join(combination) for combination in itertools.product(*(part.names for part in parts if part))]
    if len(names) > MAX_CLASSES or len(set(names)) < len(names):
        raise FairfaceError(
            f"{attribute.name} has {len(names)} classes; at most {MAX_CLASSES} with different names are possible"
        )
    classes = tuple(AttributeClass(name, plural=name.replace("-", " ")) for name in names)
    return replace(attribute, classes=classes)


def _text(table: dict[str, Any], key: str, place: str) -> str:
    """A text of a table that is not empty and can be printed."""
    value = table.get(key)
    if not isinstance(value, str) or not value.strip() or not value.isprintable() or len(value) > MAX_TEXT:
        raise FairfaceError(f"{place}: '{key}' must be a text of at most {MAX_TEXT} characters")
    return value


def _flag(table: dict[str, Any], key: str, place: str) -> bool:
    value = table.get(key, False)
    if not isinstance(value, bool):
        raise FairfaceError(f"{place}: '{key}' must be true or false")
    return value


def _refuse_unknown(table: dict[str, Any], known: set[str], place: str) -> None:
    if unknown := table.keys() - known:
        raise FairfaceError(f"{place}: {min(unknown)[:80]!r} is not one of {', '.join(sorted(known))}")
