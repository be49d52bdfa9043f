"""Imports the answers of an audit: CSV files that raters saved from the page."""

import csv
import io
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import polars as pl

from shards.atomic_io import read_bytes, read_parquet, write_parquet
from shards.audit import ANSWER_COLUMNS, CANNOT_TELL, AuditPlan, RaterFile, RatingsDocument, audit_lock, read_plan
from shards.audit_tables import RATING_COLUMNS, read_plan_table, read_ratings
from shards.csv_output import unescape_formulas
from shards.documents import read_document
from shards.errors import FairfaceError
from shards.replacement import replace_described_files
from shards.workspace import AuditFolder, Workspace

MAX_BYTES = 1 << 26  # of a file: more than 100,000 answers
MAX_RATER = 100  # characters


@dataclass(frozen=True)
class Answers:
    """A rater's file, checked without a plan: `table` has the columns of ANSWER_COLUMNS as text."""

    path: Path
    sha256: str
    plan: str
    run: str
    rater: str
    table: pl.DataFrame


@dataclass(frozen=True)
class ImportResult:
    """The answers to a plan after an import."""

    plan: AuditPlan
    ratings: pl.DataFrame  # of all raters, with the columns of RATING_COLUMNS
    imported: list[str]  # raters whose answers are new


def import_ratings(
    workspace: Workspace, files: Sequence[Path], *, run: str | None = None, replace: bool = False
) -> ImportResult:
    """Add the answers in raters' CSV files to those of a run, by default the run named in the files.

    A file that was imported before is skipped; earlier answers of a rater are replaced only with `replace`. Raises
    FairfaceError, and imports nothing, if one of the files is not a complete file of answers to the run's plan.
    """
    all_answers = [read_answers(path) for path in files]
    folder = workspace.run(run or all_answers[0].run)
    read_plan(workspace, folder)  # without a plan, the lock would create a folder
    with audit_lock(folder, "importing answers"):
        plan = read_plan(workspace, folder)
        faces = read_plan_table(folder.audit, plan)
        document = read_document(folder.audit.ratings_document, RatingsDocument)
        old = read_ratings(folder.audit, plan) if document else interrupted_ratings(folder.audit, faces)
        raters = dict(document.raters) if document else described_raters(old)
        new_answers = [answers for answers in all_answers if not is_imported(answers, raters)]
        replaced = replaced_raters(new_answers, raters, replace=replace or document is None)
        tables = [match_answers(answers, plan, faces) for answers in new_answers]
        if not new_answers:
            return ImportResult(plan, old, [])
        ratings = pl.concat([old.filter(~pl.col("rater").is_in(replaced)), *tables]).sort("rater", maintain_order=True)
        for name in replaced:
            del raters[name]
        for answers in new_answers:
            raters[answers.rater] = RaterFile(name=answers.path.name, sha256=answers.sha256, answers=len(answers.table))
        replace_described_files(
            folder.audit.ratings_document,
            {folder.audit.ratings: lambda file: write_parquet(folder.audit.ratings, ratings, output=file)},
            describe=lambda hashes: RatingsDocument(plan=plan.id, raters=dict(sorted(raters.items())), files=hashes),
        )
    return ImportResult(plan, ratings, [answers.rater for answers in new_answers])


def interrupted_ratings(audit: AuditFolder, faces: pl.DataFrame) -> pl.DataFrame:
    """The answers that a killed import left without a document; none if they are about other faces than a plan's."""
    nothing = pl.DataFrame(schema=RATING_COLUMNS)
    if not audit.ratings.exists():
        return nothing
    ratings = read_parquet(audit.ratings, RATING_COLUMNS)
    return nothing if len(ratings.join(faces, on=["source", "key"], how="anti")) else ratings


def described_raters(ratings: pl.DataFrame) -> dict[str, RaterFile]:
    """The raters of a table without a document; the digests of their files are unknown."""
    counts = ratings.group_by("rater", "file").len()
    return {rater: RaterFile(name=file, sha256="", answers=count) for rater, file, count in counts.iter_rows()}


def replaced_raters(new_answers: Sequence[Answers], raters: Mapping[str, RaterFile], *, replace: bool) -> list[str]:
    """The raters whose imported answers are replaced by new ones.

    Raises FairfaceError if there are any without `replace`, and for two files of the same rater.
    """
    known = {rater_key(name): name for name in raters}
    seen: dict[str, Path] = {}
    for answers in new_answers:
        key = rater_key(answers.rater)
        if key in seen:
            raise FairfaceError(f"{answers.path} and {seen[key]} both have answers of {answers.rater}: import only one")
        if key in known and not replace:
            raise FairfaceError(
                f"{answers.path}: other answers of {answers.rater} were imported before: replace them with --replace"
            )
        seen[key] = answers.path
    return [known[key] for key in seen if key in known]


