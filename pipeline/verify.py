"""Checks everything below OUT against the checksums that were stored when it was written."""

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from shards import provenance
from shards import verify as pack_verification
from shards.atomic_io import check_regular, file_sha256, read_json
from shards.attributes import own_attributes
from shards.audit import AuditPlan, RatingsDocument
from shards.concurrency import available_cpus, map_in_order
from shards.documents import (
    AttributesDocument,
    ClassifierDocument,
    DetectorConfig,
    Document,
    FeaturesDocument,
    LabelsDocument,
    PredictionsDocument,
    ProbeDocument,
    ReferenceDocument,
    RunConfig,
    SamplesDocument,
    ShardsDocument,
    TablesDocument,
    read_document,
    samples_images_hash,
    stale_features,
    training_images_hash,
)
from shards.errors import FairfaceError
from shards.locks import LockHeld, shared_lock
from shards.study import StudyDocument
from shards.synthetic.files import read_checksums
from shards.verify import sample_tar_fault
from shards.workspace import (
    AuditFolder,
    DetectorFolder,
    FeatureFiles,
    LabelFiles,
    ReportFolder,
    RunFolder,
    StudyFolder,
    SyntheticFolder,
    TrainingFolder,
    Workspace,
    named_folders,
)

CHANGED = "was changed after it was written"
one_checkpoint_at_a_time = threading.Lock()  # each is read into memory


class Check(NamedTuple):
    """One file that is checked."""

    path: Path
    find_fault: Callable[[], str | None]  # what is wrong with it
    remedy: str  # the command that writes it again


class Area(NamedTuple):
    """Files of one folder that are written under one lock."""

    folder: Path
    lock: Path
    checks: Callable[[], Iterator[Check]]


@dataclass(frozen=True)
class VerifyResult:
    """The faults of everything below OUT, and the number of images and of other files that were checked."""

    faults: dict[Path, list[str]]  # folder -> one line for each fault
    images: int
    files: int


def verify(workspace: Workspace, *, workers: int | None = None, progress: bool = True) -> VerifyResult:
    """Find every fault below OUT. A folder that another process is writing is one fault, and is not checked.

    Finished shards are compared with images.parquet, other files with the SHA-256 in their documents; labels,
    predictions and tables are also compared with what they were made of. Raises FairfaceError if there are no files to
    check.
    """
    shards, workers = workspace.shards, workers or available_cpus()
    faults: dict[Path, list[str]] = defaultdict(list)
    checks: list[tuple[Path, Check]] = []
    images = 0
    with ExitStack() as stack:

        def hold(folder: Path, lock: Path) -> bool:
            try:
                stack.enter_context(shared_lock(lock, "verifying"))
            except LockHeld as error:
                faults[folder].append(str(error))
                return False
            return True

        packed = (shards.document, shards.images, shards.unfinished, *shards.tars_and_indices())
        if any(path.exists() for path in packed) and hold(shards.folder, shards.lock):
            try:
                found, images = pack_verification.verify(shards, workers=workers, progress=progress)
                remedy = ShardsDocument.REDO
                faults[shards.folder] += [f"{shards.folder}/{fault}: {remedy}" for fault in found]
            except FairfaceError as error:
                faults[shards.folder].append(str(error))
        for area in areas(workspace):
            if hold(area.folder, area.lock):
                checks += [(area.folder, check) for check in area.checks()]
        checks += [(workspace.root, check) for check in attribute_checks(workspace)]
        for (folder, check), fault in run_checks(checks, workers=workers, progress=progress):
            if fault:
                remedy = f": {check.remedy}" if check.remedy else ""
                faults[folder].append(f"{check.path} {fault}{remedy}")
    if not (images or checks or faults):
        raise FairfaceError(f"nothing was written to {workspace.root}: run `fairface shards` first")
    return VerifyResult({folder: lines for folder, lines in faults.items() if lines}, images, len(checks))


def run_checks(
    checks: list[tuple[Path, Check]], *, workers: int, progress: bool
) -> Iterator[tuple[tuple[Path, Check], str | None]]:
    """Yield each check with its result, in order; hashing runs in parallel, because it releases Python's lock."""
    with (
        ThreadPoolExecutor(workers) as pool,
        tqdm(total=len(checks), unit="file", desc="checking", disable=not progress, leave=False) as bar,
    ):
        for job, fault in map_in_order(pool, run_check, checks, ahead=4 * workers):
            bar.update()
            yield job, fault


def run_check(_: Path, check: Check) -> str | None:
    try:
        return check.find_fault()
    except OSError as error:
        return f"can't be read ({error.strerror})"


