"""Writes the report of a study: its tables, its figures, its page, and report.json with the numbers of the page."""

import io
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

import duckdb
import polars as pl

import sql
from reports.caveats import is_foreign_labeller, labelling_warnings
from reports.estimation.estimate_rows import Rows
from reports.estimation.labelled_sides import LabelledSides, MissingLabels
from reports.estimation.study.estimates import LabelledRun, estimate_run, study_tables
from reports.page import check_manifest, finished_labelling, input_locks, page_files, read_run_documents
from reports.publish import check_own_files, publish
from reports.render import render_page
from reports.run_documents import RunDocuments
from reports.study_answer import Finding, find_answers, spread_sentence, test_sentence
from reports.study_page import build_study_page
from reports.verdict import NOT_ANSWERABLE
from shards import provenance
from shards.atomic_io import write_parquet
from shards.attributes import AttributeTable, workspace_attributes
from shards.described_files import check_unchanged
from shards.documents import Document, TablesDocument, read_document
from shards.errors import FairfaceError
from shards.locks import exclusive_lock, shared_lock
from shards.study import StudyDocument, StudyRun
from shards.workspace import Workspace


@dataclass(kw_only=True)
class StudyReport(Document):
    """report.json of a study: every number and sentence of its page."""

    REDO: ClassVar[str] = StudyDocument.REPORT_AGAIN

    built: str  # ISO 8601, UTC
    study: str
    arms: list[str]
    seeds: list[int]
    synthetic: bool | None  # None if neither the runs nor the shards say so
    findings: list[Finding]  # about each arm but the first
    notes: list[str]  # about the exact test and the spread between seeds
    missing: list[str]  # the runs that are not in the estimates, with the reasons
    warnings: list[str]
    labellers: list[str]
    runs: list[StudyRun]
    estimates: Rows  # of the estimates that are used, raw or corrected
    paired: Rows
    files: dict[str, str] = field(default_factory=dict)  # the page and its figures -> SHA-256


@dataclass(frozen=True)
class StudyInputs:
    """The labelled runs of a study, and why the others are missing."""

    runs: list[LabelledRun]
    documents: list[RunDocuments]  # of these runs
    labelling: list[LabelledSides]
    missing: list[str]
    made_of: dict[str, str]  # run -> fingerprint of what its estimates were computed from


def write_study_report(workspace: Workspace, name: str) -> Path:
    """Write the tables, the figures and the page of a study from all of its labelled runs; returns the page's path.

    Runs without finished labels are left out and named on the page. Raises FairfaceError if there is no such study, if
    none of its runs is labelled, if labels can't be compared, and if another process is writing one of the files.
    """
    folder = workspace.study(name)
    document = read_document(folder.document, StudyDocument)
    if document is None:
        raise FairfaceError(f"there is no study {name!r} below {workspace.root}: run `fairface study` with its file")
    with ExitStack() as stack:
        stack.enter_context(exclusive_lock(folder.report.lock, "writing the report of the study"))
        check_own_files(folder.report)
        for lock in study_locks(workspace, document):
            stack.enter_context(shared_lock(lock, "reporting on it"))
        attributes = workspace_attributes(workspace)
        inputs = read_inputs(workspace, document, attributes)
        if not inputs.runs:
            raise FairfaceError(f"no run of study {name} is labelled yet: {'; '.join(inputs.missing)}")
        tables = study_tables(name, [arm.name for arm in document.arms], runs=inputs.runs, attributes=attributes)
        made_of = TablesDocument(made_of=inputs.made_of, files={})
        parquet = {folder.report.table(key): table for key, table in tables.items()}
        publish(
            folder.report.tables_document, made_of, {path.name: encode(path, table) for path, table in parquet.items()}
        )
        report = gather_study(document, inputs, tables=tables, attributes=attributes)
        files: dict[str, bytes] = {}
        page = build_study_page(workspace, document, report=report, attributes=attributes, files=files)
        files[folder.report.page.name] = render_page("study.html.j2", page=page, workspace=workspace)
        publish(folder.report.document, report, files)
    return folder.report.page


def study_locks(workspace: Workspace, document: StudyDocument) -> list[Path]:
    """The locks of the files that the report of a study is computed from."""
    locks = [
        lock
        for run in document.runs
        if run.status == "labelled"
        for lock in input_locks(document.workspace_of(run.arm, workspace), [run.run])
    ]
    return list(dict.fromkeys(locks))


