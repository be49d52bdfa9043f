"""Builds the report: every estimate of a run on one self-contained page, with the same numbers in report.json."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import duckdb

import sql
from reports.comparison_page import build_comparison_page
from reports.comparison_report import ComparisonReport, gather_comparison
from reports.estimation.detection_metrics import update_all_metrics
from reports.estimation.estimates import choose_run, discard_estimates, write_estimates
from reports.estimation.labelled_sides import LabelledSides, MissingLabels, check_labels
from reports.faces import collect_faces, save_contact_sheets
from reports.figures.canvas import RUN_COLOURS
from reports.figures.run_figures import draw_run_figures
from reports.render import write_page
from reports.run_page import build_run_page
from reports.run_report import RunDocuments, RunReport, gather_run
from shards.atomic_io import exclusive_lock, fingerprint, is_complete_parquet
from shards.documents import (
    LabelsDocument,
    RunConfig,
    SamplesDocument,
    ShardsDocument,
    read_document,
    write_document,
)
from shards.errors import FairfaceError
from shards.workspace import REPORT_TABLES, ReportFolder, Workspace

CODE = Path(__file__).parent  # with its subfolders, the code that a page depends on; so are the SQL files
R = TypeVar("R", RunReport, ComparisonReport)


@dataclass(frozen=True)
class BuildResult:
    """A page that is up to date."""

    page: Path
    rebuilt: bool  # False where the page was up to date before
    missing: list[str] = field(default_factory=list)  # of each run without estimates, the stage that is missing


def build(workspace: Workspace, *, runs: Sequence[str] = (), force: bool = False) -> BuildResult:
    """Write the page, `report.json`, the estimates and the figures of the named runs, by default of the newest one.

    With several runs, each gets its own page below `report/runs/`, and the page in the result compares them. A page
    whose inputs have not changed is kept unless `force` is set. A run that lacks a stage still gets a page, which names
    the command to run. Raises FairfaceError if there is no run, or if labels cannot be compared.
    """
    if not workspace.root.is_dir():
        raise FairfaceError(f"there is no folder {workspace.root}: run `fairface train` first, or name another --out")
    with exclusive_lock(workspace.report.folder, "writing it"):
        update_all_metrics(workspace)  # the groups of faces may have changed since the metrics were written
        connection = sql.connect(workspace)
        names = [choose_run(connection, workspace, run=run) for run in runs or (None,)]
        if len(names) == 1:
            return build_run(workspace, names[0], folder=workspace.report, force=force)
        return build_comparison(workspace, names, force=force)


def build_comparison(workspace: Workspace, names: list[str], *, force: bool) -> BuildResult:
    """Build the page that compares several runs, and the page of each run."""
    if len(set(names)) < len(names):
        raise FairfaceError("--run names a run twice")
    if len(names) > len(RUN_COLOURS):
        raise FairfaceError(f"{len(names)} runs side by side are too many to read: name at most {len(RUN_COLOURS)}")
    folder = workspace.report
    results = [build_run(workspace, run, folder=folder.run(run), force=force) for run in names]
    missing = [message for result in results for message in result.missing]
    inputs = fingerprint([input_fingerprint(workspace, run) for run in names])
    if not force and not any(result.rebuilt for result in results):
        last = last_report(folder, ComparisonReport)
        if last and last.fingerprint == inputs:
            return BuildResult(folder.page, False, missing)
    connection = sql.connect(workspace)
    pages = [read_document(folder.run(run).document, RunReport) for run in names]
    report = gather_comparison(connection, [page for page in pages if page], fingerprint=inputs)
    remove_figures(folder)
    page = build_comparison_page(connection, workspace, report)
    write_page(folder, "comparison.html.j2", page=page, workspace=workspace)
    write_document(folder.document, report)
    return BuildResult(folder.page, True, missing)


def build_run(workspace: Workspace, run: str, *, folder: ReportFolder, force: bool) -> BuildResult:
    """Build the page of one run in `folder`."""
    # read again: the page of another run may have changed the tables
    inputs, connection = input_fingerprint(workspace, run), sql.connect(workspace)
    if not force:
        last = last_report(folder, RunReport)
        if last and last.fingerprint == inputs and has_estimates(workspace, connection, last):
            return BuildResult(folder.page, False, [last.missing] if last.missing else [])
    documents = read_run_documents(workspace, run)
    check_manifest(run, documents)
    labelling: LabelledSides | None = None
    missing = None
    try:
        labelling = finished_labelling(workspace, connection, run)
        write_estimates(workspace, connection, run=run)
    except MissingLabels as error:
        labelling, missing = None, str(error)
        discard_estimates(workspace, connection, run=run)
    connection = sql.connect(workspace)  # the tables of estimates exist now
    report = gather_run(connection, documents, run=run, labelling=labelling, missing=missing, fingerprint=inputs)
    remove_figures(folder)
    figures = draw_run_figures(connection, folder, run=run, synthetic=bool(report.synthetic))
    faces = collect_faces(connection, workspace, report)
    save_contact_sheets(faces, folder)
    write_page(folder, "run.html.j2", page=build_run_page(report, figures, faces), workspace=workspace)
    write_document(folder.document, report)
    return BuildResult(folder.page, True, [missing] if missing else [])


def last_report(folder: ReportFolder, kind: type[R]) -> R | None:
    """The report of the page in `folder`; None if there is no page, or one of another version or kind."""
    if not folder.page.exists():
        return None
    try:
        return read_document(folder.document, kind)
    except FairfaceError:  # it is written anew
        return None


def has_estimates(workspace: Workspace, connection: duckdb.DuckDBPyConnection, last: RunReport) -> bool:
    """Whether the tables still contain the estimates on a run's last page: the pages of other runs write them, too."""
    if not all(is_complete_parquet(workspace.report.table(name)) for name in REPORT_TABLES):
        return False
    rows = sql.select(connection, "select count(*) as n from estimates where run = $run", {"run": last.run})
    return bool(rows["n"][0]) != bool(last.missing)


def remove_figures(folder: ReportFolder) -> None:
    """Remove the figures of the previous page: they may be another run's."""
    for path in folder.figures():
        path.unlink()


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
    )


def finished_labelling(workspace: Workspace, connection: duckdb.DuckDBPyConnection, run: str) -> LabelledSides:
    """The labellers of both sides. Raises MissingLabels if a side is not, or not completely, labelled."""
    labelling = check_labels(connection, run)
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
    if shards and samples and samples.manifest != shards.manifest:
        raise FairfaceError(
            f"the samples of run {run} were generated before it continued on other images: run "
            f"`fairface sample --run {run}`, then `fairface label --run {run}`"
        )


def input_fingerprint(workspace: Workspace, run: str) -> str:
    """A fingerprint of the page's inputs: the sizes and times of the files, and the code."""
    shards, run_folder = workspace.shards, workspace.run(run)
    files = [shards.images, shards.document, *shards.label_files.all()]
    files += [run_folder.config, run_folder.steps, run_folder.samples_document, run_folder.samples_table]
    files += run_folder.label_files.all()
    files += [detector.detection_metrics for detector in workspace.detectors()]
    files += [*shards.tars(), *run_folder.sample_tars()]
    states = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files if path.exists()]
    code = [path for path in sorted(CODE.rglob("*")) if path.suffix in (".py", ".j2")] + list(sql.source_files())
    return fingerprint([run, states, [hashlib.sha256(path.read_bytes()).hexdigest() for path in code]])
