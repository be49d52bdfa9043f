"""What to expect of an audit's plan, and how well its raters agree, for the command line."""

from collections.abc import Mapping
from dataclasses import dataclass

import duckdb
import numpy as np
import polars as pl

from reports.estimation.audit.agreement import Agreement, measure_agreement
from reports.estimation.audit.forecast import expected_width
from reports.estimation.audit.looks import width_factor
from reports.estimation.estimates import confusion_table
from shards.attributes import UNSURE, AttributeTable
from shards.audit import AuditPlan


@dataclass(frozen=True)
class ExpectedWidth:
    """The widest interval that is expected for the shares of one attribute's classes."""

    source: str  # generated, train
    attribute: str
    group: str  # the class with the widest interval
    width: float  # of its 95 % interval: high - low, as a share


@dataclass(frozen=True)
class RaterCounts:
    """One rater's answers."""

    rater: str
    answers: int
    cannot_tell: int  # of the answers
    questions: int  # in the whole plan


def expected_widths(
    connection: duckdb.DuckDBPyConnection,
    plan: AuditPlan,
    population: Mapping[str, pl.DataFrame],
    *,
    attributes: AttributeTable,
) -> list[ExpectedWidth]:
    """The widths that a plan's intervals can be expected to have, if the labeller errs as on annotated images.

    `population` has, by side, the label, stratum and probability of every face.
    """
    confusion = confusion_table(connection, attributes)
    widths = []
    for source, table in population.items():
        faces = plan.sides[source].faces
        looks = width_factor(sum(faces), planned=faces[0]) if faces[1:] else 1.0  # of an extended plan
        strata = table["stratum"].rank("dense").to_numpy().astype(np.intp)
        for name in plan.sides[source].attributes:
            classes = plan.classes[name]
            code = {group: number for number, group in enumerate([*classes, UNSURE])}
            counts = np.zeros((len(classes), len(classes) + 1), np.int64)
            for row in confusion.filter(attribute=name, method=plan.methods[name]).iter_rows(named=True):
                counts[code[row["annotated"]], code[row["labelled"]]] = row["count"]
            labels = table[name].fill_null(UNSURE).replace_strict(code, return_dtype=pl.Int64)
            width = expected_width(
                labels.to_numpy(),
                strata,
                classes=len(classes),
                probability=table["probability"].to_numpy(),
                confusion=counts if counts.any() else None,
            )
            widest = int(width.argmax())
            widths.append(ExpectedWidth(source, name, classes[widest], min(float(width[widest]) * looks, 1.0)))
    return widths


def count_answers(plan: AuditPlan, ratings: pl.DataFrame) -> list[RaterCounts]:
    """The number of each rater's answers, by name."""
    questions = sum(sum(side.faces) * len(side.attributes) for side in plan.sides.values())
    counts = ratings.group_by("rater").agg(answers=pl.len(), cannot_tell=pl.col("group").null_count()).sort("rater")
    return [RaterCounts(questions=questions, **row) for row in counts.iter_rows(named=True)]


def rater_agreement(plan: AuditPlan, ratings: pl.DataFrame) -> dict[str, Agreement]:
    """How well the raters agree about each attribute that at least two of them answered about a face."""
    found = {}
    for name in plan.attributes:
        code = {group: number for number, group in enumerate(plan.classes[name])}
        codes = ratings.filter(attribute=name).with_columns(
            pl.col("group").replace_strict(code, default=-1, return_dtype=pl.Int64)
        )
        table = codes.pivot("rater", index=["source", "key"], values="group").drop("source", "key").fill_null(-1)
        agreement = measure_agreement(table.to_numpy(), classes=len(code), seed=plan.seed)
        if agreement.faces:
            found[name] = agreement
    return found
