"""Checks that files below OUT belong together: derived files record what they were made of, and every reader compares.

Labels record their images or samples, predictions both, and the report's tables the labels. Files that were made of
anything but the present files, and files whose document is missing because their writer was killed, are left out. Only
documents are read here; other files are not hashed.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import ParamSpec

from shards.atomic_io import fingerprint, read_bytes
from shards.attributes import AttributeTable, workspace_attributes
from shards.audit import AuditPlan, RatingsDocument, stale_plan
from shards.documents import (
    DetectorConfig,
    PredictionsDocument,
    RunConfig,
    SamplesDocument,
    ShardsDocument,
    TablesDocument,
    read_document,
    samples_images_hash,
    stale_labels,
    training_images_hash,
)
from shards.errors import FairfaceError
from shards.study import StudyDocument
from shards.workspace import (
    DETECTOR_TABLES,
    REPORT_TABLES,
    STUDY_TABLES,
    DetectorFolder,
    LabelFiles,
    RunFolder,
    ShardsFolder,
    StudyFolder,
    Workspace,
)

METRICS_VERSION = 3  # of the tables of a detector's metrics: those of another version are computed again
TRAINING = ""  # the training images in TablesDocument.made_of; no run has this name
P = ParamSpec("P")


@dataclass(frozen=True)
class CurrentFiles:
    """The files of every SQL view that may be used, and the attributes that they describe."""

    attributes: AttributeTable
    files: dict[str, list[Path]]  # by view
    stale_runs: set[str]  # whose rows in the report's tables are out of date
    stale_rates: set[str]  # keys of `rates_key` whose rows in rate_estimates are out of date
    warnings: list[str]  # why files or rows were left out, and the command that writes them again


def problem(check: Callable[P, str | None]) -> Callable[P, str | None]:
    """Let a check return the message of the FairfaceError that it raises, such as that of a damaged document."""

    @wraps(check)
    def checked(*args: P.args, **kwargs: P.kwargs) -> str | None:
        try:
            return check(*args, **kwargs)
        except FairfaceError as error:
            return str(error)

    return checked


def current_files(workspace: Workspace) -> CurrentFiles:
    """`Workspace.view_files` without the files that must not be used, and why these were left out."""
    shards, report, files = workspace.shards, workspace.report, workspace.view_files()
    left_out: set[Path] = set()
    warnings: list[str] = []

    def leave_out(paths: Iterable[Path], reason: str | None) -> None:
        if reason and (existing := {path for path in paths if path.exists()} - left_out):
            left_out.update(existing)
            if reason not in warnings:
                warnings.append(reason)

    warnings += [f"{path} is left out: rename it" for path in workspace.misnamed_folders()]
    leave_out([shards.images, shards.unmatched], images_problem(shards))
    leave_out(shards.label_files.all(), training_labels_problem(shards))
    leave_out(probe_files(shards.label_files), probe_problem(shards.label_files))
    for run in map(RunFolder, _folders(files, ("runs", "samples", "labels")) - {shards.folder}):
        leave_out([run.config], config_problem(run))
        leave_out([run.samples_table], samples_problem(run))
        leave_out(run.label_files.all(), sample_labels_problem(run))
        leave_out(probe_files(run.label_files), probe_problem(run.label_files))
        leave_out([run.audit.plan, run.audit.ratings], audit_problem(workspace, run))
    for detector in map(DetectorFolder, _folders(files, ("detectors", "predictions", *DETECTOR_TABLES))):
        leave_out([detector.config], detector_problem(detector))
        leave_out([detector.predictions, *detector.tables()], predictions_problem(workspace, detector))
        leave_out(detector.tables(), metrics_problem(workspace, detector))
    tables = [report.table(name) for name in REPORT_TABLES]
    stale_runs: set[str] = set()
    if any(files[name] for name in REPORT_TABLES):
        leave_out(tables, tables_problem(workspace))
        stale_runs = stale_estimates(workspace)
        if stale_runs - {TRAINING}:
            warnings.append(
                f"the estimates of {', '.join(sorted(stale_runs - {TRAINING}))} were not computed from the present "
                "labels: run `fairface report` again"
            )
        if TRAINING in stale_runs:
            left_out.add(report.table("confusion"))
    stale = stale_rates(workspace) if files["rate_estimates"] else set()
    leave_out([report.rate_estimates], rates_problem(workspace))
    if outdated := sorted(stale - {key for key in stale if key.split("/")[0] in stale_runs}):
        warnings.append(
            f"the corrected detection rates of {', '.join(outdated)} were not computed from the present labels and "
            "predictions: run `fairface report` again"
        )
    for study in workspace.studies():
        leave_out([study.document], study_problem(study))
        leave_out([study.report.table(name) for name in STUDY_TABLES], study_tables_problem(workspace, study))
    kept = {view: [path for path in paths if path not in left_out] for view, paths in files.items()}
    return CurrentFiles(workspace_attributes(workspace), kept, stale_runs - {TRAINING}, stale, warnings)


def _folders(files: dict[str, list[Path]], views: Iterable[str]) -> set[Path]:
    return {path.parent for view in views for path in files[view]}


@problem
def images_problem(shards: ShardsFolder) -> str | None:
    """Why images.parquet must not be used; None if it may be."""
    if read_document(shards.document, ShardsDocument) is None:
        return f"the pack in {shards.folder} is not finished: run `fairface shards` again"
    return None


@problem
def config_problem(run: RunFolder) -> str | None:
    """Why a run's config.json must not be used; None if it may be, or if there is none."""
    read_document(run.config, RunConfig)
    return None


