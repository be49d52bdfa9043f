"""Checkpoints: written atomically, read as plain tensors, the last few kept."""

import re
from pathlib import Path

import torch

from shards.atomic_io import atomic_write
from shards.errors import FairfaceError

FORMAT = 1
NAME = re.compile(r"step_(\d{9})\.pt")


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of `step` goes."""
    return folder / f"step_{step:09d}.pt"


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, oldest first."""
    return sorted(path for path in folder.glob("step_*.pt") if NAME.fullmatch(path.name))


def checkpoint_step(path: Path) -> int:
    """The step in a checkpoint's file name, by the pattern of `path_of`."""
    return int(NAME.fullmatch(path.name)[1])


def save(folder: Path, step: int, state: dict, keep: int) -> Path:
    """Writes `state` as the checkpoint of `step` and removes all but the newest `keep`."""
    path = checkpoint_path(folder, step)
    with atomic_write(path) as file:
        torch.save({"fairface": FORMAT, "step": step} | state, file)
    for old in list_checkpoints(folder)[:-keep]:
        old.unlink(missing_ok=True)
    return path


def load(path: Path, device: torch.device | str = "cpu") -> dict:
    """A checkpoint's state on `device`; nothing in it is executed. Raises FairfaceError for any other file."""
    others = [other.name for other in list_checkpoints(path.parent) if other != path]
    hint = f"; the newest other one is {others[-1]}" if others else ""
    if not path.is_file():
        raise FairfaceError(f"there is no checkpoint {path}: train first with `fairface train`{hint}")
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises half a dozen types for a foreign or cut file
        raise FairfaceError(f"{path} is not a whole checkpoint of fairface ({type(error).__name__}){hint}") from error
    if not isinstance(state, dict) or state.get("fairface") != FORMAT:
        raise FairfaceError(f"{path} is not a checkpoint that this version of fairface wrote{hint}")
    return state
