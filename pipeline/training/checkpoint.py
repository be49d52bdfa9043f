"""Checkpoints: written atomically, checked bit by bit and read as plain tensors; only the newest few are kept."""

import math
import re
import sys
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.runtime import free_memory
from shards.atomic_io import atomic_write, read_bytes
from shards.errors import FairfaceError

FORMAT = 2  # 2: the key of the networks' state is `networks`
FILE_NAME = re.compile(r"step_(\d{9})\.pt")
MAX_STEP = 10**9 - 1  # nine digits
HEADER = {"step": int, "networks": dict}  # fields of every checkpoint


def checkpoint_path(folder: Path, step: int) -> Path:
    """The file of the checkpoint of `step`."""
    return folder / f"step_{step:09d}.pt"


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, oldest first."""
    return sorted(path for path in folder.glob("step_*.pt") if FILE_NAME.fullmatch(path.name))


def checkpoint_step(path: Path) -> int:
    """The step in a checkpoint's file name. Raises ValueError for any other file name."""
    match = FILE_NAME.fullmatch(path.name)
    if match is None:
        raise ValueError(f"{path.name} is not the file name of a checkpoint")
    return int(match[1])


def save(folder: Path, step: int, state: dict[str, Any], *, keep: int) -> Path:
    """Write `state` as the checkpoint of `step` and remove all but the newest `keep` checkpoints.

    Equal states give equal bytes, whether or not they were loaded from a checkpoint.
    """
    path, content = checkpoint_path(folder, step), BytesIO()
    # written to memory first, because torch would hide the error of a full disk
    torch.save(_unshared({"fairface": FORMAT, "step": step} | state), content)
    with atomic_write(path) as file:
        file.write(content.getbuffer())
    for old in list_checkpoints(folder)[:-keep]:
        old.unlink(missing_ok=True)
    return path


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Load the state of a checkpoint to `device`; no code in the file is executed.

    Raises FairfaceError for a file that is missing, damaged or not a checkpoint of this version. The message names
    the newest other checkpoint in the same folder that is not damaged, if there is one.
    """
    if not path.exists():
        raise FairfaceError(f"there is no checkpoint {path}: train first with `fairface train`{_hint(path)}")
    try:
        state = torch.load(_checked(_read(path)), map_location=device, weights_only=True)
    except FairfaceError as error:
        raise FairfaceError(f"{error}{_hint(path)}") from error
    except Exception as error:  # zipfile and torch raise a dozen types for a damaged or foreign file
        raise FairfaceError(
            f"{path} is not a complete checkpoint of fairface ({type(error).__name__}){_hint(path)}"
        ) from error
    if not isinstance(state, dict) or state.get("fairface") != FORMAT or not _has_header(state):
        raise FairfaceError(f"{path} is not a checkpoint that this version of fairface wrote{_hint(path)}")
    return state


def find_fault(path: Path) -> str | None:
    """What is wrong with the bytes of a checkpoint; None if they are those that were written."""
    try:
        _checked(_read(path))
    except Exception as error:
        return str(error) or type(error).__name__
    return None


def is_finite(state: Any) -> bool:
    """Whether no number of any tensor in a nested state is NaN or infinite."""
    tensors = (tensor for tensor in _tensors(state) if tensor.is_floating_point() and tensor.numel())
    return all(math.isfinite(bound) for tensor in tensors for bound in torch.stack(tensor.aminmax()).tolist())


def _tensors(state: Any) -> Iterator[Tensor]:
    """Every tensor in nested dictionaries and lists."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, dict | list | tuple):
        for value in state.values() if isinstance(state, dict) else state:
            yield from _tensors(value)


def _unshared(state: Any) -> Any:
    """A copy of a state in which equal texts are one object, and no container occurs twice.

    Pickle writes a repeated object as a reference, so the bytes depend on which of the equal objects are identical.
    """
    if isinstance(state, str):
        return sys.intern(state)
    if isinstance(state, dict):
        copy = type(state)((_unshared(key), _unshared(value)) for key, value in state.items())
        for name, value in getattr(state, "__dict__", {}).items():  # the versions of a network's modules
            setattr(copy, name, _unshared(value))
        return copy
    return type(state)(map(_unshared, state)) if isinstance(state, list | tuple) else state


def _has_header(state: dict[str, Any]) -> bool:
    return all(type(state.get(name)) is kind for name, kind in HEADER.items()) and 0 <= state["step"] <= MAX_STEP


def _read(path: Path) -> bytes:
    """The bytes of a file, which must fit into memory three times: as read, as checked, and as tensors."""
    return read_bytes(path, limit=free_memory(torch.device("cpu")) // 3)


def _checked(content: bytes) -> BytesIO:
    """A copy of the ZIP archive that torch writes, of whose members every CRC-32 is right. Raises errors of many types.

    Torch does not compare the checksums, and finds other members than zipfile under a name if the directory is damaged.
    Members are neither compressed nor repeated, so no archive expands to more than its size.
    """
    copy = BytesIO()
    with zipfile.ZipFile(BytesIO(content)) as archive, zipfile.ZipFile(copy, "w") as checked:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise zipfile.BadZipFile("a member is compressed")
        if sum(member.file_size for member in members) > len(content):
            raise zipfile.BadZipFile("the members are larger than the file")
        if len({member.filename for member in members}) < len(members):
            raise zipfile.BadZipFile("a member is repeated")
        for member in members:
            checked.writestr(member.filename, archive.read(member))
    copy.seek(0)
    return copy


def _hint(path: Path) -> str:
    """The newest other checkpoint in the folder of `path` that can be loaded, as the end of a message."""
    for other in reversed(list_checkpoints(path.parent)):
        if other != path and find_fault(other) is None:
            return f"; the newest other one is {other.name}"
    return ""
