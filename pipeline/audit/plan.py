"""Plans an audit: chooses which of a run's samples and training images people should label."""

import itertools
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import duckdb
import polars as pl

import sql
from pipeline.audit.design import Strata, by_expected_error, choose, equal_sizes, permanent_numbers, stratify
from shards.atomic_io import fingerprint, write_parquet
from shards.attributes import PROBABILITY_PREFIX, AttributeTable, workspace_attributes
from shards.audit import (
    AuditPlan,
    AuditSide,
    RatingsDocument,
    audit_lock,
    label_table_hashes,
    read_plan,
    side_label_files,
)
from shards.audit_tables import PLAN_COLUMNS
from shards.documents import (
    LabelsDocument,
    ReferenceDocument,
    SamplesDocument,
    read_document,
    samples_images_hash,
    training_images_hash,
)
from shards.errors import FairfaceError
from shards.locks import shared_lock
from shards.replacement import replace_described_files
from shards.workspace import AuditFolder, RunFolder, Workspace
from sql.definitions import labelled_parts

FULLY_ANNOTATED = 0.98  # share of the training images above which people need not label them


@dataclass(frozen=True)
class PlanConfig:
    """The options of a plan."""

    labels: int = 300  # faces
    attributes: tuple[str, ...] = ()  # asked about each face; empty: those that the verdict needs
    raters: int = 1  # people who are expected to label every face
    design: str = "stratified"  # one of DESIGNS
    seed: int = 0
    force: bool = False  # replace another plan, and the answers to it


@dataclass(frozen=True)
class PlanResult:
    """The plan of a run."""

    folder: AuditFolder
    plan: AuditPlan
    population: dict[str, pl.DataFrame]  # by source: the table of `choose_faces`
    unchanged: bool = False  # whether the same plan existed before


def plan_audit(workspace: Workspace, connection: duckdb.DuckDBPyConnection, run: str, config: PlanConfig) -> PlanResult:
    """Choose the faces of `run` that people should label, and write the plan.

    The plan is a function of the options, the seed and the labels. Half of the faces are training images if the samples
    are compared with training images that are not annotated. Raises FairfaceError for a run without samples or labels,
    for attributes that have no labels, for more faces than there are, and if another plan already exists.
    """
    folder = workspace.run(run)
    samples = read_document(folder.samples_document, SamplesDocument)
    if samples is None:
        raise FairfaceError(f"run {run} has no samples: run `fairface sample --run {run}` first")
    audit = folder.audit
    with plan_locks(workspace, folder):
        attributes = workspace_attributes(workspace)
        names = choose_attributes(connection, attributes, config.attributes, run=run)
        selected = dict(sql.select(connection, "from run_methods($run)", {"run": run}).iter_rows())
        methods = {name: selected[name] for name in names}
        labels = {"generated": read_labels(connection, "generated", methods, run=run)}
        if asked := unannotated_attributes(workspace, connection, methods):
            labels["train"] = read_labels(connection, "train", {name: methods[name] for name in asked}, run=run)
        plan = AuditPlan(
            id="",
            run=run,
            attributes=names,
            classes={name: list(attributes[name].names) for name in names},
            labels=[config.labels],
            raters=0,
            design=config.design,
            seed=config.seed,
            methods=methods,
            sides={source: describe_side(workspace, folder, source, table) for source, table in labels.items()},
            files={},
        )
        plan.id, plan.raters = fingerprint(asdict(plan)), config.raters
        old = None if config.force else read_document(audit.plan_document, AuditPlan)
        if old and (old.id, old.raters) != (plan.id, plan.raters):
            raise FairfaceError(
                f"{audit.folder} has another plan: add faces to it with --extend, or replace it and its answers with "
                "--force"
            )
        if old:
            return PlanResult(audit, old, choose_faces(old, labels), unchanged=True)
        return write_plan(audit, plan, labels, obsolete=obsolete_files(audit, plan, force=config.force))


def obsolete_files(audit: AuditFolder, plan: AuditPlan, *, force: bool) -> list[Path]:
    """The files that a new plan makes obsolete; not the answers that a killed extension of this plan left without it.

    Raises FairfaceError for answers to another plan without `force`.
    """
    answers = None if force else read_document(audit.ratings_document, RatingsDocument)
    if answers and answers.plan != plan.id:
        raise FairfaceError(
            f"{audit.folder} has answers to a plan that is missing: make it again with the same options, or remove the "
            "answers with --force"
        )
    return [audit.page] if answers else [audit.page, audit.ratings_document, audit.ratings]