@problem
def samples_problem(run: RunFolder) -> str | None:
    """Why samples.parquet must not be used; None if it may be."""
    if read_document(run.samples_document, SamplesDocument) is None:
        return f"the samples in {run.folder} are not finished: run `fairface sample --run {run.name}` again"
    return None


@problem
def training_labels_problem(shards: ShardsFolder) -> str | None:
    """Why the labels of the training images must not be used; None if they may be, or if there are none."""
    return _labels_problem(shards.label_files, images_hash=training_images_hash(shards))


@problem
def sample_labels_problem(run: RunFolder) -> str | None:
    """Why the labels of a run's samples must not be used; None if they may be, or if there are none."""
    return _labels_problem(run.label_files, images_hash=samples_images_hash(run))


def _labels_problem(files: LabelFiles, *, images_hash: str | None) -> str | None:
    if files.labels.exists() and not files.document.exists():
        return f"the labels in {files.folder} are not finished: run `fairface label` again"
    return stale_labels(files, images_hash=images_hash)


@problem
def audit_problem(workspace: Workspace, run: RunFolder) -> str | None:
    """Why the plan of a run's audit, and the answers to it, must not be used; None if they may be."""
    plan = read_document(run.audit.plan_document, AuditPlan)
    if plan is None:
        return f"the plan in {run.audit.folder} is not finished: run `fairface audit plan --run {run.name}` again"
    ratings = read_document(run.audit.ratings_document, RatingsDocument)
    if ratings is None and run.audit.ratings.exists():
        return f"the answers in {run.audit.ratings} are not completely stored: run `fairface audit import` again"
    if ratings and ratings.plan != plan.id:
        return f"{run.audit.ratings} has answers to another plan than the current one: {ratings.REDO}"
    return stale_plan(workspace, run, plan)


def probe_files(files: LabelFiles) -> list[Path]:
    """The files that probe.json describes."""
    return [files.probe_labels, files.labellers]


def probe_problem(files: LabelFiles) -> str | None:
    """Why the probe's labels must not be used; None if they may be."""
    if files.probe_document.exists():
        return None
    return f"the labels of the probe in {files.folder} are not finished: run `fairface label` again"


@problem
def detector_problem(detector: DetectorFolder) -> str | None:
    """Why a detector's config.json must not be used; None if it may be, or if there is none."""
    read_document(detector.config, DetectorConfig)
    return None


@problem
def predictions_problem(workspace: Workspace, detector: DetectorFolder) -> str | None:
    """Why a detector's predictions must not be used; None if they may be, or if there are none."""
    document = read_document(detector.predictions_document, PredictionsDocument)
    if document is None:
        return f"the predictions in {detector.folder} are not finished: run `fairface detect` again"
    if document.manifest is not None and document.manifest != training_images_hash(workspace.shards):
        return f"the predictions in {detector.folder} are of other images than the packed ones: {document.REDO}"
    for run, samples in document.samples.items():
        if samples != samples_images_hash(workspace.run(run)):
            return (
                f"the predictions in {detector.folder} are of other samples of run {run} than the present ones: "
                f"{document.REDO}"
            )
    return None


@problem
def metrics_problem(workspace: Workspace, detector: DetectorFolder) -> str | None:
    """Why the tables that are computed from a detector's predictions must not be used; None if they may be."""
    document = read_document(detector.metrics_document, TablesDocument)
    if document and document.made_of.get(detector.name) == metrics_inputs(workspace, detector):
        return None
    return (
        f"the metrics of {detector.name} were not computed from the present predictions and labels: run `fairface "
        "report` again"
    )