def areas(workspace: Workspace) -> Iterator[Area]:
    """Everything below OUT that is written under a lock of its own, except for the shards."""
    faces, shards, report = SyntheticFolder(workspace.synthetic), workspace.shards, workspace.report
    if faces.exists():
        yield Area(faces.folder, faces.lock, partial(synthetic_checks, faces))
    stale = partial(provenance.training_labels_problem, shards)
    if has_labels(shards.label_files):
        yield Area(shards.folder, shards.label_files.lock, partial(label_checks, shards.label_files, stale))
    if shards.features.folder.is_dir():
        yield feature_area(shards.features, partial(training_images_hash, shards))
    for run in map(RunFolder, named_folders(workspace.runs_folder)):
        yield Area(run.folder, run.lock, partial(training_checks, run, RunConfig))
        if run.samples_table.exists() or run.samples_document.exists():
            yield Area(run.folder, run.samples_lock, partial(sample_checks, run))
        if run.features.folder.is_dir():
            yield feature_area(run.features, partial(samples_images_hash, run))
        stale = partial(provenance.sample_labels_problem, run)
        if has_labels(run.label_files):
            yield Area(run.folder, run.label_files.lock, partial(label_checks, run.label_files, stale))
        if run.audit.plan_document.exists():
            yield Area(run.audit.folder, run.audit.lock, partial(audit_checks, run.audit))
    for detector in map(DetectorFolder, named_folders(workspace.detectors_folder)):
        yield Area(detector.folder, detector.lock, partial(detector_checks, workspace, detector))
    if report.folder.is_dir():
        yield Area(report.folder, report.lock, partial(report_checks, workspace))
    for study in workspace.studies():
        if study.report.folder.is_dir():
            yield Area(study.report.folder, study.report.lock, partial(study_checks, workspace, study))


def has_labels(files: LabelFiles) -> bool:
    return files.labels.exists() or files.document.exists()


def synthetic_checks(faces: SyntheticFolder) -> Iterator[Check]:
    """The faces and their table, by the list of their checksums."""
    remedy = "render them again with `fairface synth`, after moving changed files away"
    try:
        listed = read_checksums(faces)
    except FairfaceError as error:
        yield unreadable_check(faces.checksums, error)
        return
    if not listed:
        yield Check(faces.checksums, lambda: "is missing", remedy)
    for path, digest in listed.items():
        yield hash_check(faces.folder / path, digest, remedy)


def label_checks(files: LabelFiles, stale: Callable[[], str | None]) -> Iterator[Check]:
    """The labels of one folder of images, the probe and the classifier, and whether they are of these images."""
    yield from described_checks(files.document, LabelsDocument)
    yield from described_checks(files.probe_document, ProbeDocument)
    yield from described_checks(files.classifier_document, ClassifierDocument)
    if reason := stale():
        yield Check(files.labels, lambda: f"is out of date ({reason})", "")


def training_checks(folder: TrainingFolder, kind: type[RunConfig] | type[DetectorConfig]) -> Iterator[Check]:
    """config.json, the steps and the checkpoints of a training run."""
    listed = list(described_checks(folder.config, kind))
    yield from listed
    others = {path for path in (folder.steps, *folder.checkpoints.glob("step_*.pt")) if path.exists()}
    if not folder.config.exists() and others:
        yield Check(folder.config, lambda: "is missing", kind.REDO)
    for path in sorted(others - {check.path for check in listed}):  # of a run that has not ended
        if path == folder.steps:
            yield Check(path, partial(table_fault, path), kind.REDO)
        else:
            yield Check(path, partial(checkpoint_fault, path), "remove it: training then continues from an older one")


def sample_checks(run: RunFolder) -> Iterator[Check]:
    """The samples of a run: tars and table."""
    yield from described_checks(run.samples_document, SamplesDocument)
    if reason := provenance.samples_problem(run):
        yield Check(run.samples_table, lambda: f"can't be used ({reason})", "")
        return
    document = read_document(run.samples_document, SamplesDocument)
    for shard in document.shards if document else ():
        path = run.samples / Path(shard.name).name
        yield Check(path, partial(sample_tar_fault, path, shard.sha256), SamplesDocument.REDO)


def feature_area(files: FeatureFiles, images_hash: Callable[[], str | None]) -> Area:
    """The stored features of one folder of images, which have `images_hash`."""
    return Area(files.folder, files.lock, partial(feature_checks, files, images_hash))