def extend_plan(workspace: Workspace, connection: duckdb.DuckDBPyConnection, run: str, count: int) -> PlanResult:
    """Add `count` faces to the plan of a run; the earlier faces, and the answers to them, stay.

    Raises FairfaceError as `read_plan` does, for more faces than there are, and if the labels changed, because strata
    and probabilities depend on them.
    """
    folder = workspace.run(run)
    with plan_locks(workspace, folder):
        plan = read_plan(workspace, folder)
        labels = {}
        for source, side in plan.sides.items():
            if label_table_hashes(side_label_files(workspace, folder, source)) != side.label_tables:
                raise FairfaceError(
                    f"the labels changed after the plan in {folder.audit.folder} was made: answers to it can still be "
                    "imported, but more faces need a new plan (`fairface audit plan --force`)"
                )
            methods = {name: plan.methods[name] for name in side.attributes}
            labels[source] = read_labels(connection, source, methods, run=run)
        plan.labels.append(count)
        return write_plan(folder.audit, plan, labels, obsolete=[folder.audit.page])


def plan_locks(workspace: Workspace, folder: RunFolder) -> ExitStack:
    """Lock the plan, and keep samples and labels from being replaced."""
    with ExitStack() as stack:
        for lock in (folder.samples_lock, folder.label_files.lock, workspace.shards.label_files.lock):
            stack.enter_context(shared_lock(lock, "planning the audit"))
        stack.enter_context(audit_lock(folder, "planning the audit"))
        return stack.pop_all()


def choose_attributes(
    connection: duckdb.DuckDBPyConnection, attributes: AttributeTable, names: Sequence[str], *, run: str
) -> list[str]:
    """The attributes that people are asked about, in their usual order: `names`, or by default those of the verdict.

    Raises FairfaceError for an attribute that is unknown, derived from others, or without labels.
    """
    text = """select distinct attribute from labels_long join run_methods($run) using (attribute, method)
        where source = 'generated' and run = $run"""
    labelled = set(sql.select(connection, text, {"run": run})["attribute"])
    available = [name for name in attributes.labelled if name in labelled]
    if not available:
        raise FairfaceError(f"the samples of run {run} have no labels: run `fairface label --run {run}` first")
    for name in names:
        if name in attributes and not attributes[name].is_labelled:
            parts = " and ".join(sorted(labelled_parts(attributes[name], attributes)))
            raise FairfaceError(f"--attribute {name}: it is derived from {parts}: name {parts} instead")
        if name not in available:
            raise FairfaceError(f"--attribute {name}: the samples only have labels of {', '.join(available)}")
    needed = {part for item in attributes.headlines for part in labelled_parts(item, attributes)}
    chosen = names or [name for name in available if name in needed] or available
    return [name for name in available if name in chosen]


def unannotated_attributes(
    workspace: Workspace, connection: duckdb.DuckDBPyConnection, methods: Mapping[str, str]
) -> list[str]:
    """The attributes of `methods` that people should also label on training images.

    The list is empty if the samples are compared with something else, or if the training images lack labels of one of
    the methods.
    """
    reference = read_document(workspace.reference_document, ReferenceDocument)
    labelled_by = sql.select(connection, "select distinct method from labels where source = 'train'")["method"]
    if (reference and reference.replaces_training) or not set(methods.values()) <= set(labelled_by):
        return []
    shares = ", ".join(f"count({sql.identifier(name)}) / count(*) as {sql.identifier(name)}" for name in methods)
    annotated = sql.select(connection, f"select {shares} from images where status = 'packed'").row(0, named=True)
    return [name for name, share in annotated.items() if share < FULLY_ANNOTATED]


def read_labels(
    connection: duckdb.DuckDBPyConnection, source: str, methods: Mapping[str, str], *, run: str
) -> pl.DataFrame:
    """The key of each face and, for each attribute, its label and confidence `p_<attribute>`; sorted by key.

    Labels are text, null for unsure; unknown confidences are null. `methods` has the labelling method of each
    attribute; faces that one of them did not label are left out.
    """
    columns, tables = "", ""
    for number, (attribute, method) in enumerate(methods.items()):
        label, probabilities = sql.identifier(attribute), sql.identifier(PROBABILITY_PREFIX + attribute)
        columns += f", {label}::varchar as {label}, list_max({probabilities}) as {probabilities}"
        tables += f"""{" join" if number else ""} (select key, {label}, {probabilities} from labels
            where source = $source and method = {sql.quote(method)} and (source = 'train' or run = $run))
            {" using (key)" if number else ""}"""
    text = f"select key{columns} from {tables} order by key"
    return sql.select(connection, text, {"source": source, "run": run})


