"""Hypothesis strategies for changed files: bytes, JSON documents and tables."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
from hypothesis import strategies as st

SPECIAL_FILES = ("empty", "folder", "pipe", "device", "dangling link", "link to itself", "link to /dev/zero", "missing")
TYPES = (pl.String, pl.Float64, pl.Int8, pl.UInt64, pl.Binary, pl.Boolean, pl.List(pl.Float32), pl.Datetime)
HUGE = (2**63, -(2**63) - 1, 10**400, 1e308)


def nested(depth: int, opening: str = "[", closing: str = "]") -> str:
    return opening * depth + closing * depth


ODD_VALUES: tuple[Any, ...] = (
    None, True, 0, -1, *HUGE, 0.5, float("nan"), float("inf"), "", "\0", "\x1b[2J", "x" * 10_000,
    "../../../etc/passwd", "/", "*",
    [], [None], [[]], {}, {"": None}, {"\ud800": 1},
)  # fmt: skip


@st.composite
def changed_bytes(draw: st.DrawFn, data: bytes) -> bytes:
    """`data` with flipped bits, or with a part removed, repeated, overwritten or cut off."""
    start = draw(st.integers(0, max(len(data) - 1, 0)))
    length = draw(st.sampled_from([1, 4, 16, 1000]))
    before, part, after = data[:start], data[start : start + length], data[start + length :]
    return draw(
        st.sampled_from(
            [
                before + bytes([(part[:1] or b"\0")[0] ^ 1 << draw(st.integers(0, 7))]) + data[start + 1 :],
                before,
                before + after,
                before + part + part + after,
                before + draw(st.binary(min_size=1, max_size=16)) + after,
                before + bytes(len(part)) + after,
                data + b"\0",
                b"",
            ]
        )
    )


@st.composite
def changed_json(draw: st.DrawFn, text: str) -> str:
    """A JSON document with one value removed, renamed, repeated or replaced, or nested deeply."""
    value = json.loads(text)
    place, key = draw(st.sampled_from(list(_places(value))))
    change = draw(st.sampled_from(["remove", "rename", "replace", "replace", "replace", "repeat", "nest", "wrap"]))
    item = place[key]
    if change == "nest":
        place[key] = "NEST"
        deep = draw(
            st.sampled_from([nested(1_000), nested(100_000), nested(1_000, '{"a":', "}").replace(":}", ":1}", 1)])
        )
        return json.dumps(value).replace('"NEST"', deep)
    if change == "wrap":
        return json.dumps([value])
    if change == "replace":
        place[key] = draw(st.sampled_from(ODD_VALUES))
    elif change == "remove":
        del place[key]
    elif change == "repeat":
        if isinstance(place, list):
            place.append(item)
        else:  # the same name twice
            place["REPEATED"] = draw(st.sampled_from(ODD_VALUES))
            return json.dumps(value).replace("REPEATED", key)
    elif isinstance(place, dict):
        place[draw(st.sampled_from(["", "format", "\u202e", key.upper()]))] = place.pop(key)
    return json.dumps(value)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every element of nested lists and objects, as the container and the element's key."""
    for key in value if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])


@st.composite
def changed_table(draw: st.DrawFn, frame: pl.DataFrame) -> pl.DataFrame:
    """A table without a column or with one more, renamed, of another type or with other values, or of other length."""
    column = draw(st.sampled_from(frame.columns))
    kind = frame.schema[column]
    changes: list[Callable[[], pl.DataFrame]] = [
        lambda: frame.drop(column),
        lambda: frame.rename({column: draw(st.sampled_from([column.upper() + "_", "", "a\nb", '"', "\x1b[2J"]))}),
        lambda: frame.with_columns(pl.Series(column, [None] * len(frame), draw(st.sampled_from(TYPES)))),
        lambda: frame.with_columns(pl.lit(None, kind).alias(column)),
        lambda: frame.clear(),
        lambda: pl.concat([frame, frame]),
        lambda: frame.head(draw(st.integers(1, 3))),
        lambda: frame.reverse(),
        lambda: frame.with_columns(extra=pl.lit(1)),
        lambda: frame.with_columns(pl.col(column).shuffle(seed=1)),
        lambda: _with_odd_values(draw, frame, column),
        lambda: _with_odd_values(draw, frame, column),
        lambda: _with_odd_values(draw, frame, column),
    ]
    return draw(st.sampled_from(changes))()


def _with_odd_values(draw: st.DrawFn, frame: pl.DataFrame, column: str) -> pl.DataFrame:
    """`frame` with values in a column that its type allows, but that `fairface` would not write."""
    kind = frame.schema[column]
    if kind == pl.String:
        value: Any = draw(st.sampled_from(["", "../../x", "x" * 1000, "\0", "shard-000000.tar", "\x1b[2J", "a\nb"]))
    elif kind.is_float():
        value = draw(st.sampled_from([float("nan"), float("inf"), -1.0, 1e30]))
    elif kind.is_integer():
        value = draw(st.sampled_from([*pl.select(kind.min(), high=kind.max()).row(0), 0]))
    else:
        return frame.with_columns(pl.col(column).first())
    return frame.with_columns(pl.lit(value).cast(kind).alias(column))


def put_special_file(path: Path, kind: str) -> None:
    """Anything but a regular file in its place."""
    path.unlink()
    if kind == "empty":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind != "missing":
        targets = {"device": "/dev/tty", "dangling link": "nowhere", "link to itself": path.name}
        path.symlink_to(targets.get(kind, "/dev/zero"))
