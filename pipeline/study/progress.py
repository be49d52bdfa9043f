"""How far the runs of a study have come: their records, checked against the labels that these speak of."""

from collections.abc import Iterable, Mapping
from dataclasses import fields, replace

from shards.documents import LabelsDocument, read_document, samples_images_hash, stale_labels, write_document
from shards.study import STAGES, StudyArm, StudyDocument, StudyRun, StudyRunDocument
from shards.workspace import RunFolder, StudyFolder, Workspace


def find_arm(document: StudyDocument, run: StudyRun) -> StudyArm:
    """The arm of a run."""
    return next(arm for arm in document.arms if arm.name == run.arm)


def run_folder(workspace: Workspace, document: StudyDocument, run: StudyRun) -> RunFolder:
    """The folder of a run of a study."""
    return document.workspace_of(run.arm, workspace).run(run.run)


def has_started(workspace: Workspace, document: StudyDocument, run: StudyRun) -> bool:
    """Whether anything of a run exists."""
    record = workspace.study(document.name).record(run.run)
    return record.exists() or run_folder(workspace, document, run).config.exists()


def read_runs(workspace: Workspace, document: StudyDocument) -> list[StudyRun]:
    """The runs of a study as their records say.

    A run whose labels are no longer those that it ended with is pending again. Raises FairfaceError for a damaged file.
    """
    study = workspace.study(document.name)
    runs = []
    for planned in document.runs:
        record = read_document(study.record(planned.run), StudyRunDocument)
        run = planned
        if record:
            run = replace(
                planned, status=record.status, reason=record.reason, seconds=record.seconds, labels=record.labels
            )
        if run.status == "labelled" and not _has_labels(run_folder(workspace, document, run), run.labels):
            run.status = "pending"
        runs.append(run)
    return runs


def _has_labels(folder: RunFolder, fingerprint: str | None) -> bool:
    """Whether the labels of a run's present samples are those with a fingerprint."""
    files = folder.label_files
    labels = read_document(files.document, LabelsDocument)
    if labels is None or labels.fingerprint != fingerprint:
        return False
    return stale_labels(files, images_hash=samples_images_hash(folder)) is None


def labels_fingerprint(folder: RunFolder) -> str | None:
    """The fingerprint of a run's labels, as far as it has any."""
    labels = read_document(folder.label_files.document, LabelsDocument)
    return labels.fingerprint if labels else None


def write_run(study: StudyFolder, run: StudyRun) -> None:
    """Write the record of a run."""
    study.records.mkdir(parents=True, exist_ok=True)
    values = {item.name: getattr(run, item.name) for item in fields(StudyRun)}
    write_document(study.record(run.run), StudyRunDocument(**values))


def remaining_seconds(tasks: Iterable[list[StudyRun]], trained: Mapping[str, float]) -> dict[str, float | None]:
    """The seconds that each stage still needs over the runs of each task; None for a stage of unknown length.

    They are the mean over the runs that are labelled. Until there are any, a training run is expected to take the
    seconds that `trained` has for its arm, if any.
    """
    tasks = list(tasks)
    everything = [run for runs in tasks for run in runs]
    left = [[run for run in runs if run.status != "labelled"] for runs in tasks]
    seconds: dict[str, float | None] = {}
    for stage in STAGES:
        known = [run.seconds[stage] for run in everything if run.status == "labelled" and stage in run.seconds]
        if known:
            count = sum(bool(runs) if stage == "train" else len(runs) for runs in left)
            seconds[stage] = count * sum(known) / len(known)
        elif stage == "train" and trained:
            seconds[stage] = sum(
                trained[runs[0].arm] for runs, unfinished in zip(tasks, left, strict=True) if unfinished
            )
        else:
            seconds[stage] = None
    return seconds
