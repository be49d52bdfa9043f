"""The tables of an audit: the chosen faces, and people's answers."""

import polars as pl

from shards.atomic_io import read_parquet
from shards.audit import AuditPlan, RatingsDocument
from shards.documents import read_document
from shards.errors import FairfaceError
from shards.images_table import Types
from shards.workspace import AuditFolder

PLAN_COLUMNS: Types = {
    "face": pl.Int32,  # number of the face in the plan
    "source": pl.String,  # generated, train
    "key": pl.String,
    "round": pl.Int32,  # 0, or the number of the extension that chose it
    "stratum": pl.String,
    "probability": pl.Float64,  # that one of the rounds chooses the face
}
RATING_COLUMNS: Types = {
    "source": pl.String,
    "key": pl.String,
    "rater": pl.String,
    "attribute": pl.String,
    "group": pl.String,  # null: the rater cannot tell
    "file": pl.String,  # name of the rater's CSV
}


def read_plan_table(audit: AuditFolder, plan: AuditPlan) -> pl.DataFrame:
    """The faces of a plan. Raises FairfaceError if the table is missing, damaged, or was changed."""
    faces = read_parquet(audit.plan, PLAN_COLUMNS, sha256=plan.files.get(audit.plan.name, ""))
    if set(faces["source"]) - plan.sides.keys() or faces["face"].to_list() != list(range(sum(plan.labels))):
        raise FairfaceError(f"{audit.plan} does not list the faces of the plan: {plan.REDO}")
    return faces


def read_ratings(audit: AuditFolder, plan: AuditPlan) -> pl.DataFrame:
    """People's answers about the faces of a plan; empty if none were imported.

    Raises FairfaceError if the table is missing or was changed, and for answers to another plan.
    """
    document = read_document(audit.ratings_document, RatingsDocument)
    if document is None:
        return pl.DataFrame(schema=RATING_COLUMNS)
    if document.plan != plan.id:
        raise FairfaceError(f"{audit.ratings} has answers to another plan than the current one: {document.REDO}")
    return read_parquet(audit.ratings, RATING_COLUMNS, sha256=document.files.get(audit.ratings.name, ""))