def describe_side(workspace: Workspace, folder: RunFolder, source: str, labels: pl.DataFrame) -> AuditSide:
    """One side of a plan before any face is chosen; `labels` are those of `read_labels`."""
    files = side_label_files(workspace, folder, source)
    document = read_document(files.document, LabelsDocument)
    return AuditSide(
        attributes=labels.columns[1::2],
        population=len(labels),
        images=document.images if document else 0,
        images_hash=training_images_hash(workspace.shards) if source == "train" else samples_images_hash(folder),
        label_tables=label_table_hashes(files),
        faces=[],
    )


def write_plan(
    audit: AuditFolder, plan: AuditPlan, labels: Mapping[str, pl.DataFrame], *, obsolete: Sequence[Path]
) -> PlanResult:
    """Choose the faces of a plan from the `labels` of each side, write it, and remove the files `obsolete`."""
    population = choose_faces(plan, labels)
    chosen = [table.with_columns(source=pl.lit(source)) for source, table in population.items()]
    faces = pl.concat(chosen, how="diagonal").filter(pl.col("round") >= 0)
    # in random order, so that a face's position reveals neither its side nor its stratum
    faces = faces.sort("round", "number").with_row_index("face").select(*PLAN_COLUMNS)
    faces = faces.cast(PLAN_COLUMNS)  # type: ignore[arg-type]
    for source, side in plan.sides.items():
        counts = faces.filter(source=source)["round"].value_counts()
        side.faces = [dict(counts.iter_rows()).get(number, 0) for number in range(len(plan.labels))]

    def describe(files: dict[str, str]) -> AuditPlan:
        plan.files = files
        return plan

    replace_described_files(
        audit.plan_document,
        {audit.plan: lambda file: write_parquet(audit.plan, faces, output=file)},
        describe=describe,
        obsolete=obsolete,
    )
    return PlanResult(audit, plan, population)


def choose_faces(plan: AuditPlan, labels: Mapping[str, pl.DataFrame]) -> dict[str, pl.DataFrame]:
    """The `labels` of each side with the stratum, round (-1: not chosen), probability and random number of every face.

    The sides share the faces of a plan equally. Raises FairfaceError if a side has too few.
    """
    return {source: choose_side(plan, source, labels[source], place=place) for place, source in enumerate(labels)}


def choose_side(plan: AuditPlan, source: str, labels: pl.DataFrame, *, place: int) -> pl.DataFrame:
    """One side of `choose_faces`; if the number of faces is odd, the side at `place` 0 has one more."""
    sides = len(plan.sides)
    totals = [(total + sides - 1 - place) // sides for total in itertools.accumulate(plan.labels)]
    if totals[-1] > len(labels):
        name = "training images" if source == "train" else "samples"
        raise FairfaceError(
            f"{totals[-1]:,} faces can't be chosen from {len(labels):,} labelled {name}: use fewer --labels"
        )
    strata = make_strata(plan, labels, count=totals[0])
    numbers = permanent_numbers(labels["key"].to_list(), seed=plan.seed, source=source)
    choice = choose(strata, numbers, totals)
    return labels.with_columns(
        stratum=pl.Series(strata.names, dtype=pl.String).gather(strata.index),
        round=pl.Series(choice.rounds),
        probability=pl.Series(choice.probabilities),
        number=pl.Series(numbers),
    )


def make_strata(plan: AuditPlan, labels: pl.DataFrame, *, count: int) -> Strata:
    """The strata of a plan's design, if its first round chooses `count` faces."""
    if plan.design == "uniform":
        return equal_sizes(len(labels))
    attributes = labels.columns[1::2]
    if plan.design == "stratified":
        return stratify(labels, attributes, count=count)
    for name in attributes:
        if labels[PROBABILITY_PREFIX + name].null_count():
            raise FairfaceError(
                f"--design active needs the labeller's probabilities, and its labels of {name} have none: use --design "
                "stratified"
            )
    return by_expected_error(labels, attributes)
