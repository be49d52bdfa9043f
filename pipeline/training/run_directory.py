"""Finds runs and their checkpoints below OUT."""

from pathlib import Path

from pipeline.training import checkpoint
from shards.atomic_io import read_json
from shards.errors import FairfaceError


def folder_of(out: Path, run: str | None) -> Path:
    """The folder of a run; without a name the one started last, of those with a checkpoint or samples if
    there are any.

    Raises FairfaceError where there is none.
    """
    runs = {path.parent.name: path for path in (out / "runs").glob("*/config.json")}
    if run and run not in runs:
        known = ", ".join(sorted(runs)) or "none"
        raise FairfaceError(f"there is no run {run} in {out / 'runs'} (found: {known}): see `fairface sql runs`")
    if not runs:
        raise FairfaceError(f"there is no run in {out / 'runs'}: run `fairface train` first")
    if run:
        return runs[run].parent
    return max(runs.values(), key=lambda path: (has_checkpoint(path.parent), read_json(path)["started"], path)).parent


def has_checkpoint(folder: Path) -> bool:
    """Whether a run can be sampled from, or was."""
    return bool(checkpoint.list_checkpoints(folder / "checkpoints")) or (folder / "samples.json").exists()


def newest_checkpoint(folder: Path) -> Path:
    """A run's last checkpoint. Raises FairfaceError before the first one is saved."""
    saved = checkpoint.list_checkpoints(folder / "checkpoints")
    if not saved:
        origin = (read_json(folder / "config.json") or {}).get("checkpoint")  # of a run sampled from elsewhere
        if origin and Path(origin).is_file():
            return Path(origin)
        raise FairfaceError(f"{folder} has no checkpoint yet: run `fairface train` until it saves one")
    return saved[-1]
