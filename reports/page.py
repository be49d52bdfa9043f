"""Builds the report: every estimate of a run on one self-contained page, with the same numbers in report.json."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import duckdb

import sql
from reports.caveats import is_foreign_labeller
from reports.comparison_page import build_comparison_page
from reports.comparison_report import ComparisonReport, gather_comparison
from reports.detector_report import DetectorReport, gather_detectors
from reports.detectors_page import build_detectors_page
from reports.estimation.detection_metrics import update_metrics
from reports.estimation.estimates import (
    choose_run,
    discard_damaged_tables,
    discard_estimates,
    has_estimates,
    write_estimates,
)
from reports.estimation.external_reference import discard_reference, keep_reference
from reports.estimation.labelled_sides import (
    LabelledSides,
    MissingLabels,
    check_labels,
    check_provenance,
    has_training_images,
)
from reports.estimation.rate_tables import discard_damaged_rates, has_rates
from reports.faces import collect_faces, contact_sheets
from reports.figures.canvas import RUN_COLOURS
from reports.figures.detector_figures import draw_tradeoffs
from reports.figures.run_figures import draw_run_figures
from reports.publish import check_own_files, publish
from reports.render import render_page
from reports.run_documents import RunDocuments
from reports.run_page import build_run_page
from reports.run_report import RunReport, gather_run
from shards.atomic_io import fingerprint
from shards.attributes import BUILT_IN, workspace_attributes
from shards.described_files import DescribedFile, check_unchanged, prediction_files, run_files, training_files
from shards.documents import (
    LabelsDocument,
    ReferenceDocument,
    RunConfig,
    SamplesDocument,
    ShardsDocument,
    changed_files,
    read_document,
)
from shards.errors import FairfaceError
from shards.locks import LockHeld, check_links, exclusive_lock, shared_lock
from shards.provenance import current_files, predictions_problem
from shards.workspace import ReportFolder, Workspace

CODE = Path(__file__).parent  # with its subfolders, the code that a page depends on; so are the SQL files
R = TypeVar("R", RunReport, ComparisonReport, DetectorReport)


@dataclass(frozen=True)
class BuildResult:
    """A page that is up to date."""

    page: Path
    rebuilt: bool  # False where the page was up to date before
    missing: list[str] = field(default_factory=list)  # of each run without estimates, the stage that is missing
    warnings: list[str] = field(default_factory=list)  # what was left out, and the command that mends it


def build(
    workspace: Workspace,
    *,
    runs: Sequence[str] = (),
    reference: Path | None = None,
    reference_only: bool = False,
    drop_reference: bool = False,
    force: bool = False,
) -> BuildResult:
    """Write the page, `report.json`, the estimates and the figures of the named runs, by default of the newest one.

    With several runs, each gets its own page below `report/runs/`, and the page in the result compares them. A page
    whose inputs have not changed is kept unless `force` is set. A run that lacks a stage still gets a page, which names
    the command to run. `reference` is a CSV of shares that those of the samples are compared with; it is copied to OUT,
    and later reports use the copy until `drop_reference` is set. With `reference_only`, it replaces the comparison with
    the training images. Detectors that are being trained, and predictions of other images, are left out. Without a run,
    the page is about the detectors alone.

    Raises FairfaceError if there is neither a run nor a detector, if labels cannot be compared, if a file that the
    numbers are derived from was changed, and if another process is writing one of them.
    """
    if not workspace.root.is_dir():
        raise FairfaceError(f"there is no folder {workspace.root}: run `fairface train` first, or name another --out")
    with ExitStack() as stack:
        stack.enter_context(exclusive_lock(workspace.report.lock, "writing it"))
        check_own_files(workspace.report)
        lost = discard_damaged_tables(workspace)
        discard_damaged_rates(workspace)
        connection = sql.connect(workspace)
        names: list[str] = []
        if runs or workspace.runs() or not any(folder.predictions.exists() for folder in workspace.detectors()):
            names = [choose_run(connection, workspace, run=run) for run in runs or (None,)]
        connection.close()
        notes: list[str] = []
        if reference:
            attributes = workspace_attributes(workspace)
            notes = keep_reference(workspace, reference, attributes=attributes, replaces_training=reference_only).notes
        elif drop_reference:
            discard_reference(workspace)
        for lock in input_locks(workspace, names):
            stack.enter_context(shared_lock(lock, "reporting on it"))
        detectors, busy = available_detectors(workspace, stack)
        if not names:
            result = build_detectors(workspace, detectors=detectors, busy=busy, force=force)
        elif len(names) == 1:
            result = build_run(workspace, names[0], folder=workspace.report, detectors=detectors, force=force)
        else:
            result = build_comparison(workspace, names, detectors=detectors, force=force)
        left_out = [reason for reason in current_files(workspace).warnings if reason not in result.missing]
        if rows := sorted(lost - set(names)):
            left_out.append(
                f"the tables in {workspace.report.folder} were damaged or incomplete, and the estimates of "
                f"{', '.join(rows)} were removed with them: run `fairface report --run {rows[0]}` again"
            )
        return replace(result, warnings=[*notes, *busy, *left_out])


def input_locks(workspace: Workspace, runs: Sequence[str]) -> list[Path]:
    """The locks of what the pages of `runs` are made from."""
    folders = [workspace.run(run) for run in runs]
    shards = workspace.shards
    sides = [(shards.lock, shards.label_files.lock), *((run.samples_lock, run.label_files.lock) for run in folders)]
    audits = [run.audit.lock for run in folders if run.audit.plan_document.exists()]
    return [*(lock for locks in sides for lock in locks), *audits]


def available_detectors(workspace: Workspace, stack: ExitStack) -> tuple[list[str], list[str]]:
    """The detectors whose metrics are up to date now, locked until the `stack` closes; and why others are left out.

    One that is being trained, perhaps for hours, must not make the report wait.
    """
    available, left_out = [], []
    for folder in workspace.detectors():
        if not folder.predictions.exists() or predictions_problem(workspace, folder):
            continue
        try:
            # the groups of faces may have changed since the metrics were written
            update_metrics(workspace, detector=folder.name)
            stack.enter_context(shared_lock(folder.lock, "reporting on it"))
        except LockHeld as error:
            left_out.append(f"detector {folder.name} is left out: {error}")
        else:
            available.append(folder.name)
    return available, left_out


def build_comparison(workspace: Workspace, names: list[str], *, detectors: list[str], force: bool) -> BuildResult:
    """Build the page that compares several runs, and the page of each run."""
    if len(set(names)) < len(names):
        raise FairfaceError("--run names a run twice")
    if len(names) > len(RUN_COLOURS):
        raise FairfaceError(f"{len(names)} runs side by side are too many to read: name at most {len(RUN_COLOURS)}")
    folder = workspace.report
    folders = [folder.run(run) for run in names]
    for run_folder in folders:
        for path in (run_folder.folder.parent, run_folder.folder):
            if path.exists():
                check_links(path)
        check_own_files(run_folder)
    results = [
        build_run(workspace, run, folder=run_folder, detectors=detectors, force=force)
        for run, run_folder in zip(names, folders, strict=True)
    ]
    missing = [message for result in results for message in result.missing]
    inputs = fingerprint([input_fingerprint(workspace, run, detectors=detectors) for run in names])
    if not force and not any(result.rebuilt for result in results):
        last = last_report(folder, ComparisonReport)
        if last and last.fingerprint == inputs:
            return BuildResult(folder.page, False, missing)
    connection = sql.connect(workspace)
    pages = [read_document(run_folder.document, RunReport) for run_folder in folders]
    attributes = workspace_attributes(workspace)
    report = gather_comparison(connection, [page for page in pages if page], attributes=attributes, fingerprint=inputs)
    files: dict[str, bytes] = {}
    page = build_comparison_page(connection, workspace, report=report, attributes=attributes, files=files)
    files[folder.page.name] = render_page("comparison.html.j2", page=page, workspace=workspace)
    publish(folder.document, report, files)
    return BuildResult(folder.page, True, missing)


def build_run(
    workspace: Workspace, run: str, *, folder: ReportFolder, detectors: list[str], force: bool
) -> BuildResult:
    """Build the page of one run in `folder`."""
    inputs = input_fingerprint(workspace, run, detectors=detectors)
    if not force:
        last = last_report(folder, RunReport)
        is_current = has_estimates(workspace, run) and has_rates(workspace, run, detectors=detectors)
        if last and last.fingerprint == inputs and is_current:
            return BuildResult(folder.page, False, [last.missing] if last.missing else [])
    check_unchanged(page_files(workspace, run, detectors=detectors))
    # read again: the page of another run may have changed the tables
    connection = sql.connect(workspace)
    documents = read_run_documents(workspace, run)
    check_manifest(run, documents)
    labelling: LabelledSides | None = None
    missing = None
    try:
        labelling = finished_labelling(workspace, connection, run)
        untrusted = [
            method
            for method in labelling.methods
            if is_foreign_labeller(labelling, synthetic=documents.synthetic, methods=[method])
        ]
        write_estimates(workspace, connection, run=run, detectors=detectors, untrusted=untrusted)
    except MissingLabels as error:
        labelling, missing = None, str(error)
        discard_estimates(workspace, connection, run=run, detectors=detectors)
    connection = sql.connect(workspace)  # the tables of estimates exist now
    attributes = workspace_attributes(workspace)
    files: dict[str, bytes] = {}
    with ThreadPoolExecutor(2) as pool:  # other threads draw and encode while this one runs the queries
        is_synthetic = bool(documents.synthetic)
        drawing = pool.submit(
            draw_run_figures, sql.connect(workspace), files, run=run, attributes=attributes, synthetic=is_synthetic
        )
        report = gather_run(
            connection,
            documents,
            run=run,
            labelling=labelling,
            missing=missing,
            detectors=detectors,
            attributes=attributes,
            fingerprint=inputs,
        )
        faces = collect_faces(connection, workspace, report=report, attributes=attributes)
        sheets = pool.submit(contact_sheets, faces)
        figures = drawing.result()
        tradeoffs = draw_tradeoffs(report, files, attributes=attributes, synthetic=is_synthetic)
        page = build_run_page(report, attributes, figures=figures, tradeoffs=tradeoffs, faces=faces)
        files |= sheets.result()
    files[folder.page.name] = render_page("run.html.j2", page=page, workspace=workspace)
    publish(folder.document, report, files)
    return BuildResult(folder.page, True, [missing] if missing else [])


def build_detectors(workspace: Workspace, *, detectors: list[str], busy: list[str], force: bool) -> BuildResult:
    """Build the page of a workspace without a run, which is about its detectors alone.

    Raises FairfaceError if there is no detector to show, with the reasons why the `busy` ones are left out.
    """
    if not detectors:
        reasons = "; ".join(busy) or "run `fairface train`, or `fairface detect`"
        raise FairfaceError(f"there is neither a run nor a detector to report on below {workspace.root}: {reasons}")
    folder, inputs = workspace.report, input_fingerprint(workspace, None, detectors=detectors)
    if not force and (last := last_report(folder, DetectorReport)) and last.fingerprint == inputs:
        return BuildResult(folder.page, False)
    check_unchanged(page_files(workspace, None, detectors=detectors))
    connection, attributes = sql.connect(workspace), workspace_attributes(workspace)
    shards = read_document(workspace.shards.document, ShardsDocument)
    report = DetectorReport(
        fingerprint=inputs,
        synthetic=shards.synthetic if shards else None,
        **gather_detectors(connection, None, detectors=detectors, attributes=attributes),
    )
    files: dict[str, bytes] = {}
    tradeoffs = draw_tradeoffs(report, files, attributes=attributes, synthetic=bool(report.synthetic))
    page = build_detectors_page(report, attributes, tradeoffs=tradeoffs)
    files[folder.page.name] = render_page("detectors.html.j2", page=page, workspace=workspace)
    publish(folder.document, report, files)
    return BuildResult(folder.page, True)


def last_report(folder: ReportFolder, kind: type[R]) -> R | None:
    """The report of the page in `folder`; None if the page or one of its figures is missing, or of another version."""
    try:
        report = read_document(folder.document, kind)
    except FairfaceError:  # it is written anew
        return None
    return report if report and not changed_files(folder.folder, report.files) else None


def page_files(workspace: Workspace, run: str | None, *, detectors: list[str]) -> list[DescribedFile]:
    """Every file that the page of a run is derived from, apart from the pictures of faces."""
    predictions = [file for name in detectors for file in prediction_files(workspace.detector(name))]
    return training_files(workspace.shards) + (run_files(workspace.run(run)) if run else []) + predictions


def read_run_documents(workspace: Workspace, run: str) -> RunDocuments:
    """The documents of a run."""
    run_folder = workspace.run(run)
    config = read_document(run_folder.config, RunConfig)
    if config is None:
        raise FairfaceError(f"{run_folder.config} is missing: train the run again with `fairface train`")
    return RunDocuments(
        config=config,
        shards=read_document(workspace.shards.document, ShardsDocument),
        samples=read_document(run_folder.samples_document, SamplesDocument),
        labels=read_document(run_folder.label_files.document, LabelsDocument),
        reference=read_document(workspace.reference_document, ReferenceDocument),
    )


def finished_labelling(workspace: Workspace, connection: duckdb.DuckDBPyConnection, run: str) -> LabelledSides:
    """The labellers of both sides. Raises MissingLabels if a side is not, or not completely, labelled."""
    check_provenance(workspace, run)
    labelling = check_labels(connection, run, has_training=has_training_images(workspace, run))
    sides = ((workspace.shards.label_files, "the training images"), (workspace.run(run).label_files, f"run {run}"))
    for files, name in sides:
        document = read_document(files.document, LabelsDocument)
        if document and document.skin_version and not document.evaluated:  # by `fairface label`, not imported
            raise MissingLabels(f"the labelling of {name} was not finished: run `fairface label --run {run}` again")
    return labelling


def check_manifest(run: str, documents: RunDocuments) -> None:
    """Raise FairfaceError if the run, or its samples, belong to other training images than the packed ones."""
    data, shards, samples = documents.config.data, documents.shards, documents.samples
    if shards and data and data.manifest != shards.manifest:
        raise FairfaceError(
            f"run {run} was trained on other shards than the current ones: train again with "
            "`fairface train`, or pack the old data again with `fairface shards`"
        )
    if shards and samples and samples.manifest not in (None, shards.manifest):
        raise FairfaceError(
            f"the samples of run {run} were generated before it continued on other images: run "
            f"`fairface sample --run {run}`, then `fairface label --run {run}`"
        )


def input_fingerprint(workspace: Workspace, run: str | None, *, detectors: list[str]) -> str:
    """A fingerprint of the page's inputs: the documents, the sizes and times of the files, and the code."""
    shards, evaluated = workspace.shards, [workspace.detector(name) for name in detectors]
    sides = [shards.label_files]
    documents = [workspace.attributes, shards.document, workspace.reference_document, workspace.reference]
    files = [shards.images, *shards.tars()]
    if run:
        run_folder = workspace.run(run)
        sides.append(run_folder.label_files)
        documents += [run_folder.config, run_folder.samples_document]
        documents += [run_folder.audit.plan_document, run_folder.audit.ratings_document]
        files += [run_folder.steps, run_folder.samples_table, *run_folder.sample_tars()]
    documents += [path for labels in sides for path in (labels.document, labels.probe_document)]
    documents += [path for folder in evaluated for path in (folder.predictions_document, folder.metrics_document)]
    files += [path for labels in sides for path in labels.all()]
    files += [path for folder in evaluated for path in (folder.predictions, *folder.tables())]
    states = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files if path.exists()]
    code = [path for path in sorted(CODE.rglob("*")) if path.suffix in (".py", ".j2")]
    code += [BUILT_IN, *sql.source_files()]
    contents = [hashlib.sha256(path.read_bytes()).hexdigest() for path in [*documents, *code] if path.exists()]
    return fingerprint([run, detectors, states, contents])
