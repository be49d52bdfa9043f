"""Generators that are held out of a detector's training, so that it can be evaluated on fakes that it has not seen."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import polars as pl

from models.detectors import FAMILIES
from pipeline.detection.dataset import FacePool
from shards.errors import FairfaceError
from shards.match import normalise_name

EACH_FAMILY, EACH_METHOD = "all", "all-methods"


def resolve_hold_out(faces: FacePool, values: Sequence[str]) -> list[tuple[str, ...]]:
    """The generators that each training holds out, by their names in the table of images.

    Each of `values` is one training: the name of a family or of a method, regardless of case, `_` and `-`, or several
    names separated by commas. `all` is a training for each family, or for each method of a single family, and
    `all-methods` for each method, except for those that can't be held out. Raises FairfaceError for an unknown name.
    """
    if faces.run:
        raise FairfaceError(
            f"--hold-out: the fakes are the samples of run {faces.run}, which have a single generator; pack fakes of "
            "several families or methods, as in AI-Face's folders, and use --fakes images"
        )
    fakes = faces.rows.filter(pl.col("fake").fill_null(False)).select(generator_columns())
    names = {column: sorted(fakes[column].drop_nulls().unique()) for column in fakes.columns}
    resolved: list[tuple[str, ...]] = []
    for value in values:
        if value.lower() in (EACH_FAMILY, EACH_METHOD):
            is_by_family = value.lower() == EACH_FAMILY and len(names["family"]) > 1
            resolved += each_generator(faces, names["family" if is_by_family else "method"], value=value)
        else:
            resolved.append(find_generators(names, value))
    return list(dict.fromkeys(resolved))


def each_generator(faces: FacePool, names: Sequence[str], *, value: str) -> list[tuple[str, ...]]:
    """Each of the families or methods `names` that can be held out. Raises FairfaceError if there is none."""
    reasons = {name: why_not(faces, (name,)) for name in names}
    found: list[tuple[str, ...]] = [(name,) for name, reason in reasons.items() if not reason]
    if not found:
        listed = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())[:600]
        raise FairfaceError(f"--hold-out {value}: nothing can be held out: {listed or 'the methods are unknown'}")
    return found


def find_generators(names: Mapping[str, Sequence[str]], value: str) -> tuple[str, ...]:
    """The families and methods that `value` lists. Raises FairfaceError for an unknown one."""
    found: list[str] = []
    for part in (part.strip() for part in value.split(",")):
        alike = [name for each in names.values() for name in each if normalise_name(name) == normalise_name(part)]
        if not alike:
            listed = "; ".join(f"{kind}: {', '.join(each) or 'none'}"[:600] for kind, each in names.items())
            raise FairfaceError(f"--hold-out {part[:80]!r} is not a family or method of the fakes; there are: {listed}")
        found += alike
    return tuple(sorted(set(found)))


def without_generators(faces: FacePool, names: Sequence[str]) -> FacePool:
    """The pool without the training fakes of the families and methods `names`; the test faces stay.

    Raises FairfaceError if that leaves nothing to train on, or if there is nothing to hold out or to test with.
    """
    if not names:
        return faces
    if reason := why_not(faces, names):
        raise FairfaceError(f"--hold-out {','.join(names)}: {reason}")
    is_held_out = is_made_by(names) & pl.col("fake").fill_null(False) & ~pl.col("test")
    rows = faces.rows.with_columns(fake=pl.when(is_held_out).then(None).otherwise("fake"))
    return replace(faces, rows=rows, held_out=tuple(names))


def why_not(faces: FacePool, names: Sequence[str]) -> str | None:
    """Why the families and methods `names` can't be held out of training; None if they can be."""
    fakes = faces.rows.filter(pl.col("fake").fill_null(False)).select("test", held_out=is_made_by(names))
    if fakes.filter("test", "held_out").is_empty():
        return "no test face is a fake of it, so that a detector could not be evaluated on it"
    if fakes.filter(~pl.col("test"), "held_out").is_empty():
        return "no training face is a fake of it, so that every detector is evaluated on it without having seen it"
    if fakes.filter(~pl.col("test"), ~pl.col("held_out")).is_empty():
        return "no fakes are left to train on"
    return None


def is_made_by(names: Sequence[str]) -> pl.Expr:
    """Whether a row is of one of these families or methods."""
    family, method = generator_columns()
    return (family.is_in(list(names)) | method.is_in(list(names))).fill_null(False)


def generator_columns() -> tuple[pl.Expr, pl.Expr]:
    """The names of the family and of the method of the rows of a pool; null if they are unknown."""
    names = dict(enumerate(FAMILIES))
    family = pl.col("family").replace_strict(names, default=None, return_dtype=pl.String)
    return family.alias("family"), pl.col("subset").alias("method")
