"""Measures how often labels agree with the annotations."""

import polars as pl

from models.classifier import NAME as CLASSIFIER
from pipeline.labelling.tables import most_probable
from shards.annotations import derived_class
from shards.attributes import AttributeTable

SCHEMA = {
    "attribute": pl.String,
    "method": pl.String,
    "labeller": pl.String,
    "n": pl.Int64,  # annotated images
    "accuracy": pl.Float64,
    "balanced_accuracy": pl.Float64,
    "unsure": pl.Float64,  # share of these images whose label is unsure; only the classifier's may be
}


def annotations_of(images: pl.DataFrame, keys: pl.Series, attributes: AttributeTable) -> pl.DataFrame:
    """The key and all attributes, as text, of the images `keys`, in their order."""
    table = keys.to_frame("key").join(images, on="key", how="left", maintain_order="left")
    return all_attributes(table, attributes)


def all_attributes(table: pl.DataFrame, attributes: AttributeTable) -> pl.DataFrame:
    """The key and all attributes, as text, of a table with some of those that are labelled themselves."""
    missing = [pl.lit(None, pl.String).alias(name) for name in attributes.labelled if name not in table.columns]
    table = table.with_columns(missing).select("key", *attributes.labelled)
    table = table.with_columns(map(derived_class, attributes.derived))
    table = table.with_columns(map(derived_class, attributes.crosses))
    return table.with_columns(pl.col(*attributes).cast(pl.String))


def accuracy_table(truth: pl.DataFrame, methods: dict[str, pl.DataFrame], attributes: AttributeTable) -> pl.DataFrame:
    """Accuracy and balanced accuracy (mean recall) by attribute and method, on images that none was fitted to.

    Returns the columns of SCHEMA and `selected`. For each attribute, CLIP, the probe or the classifier is selected,
    whichever has the highest balanced accuracy (CLIP on a tie); the pixels are only a check. An unsure label
    of the classifier counts as its most probable class here, so that all methods are compared on the same images.
    """
    rows = []
    for method, labels in methods.items():
        own_truth = labels.select("key").join(truth, on="key", how="left", maintain_order="left")
        predicted = all_attributes(most_probable(labels, attributes.labelled), attributes)
        sure = all_attributes(labels, attributes) if method == CLASSIFIER else predicted
        for attribute in attributes:
            if predicted[attribute].null_count() == len(predicted):
                continue
            if scores := agreement(own_truth[attribute], predicted[attribute]):
                is_unsure = sure[attribute].is_null() & predicted[attribute].is_not_null()
                unsure = is_unsure.filter(own_truth[attribute].is_not_null()).mean()
                rows.append((attribute, method, labels["labeller"][0], *scores, unsure))
    return select_methods(pl.DataFrame(rows, schema=SCHEMA, orient="row"))


def agreement(truth: pl.Series, predicted: pl.Series) -> tuple[int, float, float] | None:
    """The number of non-null values of `truth`, and accuracy and balanced accuracy on them; None if all are null."""
    pairs = pl.DataFrame({"truth": truth, "predicted": predicted}).drop_nulls("truth")
    if pairs.is_empty():
        return None
    hits = pairs.with_columns(hit=(pl.col("truth") == pl.col("predicted")).fill_null(False))
    recalls = hits.group_by("truth").agg(pl.col("hit").mean())
    accuracy, mean_recall = hits.select(pl.col("hit").mean()).item(), recalls.select(pl.col("hit").mean()).item()
    return len(pairs), accuracy, round(mean_recall, 9)


def select_methods(accuracies: pl.DataFrame) -> pl.DataFrame:
    """Add the column `selected` to `accuracies`: true for the best method of each attribute, pixels excepted."""
    best = (
        accuracies.filter(pl.col("method") != "pixels")
        .sort("balanced_accuracy", pl.col("method") != "clip", "method", descending=[True, False, False])
        .unique("attribute", keep="first", maintain_order=True)
    )
    return accuracies.join(
        best.select("attribute", "method", selected=True), on=["attribute", "method"], how="left"
    ).with_columns(pl.col("selected").fill_null(False))