def rater_key(rater: str) -> str:
    """The key of a rater's name; names that differ only in capitals, spaces or the encoding of accents are the same."""
    return " ".join(unicodedata.normalize("NFC", rater).casefold().split())


def is_imported(answers: Answers, raters: dict[str, RaterFile]) -> bool:
    """Whether exactly this file was imported before."""
    return answers.rater in raters and raters[answers.rater].sha256 == answers.sha256


def read_answers(path: Path) -> Answers:
    """Read a rater's CSV, and check what can be checked without the plan.

    Raises FairfaceError for anything but a complete file of one rater's answers to one plan.
    """
    try:
        content = read_bytes(path, limit=MAX_BYTES)
    except FileNotFoundError as error:
        raise FairfaceError(f"{path}: there is no such file") from error
    try:
        rows = read_rows(path, content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise FairfaceError(f"{path} is not a CSV in UTF-8: import the file as it was saved from the page") from error
    except csv.Error as error:
        raise FairfaceError(f"{path} can't be read as CSV ({error}): it was cut off or changed") from error
    if not rows:
        raise FairfaceError(f"{path} has no answers")
    table = unescape_formulas(pl.DataFrame(rows, schema=dict.fromkeys(ANSWER_COLUMNS, pl.String), orient="row"))
    for name in ("plan", "run", "rater", "answers"):
        if table[name].n_unique() > 1:
            raise FairfaceError(f"{path} has more than one value of {name}: import each rater's file separately")
    if (listed := table["answers"][0]) != str(len(table)):
        raise FairfaceError(f"{path} has {len(table):,} of {listed[:20]} answers: the file was cut off or changed")
    rater = table["rater"][0]
    if not rater.strip() or len(rater) > MAX_RATER or not rater.isprintable():
        raise FairfaceError(f"{path}: {rater[:MAX_RATER]!r} is not the name of a rater")
    return Answers(path, sha256(content).hexdigest(), table["plan"][0], table["run"][0], rater, table)


def read_rows(path: Path, text: str) -> list[list[str]]:
    """The rows of a rater's CSV below its header. Raises FairfaceError for the first that has other columns."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    if tuple(next(reader, ())) != ANSWER_COLUMNS:
        raise FairfaceError(f"{path} is not a file of answers: its columns must be {', '.join(ANSWER_COLUMNS)}")
    rows = []
    for number, row in enumerate(reader, 2):
        if len(row) != len(ANSWER_COLUMNS):
            raise FairfaceError(f"{path}: row {number} has {len(row)} cells: the file was cut off or changed")
        rows.append(row)
    return rows


def match_answers(answers: Answers, plan: AuditPlan, faces: pl.DataFrame) -> pl.DataFrame:
    """A rater's answers with the columns of RATING_COLUMNS. Raises FairfaceError if they don't belong to the plan."""
    path, table = answers.path, answers.table
    if answers.plan != plan.id:
        raise FairfaceError(
            f"{path} has answers to plan {answers.plan[:20]} of run {answers.run}, not to the current plan of run "
            f"{plan.run} ({plan.id})"
        )
    numbers = {str(number): number for number in faces["face"]}
    if (unknown := first_other(table["face"], numbers)) is not None:
        raise FairfaceError(f"{path}: {unknown!r} is not one of the plan's {len(faces):,} faces")
    table = table.with_columns(face=table["face"].replace_strict(numbers, return_dtype=pl.Int32))
    table = table.join(faces.select("face", "source", "key"), on="face", how="left", maintain_order="left")
    for name, source in table.select("attribute", "source").unique(maintain_order=True).iter_rows():
        if name not in plan.sides[source].attributes:
            side = "training images" if source == "train" else "samples"
            raise FairfaceError(f"{path}: the plan does not ask about {name[:80]!r} of {side}")
    for (name,), rows in table.group_by("attribute", maintain_order=True):
        classes = plan.classes[str(name)]
        if (unknown := first_other(rows["answer"], (*classes, CANNOT_TELL))) is not None:
            raise FairfaceError(f"{path}: {unknown!r} is not a valid {name}; choose from {', '.join(classes)}")
    twice = table.filter(table.select("face", "attribute").is_duplicated())
    if len(twice):
        raise FairfaceError(f"{path} has two answers for face {twice['face'][0]}, {twice['attribute'][0]}")
    group = pl.when(pl.col("answer") != CANNOT_TELL).then("answer").alias("group")
    return table.select("source", "key", "rater", "attribute", group, file=pl.lit(path.name)).select(*RATING_COLUMNS)


def first_other(values: pl.Series, known: Sequence[str] | dict[str, int]) -> str | None:
    """The first value that is not known, cut to 80 characters; None if all are known."""
    return next((value[:80] for value in values if value not in known), None)