def metrics_inputs(workspace: Workspace, detector: DetectorFolder) -> str:
    """A fingerprint of what a detector's metrics are computed from: its predictions, and the labels of their faces."""
    predictions = read_document(detector.predictions_document, PredictionsDocument)
    groups: list[str] = []
    if predictions and predictions.imported is None:
        runs = [workspace.run(name).label_files for name in sorted(predictions.samples)]
        groups = [training_inputs(workspace), *map(_label_inputs, runs)]
    return fingerprint([METRICS_VERSION, predictions.files if predictions else None, groups])


@problem
def tables_problem(workspace: Workspace) -> str | None:
    """Why none of the report's tables must be used; None if they may be, except for rows of `stale_estimates`."""
    if read_document(workspace.report.tables_document, TablesDocument) is None:
        return f"the tables in {workspace.report.folder} are not finished: run `fairface report` again"
    return None


def stale_estimates(workspace: Workspace) -> set[str]:
    """The runs whose rows in the report's tables were not computed from their present labels; perhaps TRAINING."""
    try:
        document = read_document(workspace.report.tables_document, TablesDocument)
    except FairfaceError:
        document = None
    return {
        run
        for run, inputs in (document.made_of if document else {}).items()
        if inputs != (estimate_inputs(workspace, run) if run else training_inputs(workspace))
    }


@problem
def rates_problem(workspace: Workspace) -> str | None:
    """Why rate_estimates.parquet must not be used; None if it may be, except for rows of `stale_rates`."""
    if read_document(workspace.report.rates_document, TablesDocument) is None:
        return f"{workspace.report.rate_estimates} is not finished: run `fairface report` again"
    return None


def rates_key(run: str, detector: str) -> str:
    """The key in TablesDocument.made_of of the rates at which a detector calls the samples of a run fake."""
    return f"{run}/{detector}"


def stale_rates(workspace: Workspace) -> set[str]:
    """The keys of the rates that were not computed from the present labels and predictions."""
    try:
        document = read_document(workspace.report.rates_document, TablesDocument)
    except FairfaceError:
        document = None
    made_of = document.made_of if document else {}
    return {key for key, inputs in made_of.items() if inputs != rate_inputs(workspace, *key.partition("/")[::2])}


def rate_inputs(workspace: Workspace, run: str, detector: str) -> str | None:
    """A fingerprint of the inputs of a run's and a detector's rates; None if one of them is missing."""
    estimates = estimate_inputs(workspace, run)
    try:
        predictions = read_document(workspace.detector(detector).predictions_document, PredictionsDocument)
    except FairfaceError:
        return None
    return fingerprint([estimates, predictions.files]) if estimates and predictions else None


@problem
def study_problem(study: StudyFolder) -> str | None:
    """Why study.json must not be used; None if it may be."""
    read_document(study.document, StudyDocument)
    return None


@problem
def study_tables_problem(workspace: Workspace, study: StudyFolder) -> str | None:
    """Why the tables of a study must not be used; None if they may be."""
    document, tables = (
        read_document(study.document, StudyDocument),
        read_document(study.report.tables_document, TablesDocument),
    )
    if document is None or tables is None:
        return f"the tables in {study.report.folder} are not finished: run `fairface study` again"
    arms = {run.run: run.arm for run in document.runs}
    for run, inputs in tables.made_of.items():
        if run not in arms or inputs != estimate_inputs(document.workspace_of(arms[run], workspace), run):
            return (
                f"the estimates of study {study.name} were not computed from the present labels of {run}: run "
                "`fairface study` again"
            )
    return None


def estimate_inputs(workspace: Workspace, name: str) -> str | None:
    """A fingerprint of what a run's estimates are computed from; None if there is no such run."""
    try:
        run = workspace.run(name)
        config = read_document(run.config, RunConfig)
    except FairfaceError:
        return None
    about = [config.options, config.data, config.classes] if config else []
    samples = [_content_hash(run.samples_document), _label_inputs(run.label_files)]
    documents = (workspace.reference_document, run.audit.plan_document, run.audit.ratings_document)
    others = [_content_hash(path) for path in documents if path.exists()]
    return fingerprint([name, about, training_inputs(workspace), samples, *others])


def training_inputs(workspace: Workspace) -> str:
    """A fingerprint of the training images, their labels and the attributes."""
    own_attributes = _content_hash(workspace.attributes) if workspace.attributes.exists() else None
    return fingerprint(
        [_content_hash(workspace.shards.document), _label_inputs(workspace.shards.label_files), own_attributes]
    )


def _label_inputs(files: LabelFiles) -> str:
    """A fingerprint of the labels of one side, by their documents, which contain the hashes of the files."""
    return fingerprint([_content_hash(files.document), _content_hash(files.probe_document)])


def _content_hash(path: Path) -> str | None:
    """The SHA-256 of a document; None if it can't be read."""
    try:
        return hashlib.sha256(read_bytes(path)).hexdigest()
    except (OSError, FairfaceError):
        return None
