"""The page of several runs: their figures, and its data shaped for the template `comparison.html.j2`."""

from dataclasses import dataclass
from typing import Any

import duckdb
import polars as pl
from markupsafe import Markup

import sql
from reports.comparison_report import ComparisonReport
from reports.faces import FaceReader
from reports.figures.canvas import inline_svg, save
from reports.figures.contact_sheet import contact_sheet, data_url
from reports.figures.run_shares import run_shares
from reports.formats import number, percent, points, short
from reports.run_report import RunReport
from reports.sections.provenance import HASH
from reports.sections.table import Cell, Table, expanded
from shards.attributes import AttributeTable
from shards.workspace import Workspace

PICTURED_FACES = 24  # of each run
BASELINES = {"uniform": "Distance from equal shares", "reference": "Distance from the training data"}


@dataclass(frozen=True)
class ComparedRun:
    """One run's column at the top of the page, and its lines at the bottom."""

    run: str
    name: str  # as the page prints it
    picture: str | None  # data URL
    answer: str
    explanation: list[str]  # sentences
    missing: str | None
    warnings: list[str]
    training_weights: str | None
    labelled: str | None  # how many faces, by what
    page: str  # the path of its own page, below OUT
    command: str
    device: str
    started: str
    manifest: str
    checkpoint: str | None


@dataclass(frozen=True)
class Difference:
    """One run's differences from the baseline run."""

    run: str
    name: str
    tables: list[Table]  # of each attribute


@dataclass(frozen=True)
class ComparisonPage:
    """What `comparison.html.j2` prints."""

    title: str
    synthetic: bool | None
    is_mixed: bool  # some runs were trained on synthetic faces, some on real ones
    findings: list[list[str]]  # sentences on each run
    runs: list[ComparedRun]
    labelled_runs: list[str]
    figures: list[Markup]
    baseline_run: str
    baseline_run_name: str
    differences: list[Difference]
    distances: list[Table]
    built: str


def build_comparison_page(
    connection: duckdb.DuckDBPyConnection,
    workspace: Workspace,
    *,
    report: ComparisonReport,
    attributes: AttributeTable,
    files: dict[str, bytes],
) -> ComparisonPage:
    """Shape the numbers for the template, and add the figures and the first faces of each run to the page's `files`."""
    baseline_run = report.baseline_run or ""
    labelled = [page.run for page in report.pages if page.labelling]
    return ComparisonPage(
        title=f"{len(report.runs)} runs side by side",
        synthetic=report.synthetic,
        is_mixed=bool(report.synthetic) and report.real,
        findings=report.findings,
        runs=[
            compared_run(
                page,
                workspace,
                picture=first_faces(connection, workspace, run=page.run, file=f"faces-run-{number}.png", files=files),
            )
            for number, page in enumerate(report.pages, 1)
        ],
        labelled_runs=labelled,
        figures=draw_figures(connection, files, report=report, runs=labelled, attributes=attributes),
        baseline_run=baseline_run,
        baseline_run_name=short(baseline_run, 60),
        differences=[
            Difference(run, short(run, 60), difference_tables(rows, attributes, baseline_run=baseline_run, run=run))
            for run, rows in report.differences.items()
        ],
        distances=[
            table for baseline in BASELINES if (table := distance_table(report, attributes, baseline=baseline)).rows
        ]
        if report.distances
        else [],
        built=report.built,
    )


def compared_run(page: RunReport, workspace: Workspace, *, picture: str | None) -> ComparedRun:
    """One run, from the numbers of its own page."""
    labelled = None
    if page.labelling:
        methods = short(", ".join(page.labelling.methods.values()), 200)
        labelled = f"{number(page.labelling.generated)} generated faces, labelled by {methods}"
    return ComparedRun(
        run=page.run,
        name=short(page.run, 60),
        picture=picture,
        answer=page.verdict.answer,
        explanation=page.verdict.explanation,
        missing=page.missing,
        warnings=page.warnings,
        training_weights=page.training_weights,
        labelled=labelled,
        page=short(workspace.report.run(page.run).page.relative_to(workspace.root), 300),
        command=short(page.config.command or "unknown", 1000),
        device=page.config.device or "unknown device",
        started=page.config.started or "?",
        manifest=page.config.data.manifest[:HASH] if page.config.data else "unknown",
        checkpoint=page.checkpoint_sha256[:HASH] if page.checkpoint_sha256 else None,
    )


