"""The page of a study: its figures, and its data shaped for the template `study.html.j2`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl
from markupsafe import Markup

import sql
from reports.estimation.study.estimates import STUDY_SCHEMA
from reports.faces import FaceReader
from reports.figures.canvas import group_label, inline_svg, save
from reports.figures.contact_sheet import contact_sheet, data_url
from reports.figures.study_dots import study_dots
from reports.formats import number, percent, points, short
from reports.sections.table import Cell, Table, expanded
from reports.study_answer import Finding, claimed_half_width, question
from shards.attributes import Attribute, AttributeTable
from shards.study import StudyDocument
from shards.workspace import Workspace

if TYPE_CHECKING:
    from reports.study_report import StudyReport

PICTURED_SEEDS, PICTURED_FACES = 6, 8  # at most: seeds of each arm, faces of each of these seeds
STAGES = {"train": "training", "sample": "sampling", "label": "labelling"}


@dataclass(frozen=True)
class ArmColumn:
    """The column of one arm at the top of the page."""

    name: str
    picture: str | None  # data URL: one row of faces for each seed
    caption: str  # of the picture
    options: str
    progress: str  # how many of the arm's runs are labelled


@dataclass(frozen=True)
class Comparison:
    """The differences between one arm and the first arm."""

    name: str
    distances: Table | None
    shares: list[Table]  # one for each attribute


@dataclass(frozen=True)
class StudyPage:
    """The data of the template `study.html.j2`."""

    title: str
    study: str
    synthetic: bool | None
    question: str
    findings: list[Finding]
    notes: list[str]
    missing: list[str]
    warnings: list[str]
    arms: list[ArmColumn]
    first_arm: str
    figures: list[Markup]
    comparisons: list[Comparison]
    spreads: list[Table]
    runs: Table
    costs: Table
    labellers: str
    built: str


def build_study_page(
    workspace: Workspace,
    document: StudyDocument,
    *,
    report: "StudyReport",
    attributes: AttributeTable,
    files: dict[str, bytes],
) -> StudyPage:
    """Shape the numbers for the template, and add the figures and the first faces of each arm to the page's `files`."""
    estimates = pl.DataFrame(report.estimates, schema=STUDY_SCHEMA)
    return StudyPage(
        title=f"study {short(report.study, 60)}",
        study=report.study,
        synthetic=report.synthetic,
        question=question(report.arms),
        findings=report.findings,
        notes=report.notes,
        missing=report.missing,
        warnings=report.warnings,
        arms=[
            arm_column(workspace, document, estimates, arm=arm, file=f"faces-arm-{index}.png", files=files)
            for index, arm in enumerate(report.arms, 1)
        ],
        first_arm=short(report.arms[0], 60),
        figures=draw_figures(estimates, report, attributes=attributes, files=files),
        comparisons=[compare_arm(report, arm, attributes) for arm in report.arms[1:]],
        spreads=spread_tables(estimates, report, attributes),
        runs=runs_table(document),
        costs=costs_table(document),
        labellers=short(", ".join(report.labellers), 300),
        built=report.built,
    )


def arm_column(
    workspace: Workspace,
    document: StudyDocument,
    estimates: pl.DataFrame,
    *,
    arm: str,
    file: str,
    files: dict[str, bytes],
) -> ArmColumn:
    """The column of one arm; the picture of the first faces of its first seeds is also added to `files`, as `file`."""
    labelled = estimates.filter(pl.col("seed").is_not_null(), arm=arm).select("seed", "run").unique().sort("seed")
    arm_workspace = document.workspace_of(arm, workspace)
    connection = sql.connect(arm_workspace)
    images = [
        image
        for run in labelled["run"][:PICTURED_SEEDS]
        for image in FaceReader(connection, arm_workspace, run).first("generated")[:PICTURED_FACES]
    ]
    if images:
        files[file] = contact_sheet(images)
    arm_options = next(item for item in document.arms if item.name == arm)
    options = [
        f"--{key}" if value is True else f"--{key} {value}"
        for key, value in {**arm_options.train, **arm_options.sample}.items()
    ]
    total = sum(run.arm == arm for run in document.runs)
    seeds = ", ".join(map(str, labelled["seed"][:PICTURED_SEEDS]))
    return ArmColumn(
        name=short(arm, 60),
        picture=data_url(images) if images else None,
        caption=f"The first {PICTURED_FACES} faces of each seed, not selected; one row for each of the seeds {seeds}.",
        options=short(" ".join(options), 400) or "no options",
        progress=f"{len(labelled)} of {total} runs labelled",
    )


