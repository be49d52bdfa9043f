"""Reads and checks TOML files of attributes and layouts."""

import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Any

from shards.atomic_io import read_bytes
from shards.errors import FairfaceError

MAX_FILE_BYTES = 1 << 20


def read_text(path: Path) -> str:
    """The text of a file. Raises FairfaceError if it can't be read, or is not UTF-8."""
    try:
        return read_bytes(path, limit=MAX_FILE_BYTES).decode()
    except OSError as error:
        raise FairfaceError(f"it can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise FairfaceError(f"not a TOML file: {error}") from error


def parse_toml(text: str) -> dict[str, Any]:
    """The tables of a TOML file. Raises FairfaceError for other text."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise FairfaceError(f"not a TOML file: {str(error)[:200]}") from error
    except RecursionError:
        raise FairfaceError("not a TOML file: it is nested too deeply") from None


def refuse_unknown(table: dict[str, Any], known: Collection[str], place: str) -> None:
    """Raise FairfaceError for a key that is not `known`."""
    if unknown := table.keys() - set(known):
        raise FairfaceError(f"{place}: {min(unknown)[:80]!r} is not one of {', '.join(sorted(known))}")
