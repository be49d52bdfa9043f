"""The documents of a study: study.json, and one record for each run."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from shards.documents import Document
from shards.workspace import Workspace

STAGES = ("train", "sample", "label")  # of a run, in their order
DONE = {"train": "trained", "sample": "sampled", "label": "labelled"}  # stage -> status of a run after it


@dataclass(kw_only=True)
class StudyArm:
    """A set of options that is trained with every seed; options are named as on the command line, without dashes."""

    name: str
    train: dict[str, Any]  # options of `fairface train`: those of all arms and the arm's own
    sample: dict[str, Any]  # options of `fairface sample`, likewise
    out: str | None = None  # another folder OUT, with the arm's shards and runs; None: that of the study


@dataclass(kw_only=True)
class StudyRun:
    """The run of one arm with one seed, and its progress."""

    arm: str
    seed: int
    run: str  # name of the run's folder
    trained_run: str  # the run whose checkpoint is sampled: `run` itself, unless arms share a training run
    status: str = "pending"  # pending, trained, sampled, labelled, failed
    reason: str | None = None  # of a failure, one line
    seconds: dict[str, float] = field(
        default_factory=dict
    )  # by stage; those of a shared training run are in `trained_run` only
    labels: str | None = None  # fingerprint of labels.json, once it is written


@dataclass(kw_only=True)
class StudyDocument(Document):
    """study.json: what a study compares, and the progress of its runs."""

    REDO: ClassVar[str] = "remove it, and run the study again: finished runs are kept"
    REPORT_AGAIN: ClassVar[str] = "run the study again with `fairface study`"  # remedy for a changed table or page

    name: str
    seeds: list[int]
    samples: int  # of each run
    arms: list[StudyArm]
    label: dict[str, Any]  # options of `fairface label`
    files: dict[str, str]  # SHA-256 of each file that an option names, by path
    runs: list[StudyRun]  # by seed, then by arm

    def workspace_of(self, arm: str, workspace: Workspace) -> Workspace:
        """The workspace of an arm's shards and runs: that of the study, unless the arm has another."""
        out = next(item.out for item in self.arms if item.name == arm)
        return workspace if out is None else Workspace(Path(out))


@dataclass(kw_only=True)
class StudyRunDocument(StudyRun, Document):
    """The record of one run. The process that executes the run writes it, so that runs can be executed in parallel."""

    REDO: ClassVar[str] = "remove it, and run the study again: finished stages are kept"