def draw_figures(
    estimates: pl.DataFrame, report: "StudyReport", *, attributes: AttributeTable, files: dict[str, bytes]
) -> list[Markup]:
    """Figures of the distances of headline attributes and of the shares of tabulated ones; also added to `files`."""
    figures: list[Markup] = []
    synthetic = bool(report.synthetic)

    def add(rows: pl.DataFrame, labels: Mapping[str, str], *, name: str, title: str, caption: str) -> None:
        figure = study_dots(rows, labels, title=title, arms=report.arms, caption=caption)
        svg = save(figure, files, name, synthetic=synthetic)
        figures.append(inline_svg(svg, f"{title}: every seed of every arm, and the means over the seeds"))

    headlines = {item.name: short(item.title, 24) for item in attributes.headlines}
    distances = of_metric(estimates, "total_variation", "uniform").filter(pl.col("attribute").is_in(list(headlines)))
    if len(distances):
        shown = {key: label for key, label in headlines.items() if key in distances["attribute"]}
        rows = distances.with_columns(key="attribute", reference=pl.lit(None, pl.Float64))
        add(
            rows,
            shown,
            name="distances",
            title="Distance from equal shares",
            caption="dots: single seeds; lines: 95 % intervals of the means",
        )
    shares = with_reference(estimates)
    for name, attribute in attributes.tabulated.items():
        rows = shares.filter(attribute=name).with_columns(key="group")
        if len(rows):
            groups = rows["group"].unique(maintain_order=True)
            caption = f"{rows['estimate'][0]}; dots: single seeds; lines: 95 % intervals of the means; |: training data"
            labels = {group: group_label(group, attribute) for group in groups}
            add(rows, labels, name=f"arms-{name}", title=attribute.title, caption=caption)
    return figures


def of_metric(estimates: pl.DataFrame, metric: str, baseline: str | None) -> pl.DataFrame:
    """The rows of one metric."""
    return estimates.filter(pl.col("metric") == metric, pl.col("baseline").eq_missing(pl.lit(baseline, pl.String)))


def with_reference(estimates: pl.DataFrame) -> pl.DataFrame:
    """The rows of shares with a column `reference`: the share in the arm's training data, computed from the ratio."""
    keys = ["arm", "seed", "attribute", "group"]
    ratios = of_metric(estimates, "ratio", "reference").select(*keys, ratio="value")
    reference = pl.when(pl.col("ratio") > 0).then(pl.col("value") / pl.col("ratio"))
    shares = of_metric(estimates, "share", None).join(
        ratios, on=keys, how="left", nulls_equal=True, maintain_order="left"
    )
    return shares.with_columns(reference=reference)


def compare_arm(report: "StudyReport", arm: str, attributes: AttributeTable) -> Comparison:
    """The tables of the differences between an arm and the first arm."""
    rows = [row for row in report.paired if row["arm"] == arm and row["compared_with"] == report.arms[0]]
    shown = [item for name, item in attributes.tabulated.items() if any(row["attribute"] == name for row in rows)]
    distances = [
        row for row in rows if row["metric"] == "total_variation" and row["attribute"] in [item.name for item in shown]
    ]
    tables = []
    open_names = expanded(shown) if shown else set()
    for item in shown:
        shares = [row for row in rows if row["metric"] == "share" and row["attribute"] == item.name]
        tables.append(differences_table(shares, item, is_collapsed=item.name not in open_names))
    return Comparison(short(arm, 60), distances_table(distances, attributes) if distances else None, tables)


def distances_table(rows: Sequence[dict[str, Any]], attributes: AttributeTable) -> Table:
    """The differences between two arms' distances from equal shares and from the training data."""
    baselines = {"uniform": "equal shares", "reference": "training data"}
    arms = [short(rows[0][key], 16) for key in ("compared_with", "arm")]
    columns = ["attribute", "distance from", *arms, "difference, 95 %", "exact p", "seeds needed"]
    cells = [
        [
            Cell(attributes[row["attribute"]].title, css="name"),
            Cell(baselines[row["baseline"]]),
            *value_cells(row),
            difference_cell(row),
            *test_cells(row),
        ]
        for row in rows
    ]
    return Table(columns, cells, title="Total variation, in percentage points")


