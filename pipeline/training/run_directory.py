"""Finds runs of the DCGAN and their checkpoints below OUT."""

import sys
from pathlib import Path

from pipeline.training import checkpoint
from shards import distributed
from shards.documents import RunConfig, read_document
from shards.errors import FairfaceError
from shards.workspace import RunFolder, Workspace


def find_run(workspace: Workspace, name: str | None, *, with_generator: bool = False) -> RunFolder:
    """Find the folder of the run `name`, or of the newest run if the name is None.

    The newest run is the one that was started last, among those with a checkpoint or samples if there are any; with
    `with_generator`, not one whose samples were imported. Runs with an unreadable config.json are passed over with a
    warning. Raises FairfaceError if there is no such run.
    """
    runs = {folder.name: folder for folder in workspace.runs()}
    if name and name not in runs:
        known = ", ".join(sorted(runs)) or "none"
        raise FairfaceError(
            f"there is no run {name} in {workspace.runs_folder} (existing runs: {known}): see `fairface sql runs`"
        )
    if not runs:
        raise FairfaceError(f"there is no run in {workspace.runs_folder}: run `fairface train` first")
    if name:
        return runs[name]
    started, faults = {}, []
    for folder in runs.values():
        try:
            config = read_run(folder)
            if config.source is None or not with_generator:
                started[folder] = config.started
        except FairfaceError as error:
            faults.append(error)
    if not started:
        raise (
            faults[0]
            if faults
            else FairfaceError(
                f"every run in {workspace.runs_folder} has imported samples and no generator: run `fairface train`"
            )
        )
    for fault in faults:
        if distributed.rank() == 0:
            print(f"Warning: {fault}", file=sys.stderr)
    return max(started, key=lambda folder: (can_sample(folder), started[folder], folder.config))


def read_run(folder: RunFolder) -> RunConfig:
    """Read the config.json of a run. Raises FairfaceError if there is none, or if it has another version."""
    config = read_document(folder.config, RunConfig)
    if config is None:
        raise FairfaceError(f"there is no run in {folder.folder}: run `fairface train` first")
    return config


def can_sample(folder: RunFolder) -> bool:
    """Whether a run has a checkpoint to sample from, or samples already."""
    return bool(checkpoint.list_checkpoints(folder.checkpoints)) or folder.samples_document.exists()


def newest_checkpoint(folder: RunFolder) -> Path:
    """A run's last checkpoint. Raises FairfaceError before the first one is saved."""
    if checkpoints := checkpoint.list_checkpoints(folder.checkpoints):
        return checkpoints[-1]
    config = read_document(folder.config, RunConfig)
    if config and config.source:
        raise FairfaceError(
            f"{folder.folder} has no checkpoint: its samples are from {config.source}; import others with --from"
        )
    if config and config.checkpoint and Path(config.checkpoint).is_file():  # a checkpoint that was trained elsewhere
        return Path(config.checkpoint)
    raise FairfaceError(f"{folder.folder} has no checkpoint yet: run `fairface train` until it saves one")