def feature_checks(files: FeatureFiles, images_hash: Callable[[], str | None]) -> Iterator[Check]:
    """Every stored feature file, and whether it is of these images."""
    try:
        stale = stale_features(files, images_hash=images_hash())
    except FairfaceError:  # a damaged document of the images, which is a fault of its own
        stale = []
    remedy, parts = FeaturesDocument.REDO, set(files.parts())
    for path in files.all():
        if path in stale:
            yield Check(path, lambda: "can't be used (it is damaged, or of other images)", remedy)
        elif path in parts:
            yield hash_check(path, path.stem.rpartition("-")[2], remedy)


def audit_checks(audit: AuditFolder) -> Iterator[Check]:
    """The faces that people label, and their answers."""
    yield from described_checks(audit.plan_document, AuditPlan)
    yield from described_checks(audit.ratings_document, RatingsDocument)


def detector_checks(workspace: Workspace, detector: DetectorFolder) -> Iterator[Check]:
    """The training, the predictions and the metrics of a detector."""
    yield from training_checks(detector, DetectorConfig)
    yield from described_checks(detector.predictions_document, PredictionsDocument)
    yield from described_checks(detector.metrics_document, TablesDocument)
    for path in sorted(detector.cached_predictions.glob("*.parquet")):
        yield hash_check(path, path.stem.rpartition("-")[2], "remove it and run `fairface detect` again")
    if detector.predictions.exists() and (reason := provenance.predictions_problem(workspace, detector)):
        yield Check(detector.predictions, lambda: f"is out of date ({reason})", "")


def attribute_checks(workspace: Workspace) -> Iterator[Check]:
    """The user's own attributes: whether the copy is unchanged and can be read."""
    yield from described_checks(workspace.attributes_document, AttributesDocument)
    try:
        own_attributes(workspace)
    except FairfaceError as error:
        yield unreadable_check(workspace.attributes, error)


def report_checks(workspace: Workspace) -> Iterator[Check]:
    """The pages, their figures and tables."""
    report = workspace.report
    yield from described_checks(workspace.reference_document, ReferenceDocument)
    yield from described_checks(report.tables_document, TablesDocument)
    yield from described_checks(report.rates_document, TablesDocument)
    for folder in (report, *map(ReportFolder, named_folders(report.folder / "runs"))):
        yield from described_checks(folder.document, None)


def study_checks(workspace: Workspace, study: StudyFolder) -> Iterator[Check]:
    """The page of a study, its figures and tables."""
    report, remedy = study.report, StudyDocument.REPORT_AGAIN
    yield from described_checks(report.tables_document, TablesDocument, remedy=remedy)
    yield from described_checks(report.document, None, remedy=remedy)
    if reason := provenance.study_tables_problem(workspace, study):
        yield Check(report.table("estimates"), lambda: f"is out of date ({reason})", "")


def described_checks(path: Path, kind: type[Document] | None, *, remedy: str | None = None) -> Iterator[Check]:
    """The files that the document at `path` describes, and the document if it is damaged; nothing without one.

    The documents of pages, whose types this package does not know, have no `kind`. The `remedy` says what to do about a
    changed file; by default it is that of the document's type.
    """
    try:
        document = read_document(path, kind) if kind else read_json(path)
    except FairfaceError as error:
        yield unreadable_check(path, error)
        return
    files = document.get("files") if isinstance(document, dict) else getattr(document, "files", None)
    remedy = remedy or (kind.REDO if kind else TablesDocument.REDO)
    for name, digest in (files or {}).items():
        yield hash_check(path.parent / name, digest, remedy)


def unreadable_check(path: Path, error: FairfaceError) -> Check:
    """The check of a document that can't be read."""
    return Check(path, lambda: f"can't be used ({error})", "")


def hash_check(path: Path, digest: str, remedy: str) -> Check:
    return Check(path, partial(hash_fault, path, digest), remedy)


def hash_fault(path: Path, digest: str) -> str | None:
    if not path.is_file():
        return "is missing"
    return CHANGED if file_sha256(path) != digest else None


def table_fault(path: Path) -> str | None:
    """What is wrong with a table whose SHA-256 is not stored. PyArrow reads it: a damaged one may crash Polars."""
    from pyarrow import ArrowException, parquet

    try:
        check_regular(path)
        parquet.read_table(path)
    except (ArrowException, FairfaceError, ValueError) as error:
        return f"can't be read ({next(iter(str(error).splitlines()), error)})"
    return None


def checkpoint_fault(path: Path) -> str | None:
    """What is wrong with a checkpoint whose SHA-256 is not stored, according to the checksums in it."""
    from pipeline.training.checkpoint import find_fault

    with one_checkpoint_at_a_time:
        reason = find_fault(path)
    return f"is damaged ({reason})" if reason else None