def read_inputs(workspace: Workspace, document: StudyDocument, attributes: AttributeTable) -> StudyInputs:
    """Estimate every labelled run of a study."""
    inputs = StudyInputs([], [], [], [], {})
    connections: dict[Path, duckdb.DuckDBPyConnection] = {}
    for number, run in enumerate(document.runs):
        if run.status != "labelled":
            inputs.missing.append(missing_run(run))
            continue
        own = document.workspace_of(run.arm, workspace)
        if own.root not in connections:
            connections[own.root] = sql.connect(own)
        check_unchanged(page_files(own, run.run, detectors=[]))
        documents = read_run_documents(own, run.run)
        check_manifest(run.run, documents)
        try:
            labelling = finished_labelling(own, connections[own.root], run.run)
        except MissingLabels as error:
            inputs.missing.append(f"{describe(run)}: {error}")
            continue
        estimates = estimate_run(connections[own.root], documents.config, attributes=attributes, number=number)
        inputs.runs.append(LabelledRun(run.arm, run.seed, run.run, str(own.root.resolve()), estimates))
        inputs.documents.append(documents)
        inputs.labelling.append(labelling)
        inputs.made_of[run.run] = provenance.estimate_inputs(own, run.run) or ""
    return inputs


def missing_run(run: StudyRun) -> str:
    """Why a run is not in the estimates."""
    if run.status == "failed":
        return f"{describe(run)} failed: {run.reason or 'the reason is unknown'}"
    return f"{describe(run)} is not finished ({run.status})"


def describe(run: StudyRun) -> str:
    return f"{run.arm}, seed {run.seed}"


def gather_study(
    document: StudyDocument, inputs: StudyInputs, *, tables: dict[str, pl.DataFrame], attributes: AttributeTable
) -> StudyReport:
    """Collect every number and sentence of the page of a study."""
    arms = [arm.name for arm in document.arms]
    origins = {documents.synthetic for documents in inputs.documents}
    estimates, paired = (tables[name].filter(pl.col("used")) for name in ("estimates", "paired"))
    findings = find_answers(arms, paired, attributes)
    if any(is_foreign(*pair) for pair in zip(inputs.documents, inputs.labelling, strict=True)):
        findings = [Finding(finding.arm, NOT_ANSWERABLE.answer, []) for finding in findings]
    return StudyReport(
        built=datetime.now(UTC).isoformat(timespec="seconds"),
        study=document.name,
        arms=arms,
        seeds=document.seeds,
        synthetic=None if origins == {None} else True in origins,
        findings=findings,
        notes=[note for note in (test_sentence(paired), spread_sentence(estimates, attributes)) if note],
        missing=inputs.missing,
        warnings=list(dict.fromkeys(study_warnings(document, inputs))),
        labellers=sorted({name for labelling in inputs.labelling for name in labelling.methods.values()}),
        runs=document.runs,
        estimates=estimates.to_dicts(),
        paired=paired.to_dicts(),
    )


def is_foreign(documents: RunDocuments, labelling: LabelledSides) -> bool:
    """Whether a run's faces were labelled by a labeller for other faces: synthetic instead of real, or vice versa."""
    return is_foreign_labeller(labelling, synthetic=documents.synthetic, methods=labelling.methods)


def study_warnings(document: StudyDocument, inputs: StudyInputs) -> Iterator[str]:
    """What limits the validity of a study's numbers."""
    labelled = {run.arm for run in inputs.runs}
    for arm in document.arms:
        of_arm = [run for run in document.runs if run.arm == arm.name]
        if arm.name not in labelled:
            has_failed = all(run.status == "failed" for run in of_arm)
            yield f"No run of {arm.name} is labelled{': all of them failed' if has_failed else ''}. It is not compared."
    if len({tuple(sorted(labelling.methods.items())) for labelling in inputs.labelling}) > 1:
        yield "The runs were labelled by different labellers, so differences between runs may be due to the labellers."
    for run, documents, labelling in zip(inputs.runs, inputs.documents, inputs.labelling, strict=True):
        if documents.samples and documents.samples.is_constant:
            yield (
                f"{run.arm}, seed {run.seed}: all samples are the same image, or each has a single colour. The "
                "training has failed, and the labels mean nothing; the run is still included in the means."
            )
        is_annotated = bool(documents.shards and documents.shards.annotated)
        yield from labelling_warnings(labelling, annotated=is_annotated, is_foreign=is_foreign(documents, labelling))


def encode(path: Path, table: pl.DataFrame) -> bytes:
    """The content of a table's Parquet file."""
    data = io.BytesIO()
    write_parquet(path, table, output=data)
    return data.getvalue()
