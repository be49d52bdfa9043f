"""Checkpoints: written atomically and read as plain tensors; only the newest few are kept."""

import re
from pathlib import Path
from typing import Any

import torch

from shards.atomic_io import atomic_write
from shards.errors import FairfaceError

FORMAT = 2  # 2: the key of the networks' state is `networks`
FILE_NAME = re.compile(r"step_(\d{9})\.pt")


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
    """Write `state` as the checkpoint of `step` and remove all but the newest `keep` checkpoints."""
    path = checkpoint_path(folder, step)
    with atomic_write(path) as file:
        torch.save({"fairface": FORMAT, "step": step} | state, file)
    for old in list_checkpoints(folder)[:-keep]:
        old.unlink(missing_ok=True)
    return path


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Load the state of a checkpoint to `device`; no code in the file is executed.

    Raises FairfaceError for a file that is missing, damaged or not a checkpoint of this version. The message names
    the newest other checkpoint in the same folder, if there is one.
    """
    others = [other.name for other in list_checkpoints(path.parent) if other != path]
    hint = f"; the newest other one is {others[-1]}" if others else ""
    if not path.is_file():
        raise FairfaceError(f"there is no checkpoint {path}: train first with `fairface train`{hint}")
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises half a dozen types for a foreign or truncated file
        raise FairfaceError(
            f"{path} is not a complete checkpoint of fairface ({type(error).__name__}){hint}"
        ) from error
    if not isinstance(state, dict) or state.get("fairface") != FORMAT:
        raise FairfaceError(f"{path} is not a checkpoint that this version of fairface wrote{hint}")
    return state