def differences_table(rows: Sequence[dict[str, Any]], attribute: Attribute, *, is_collapsed: bool) -> Table:
    """The differences between two arms' shares of an attribute's groups."""
    arms = [short(rows[0][key], 16) for key in ("compared_with", "arm")]
    columns = ["group", *arms, "difference, 95 %", "exact p", "seeds needed"]
    cells = [
        [Cell(short(row["group"], 60), css="name"), *value_cells(row), difference_cell(row), *test_cells(row)]
        for row in rows
    ]
    return Table(columns, cells, title=f"{attribute.title}, {rows[0]['estimate']}", is_collapsed=is_collapsed)


def value_cells(row: dict[str, Any]) -> list[Cell]:
    """The mean of each arm over the seeds that both have."""
    return [Cell(percent(row[key])) for key in ("compared_value", "value")]


def difference_cell(row: dict[str, Any]) -> Cell:
    """A mean difference with its interval; bold if it is significant."""
    if row["difference"] is None:
        return Cell("–")
    if row["low"] is None:
        return Cell(points(row["difference"]), "no interval with one seed", css="inconclusive")
    return Cell(points(row["difference"]), f"{points(row['low'])} to {points(row['high'])}", css=row["verdict"])


def test_cells(row: dict[str, Any]) -> list[Cell]:
    """The p-value of the exact test, and how many seeds would settle the difference."""
    p = "–" if row["sign_flip_p"] is None else f"{row['sign_flip_p']:.3g}"
    needed = "settled" if row["verdict"] != "inconclusive" else number(row["seeds_needed"])
    return [Cell(p), Cell(needed)]


def spread_tables(estimates: pl.DataFrame, report: "StudyReport", attributes: AttributeTable) -> list[Table]:
    """A table for each tabulated attribute of the spread between seeds, next to the interval of a single run."""
    means = of_metric(estimates, "share", None).filter(pl.col("seed").is_null(), pl.col("seeds") > 1)
    shown = [item for name, item in attributes.tabulated.items() if name in means["attribute"]]
    tables = []
    for item in shown:
        rows = means.filter(attribute=item.name)
        columns = ["group", "arm", "mean, 95 %", "SD of seeds, 95 %", "one run claims"]
        cells = [
            [
                Cell(short(row["group"], 60), css="name"),
                Cell(short(row["arm"], 24)),
                Cell(percent(row["value"]), f"{percent(row['low'])} to {percent(row['high'])}"),
                Cell(
                    share_points(row["seed_sd"]),
                    f"{share_points(row['seed_sd_low'])} to {share_points(row['seed_sd_high'])}",
                ),
                Cell(f"± {share_points(claimed_half_width(estimates, row))}"),
            ]
            for group in rows["group"].unique(maintain_order=True)
            for row in rows.filter(group=group).to_dicts()
        ]
        title = f"{item.title}, {rows['estimate'][0]}"
        tables.append(Table(columns, cells, title=title, is_collapsed=item.name not in expanded(shown)))
    return tables


def share_points(share: float | None) -> str:
    """A share, or the width of an interval, in percentage points; a dash for None."""
    return "–" if share is None else f"{100 * share:.1f}"


def runs_table(document: StudyDocument) -> Table:
    """Every run of a study, with its status and the time that its stages took."""
    cells = [
        [
            Cell(short(run.arm, 40), css="name"),
            Cell(str(run.seed)),
            Cell(
                run.status, short(run.reason, 200) if run.reason else "", css="" if run.status == "labelled" else "over"
            ),
            *(Cell(duration(run.seconds.get(stage))) for stage in STAGES),
        ]
        for run in document.runs
    ]
    is_long = len(cells) > 24
    title = f"All {len(cells)} runs" if is_long else ""
    return Table(["arm", "seed", "status", *STAGES.values()], cells, title=title, is_collapsed=is_long)


def costs_table(document: StudyDocument) -> Table:
    """The time that each arm took, over all of its runs."""
    cells = []
    for arm in document.arms:
        run_seconds = [run.seconds for run in document.runs if run.arm == arm.name]
        totals = [sum(seconds.get(stage, 0.0) for seconds in run_seconds) for stage in STAGES]
        cells.append(
            [
                Cell(short(arm.name, 40), css="name"),
                Cell(number(len(run_seconds))),
                *(Cell(duration(one)) for one in (*totals, sum(totals))),
            ]
        )
    return Table(["arm", "runs", *STAGES.values(), "total"], cells)


def duration(seconds: float | None) -> str:
    """A time as text, such as 45 s, 12 min or 3.4 h; a dash for None and for 0."""
    if not seconds:
        return "–"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
