"""Checks that both sides of a comparison are labelled, and by the same labellers."""

from dataclasses import dataclass

import duckdb
import polars as pl

import sql
from shards import provenance
from shards.documents import RunConfig, read_document
from shards.errors import FairfaceError
from shards.workspace import Workspace


class MissingLabels(FairfaceError):
    """A side has no labels yet; the message names the command to run."""


@dataclass(frozen=True)
class LabelledSides:
    """The labellers of both sides, and the number of images they labelled."""

    labeller: str  # of clip, of a classifier that labels in its place, or of imported labels
    methods: dict[str, str]  # method -> labeller
    sizes: list[int]  # pixels that images were labelled at
    train: int
    generated: int


def has_training_images(workspace: Workspace, run: str) -> bool:
    """Whether samples are compared with training images: true unless they were imported and nothing is packed."""
    config = read_document(workspace.run(run).config, RunConfig)
    return workspace.shards.document.exists() or config is None or config.source is None


def check_labels(connection: duckdb.DuckDBPyConnection, run: str, *, has_training: bool = True) -> LabelledSides:
    """The labellers of a run's samples and of the training images, or of the samples alone without training images.

    Raises MissingLabels if a side has no labels, FairfaceError if the two were labelled by different labellers.
    """
    text = """select source, method, labeller, size, count(*) as n from labels
        where source = 'train' or (source = 'generated' and run = $run) group by all order by all"""
    sides = sql.select(connection, text, {"run": run})
    check_both_labelled(connection, run, sides=sides, has_training=has_training)
    for method in sides["method"].unique():
        of_method = sides.filter(method=method)
        is_one_sided = has_training and of_method["source"].n_unique() < 2 and method != "pixels"
        if of_method["labeller"].n_unique() > 1 or is_one_sided:
            labellers = ", ".join(map(str, sides["labeller"].unique().sort()))
            raise FairfaceError(
                f"both sides must be labelled by one labeller, but the labels are by {labellers}: "
                f"run `fairface label --run {run}` again"
            )
    primary = sides.filter(pl.col("method").is_in(["clip", "imported"]))
    if primary.is_empty():
        primary = sides.filter(method="classifier")
    return LabelledSides(
        labeller=primary["labeller"][0],
        methods=dict(sides.select("method", "labeller").unique().sort("method").iter_rows()),
        sizes=sorted(set(sides["size"].drop_nulls())),
        train=int(primary.filter(source="train")["n"].sum()),
        generated=int(primary.filter(source="generated")["n"].sum()),
    )


def check_provenance(workspace: Workspace, run: str) -> None:
    """Raise MissingLabels if samples or labels are unfinished, or if labels are of other images than the present ones.

    The connections of `sql` leave such files out.
    """
    shards, folder = workspace.shards, workspace.run(run)
    if folder.samples_table.exists() and (reason := provenance.samples_problem(folder)):
        raise MissingLabels(reason)
    for reason in (provenance.training_labels_problem(shards), provenance.sample_labels_problem(folder)):
        if reason:
            raise MissingLabels(reason)


def check_both_labelled(
    connection: duckdb.DuckDBPyConnection, run: str, *, sides: pl.DataFrame, has_training: bool
) -> None:
    """Raise MissingLabels if one of the sides has no labels to compare."""
    if "generated" not in sides["source"]:
        has_samples = len(sql.ask(connection, "sampling", run=run))
        sample = "" if has_samples else f"`fairface sample --run {run}`, then "
        raise MissingLabels(f"the samples of run {run} have no labels: run {sample}`fairface label --run {run}`")
    if not has_training:
        return
    if "train" not in sides["source"]:
        raise MissingLabels(f"the training images have no labels to compare with: run `fairface label --run {run}`")
    if "imported" in sides["method"] and "imported" not in sides.filter(source="train")["method"]:
        raise MissingLabels(
            f"the labels of run {run} were imported, and no training image has labels of the same labeller: there is "
            f"nothing to compare them with (`fairface sql distribution --param run={run}` shows them)"
        )