def first_faces(
    connection: duckdb.DuckDBPyConnection, workspace: Workspace, *, run: str, file: str, files: dict[str, bytes]
) -> str | None:
    """A run's first faces as a data URL, also added to `files` under the name `file`; None if there are none."""
    images = FaceReader(connection, workspace, run).first("generated")[:PICTURED_FACES]
    if not images:
        return None
    files[file] = contact_sheet(images)
    return data_url(images)


def draw_figures(
    connection: duckdb.DuckDBPyConnection,
    files: dict[str, bytes],
    *,
    report: ComparisonReport,
    runs: list[str],
    attributes: AttributeTable,
) -> list[Markup]:
    """The shares of every attribute in all labelled `runs`, also added to the page's `files`."""
    if not runs:
        return []
    rows = pl.concat([sql.ask(connection, "comparison", run=run) for run in runs])
    figures = []
    for name, attribute in attributes.tabulated.items():
        selected, estimate = rows.filter(pl.col("attribute") == name), report.estimates[name]
        if len(selected):
            figure = run_shares(with_estimate(selected, estimate), attribute, runs=runs, estimate=estimate)
            svg = save(figure, files, f"runs-{name}", synthetic=bool(report.synthetic))
            figures.append(inline_svg(svg, f"{attribute.title}: shares that each run generates"))
    return figures


def with_estimate(rows: pl.DataFrame, estimate: str) -> pl.DataFrame:
    """Rows of `estimates` with best_share and best_reference of that estimate, whichever a run's own page uses."""
    is_own = pl.col("best_estimate") == estimate
    names = {"raw": ("share", "reference"), "audited": ("audited", "best_reference")}
    name, reference = names.get(estimate, ("corrected", "annotated"))
    shares = [
        pl.when(is_own).then(f"best_share{end}").otherwise(f"{name}{end}").alias(f"best_share{end}")
        for end in ("", "_low", "_high")
    ]
    return rows.with_columns(*shares, best_reference=pl.when(is_own).then("best_reference").otherwise(reference))


def difference_tables(
    rows: list[dict[str, Any]], attributes: AttributeTable, *, baseline_run: str, run: str
) -> list[Table]:
    """The differences of two runs, a table for each attribute."""
    columns = ["group", short(baseline_run), short(run), "difference, 95 %"]
    shown = [item for name, item in attributes.tabulated.items() if any(row["attribute"] == name for row in rows)]
    tables = []
    for attribute in shown:
        selected = [row for row in rows if row["attribute"] == attribute.name]
        estimate = selected[0]["estimate"]
        cells = [
            [
                Cell(short(row["group"], 60), css="name"),
                Cell(percent(row["share"])),
                Cell(percent(row["other_share"])),
                difference_cell(row),
            ]
            for row in selected
        ]
        is_collapsed = attribute.name not in expanded(shown)
        tables.append(Table(columns, cells, title=f"{attribute.title}, {estimate}", is_collapsed=is_collapsed))
    return tables


def difference_cell(row: dict[str, Any]) -> Cell:
    """A difference in percentage points with its interval."""
    if row["difference"] is None:
        return Cell("–")
    interval = f"{points(row['difference_low'])} to {points(row['difference_high'])}"
    return Cell(points(row["difference"]), interval, css=row["difference_verdict"])


def distance_table(report: ComparisonReport, attributes: AttributeTable, *, baseline: str) -> Table:
    """Every run's total variation from one baseline, a row for each attribute."""
    measured = {name for found in report.distances.values() for name in found[baseline]}
    names = [name for name in attributes.tabulated if name in measured]
    rows = [
        [
            Cell(attributes[name].title, css="name"),
            *(distance_cell(found[baseline].get(name)) for found in report.distances.values()),
        ]
        for name in names
    ]
    return Table(["attribute", *(short(run) for run in report.distances)], rows, title=BASELINES[baseline])


def distance_cell(row: dict[str, Any] | None) -> Cell:
    """A total variation with its interval and floor, grey where it is within the floor."""
    if row is None:
        return Cell("–")
    css = "within" if row["value"] <= row["null_floor"] else ""
    interval = f"{row['low']:.3f} to {row['high']:.3f}; floor {row['null_floor']:.3f}"
    return Cell(f"{row['value']:.3f}", interval, css=css, bold=True)
