"""Replaces the attributes of a workspace whose images are already packed."""

from pathlib import Path

import polars as pl

from shards.attributes import AttributeTable, built_in_attributes, keep_own_attributes, read_own_attributes
from shards.documents import load_shards_json
from shards.errors import FairfaceError
from shards.images_table import SCHEMA, read_images
from shards.locks import shared_lock
from shards.workspace import ShardsFolder, Workspace


def replace_own_attributes(workspace: Workspace, path: Path) -> None:
    """Copy a file of attributes into a workspace, to label its images and samples with it.

    An attribute that the packed images were not annotated with gets labels from its prompts. Raises FairfaceError for a
    file that is invalid or lacks a class that the images have.
    """
    own = read_own_attributes(path)
    with shared_lock(workspace.shards.lock, "replacing its attributes"):
        check_classes(workspace.shards, own.table, path)
        keep_own_attributes(workspace, own)


def check_classes(shards: ShardsFolder, attributes: AttributeTable, path: Path) -> None:
    """Raise FairfaceError if `attributes` lack an attribute or a class of a packed image."""
    if not shards.document.exists():
        return
    sha256 = load_shards_json(shards).files.get(shards.images.name, "")
    images = read_images(shards.images, sha256=sha256)
    for name, column in images.to_dict().items():
        if name not in (*SCHEMA, *attributes, *built_in_attributes()) and column.null_count() < len(column):
            raise FairfaceError(f"{path} lacks the attribute {name}, which packed images have: add it")
    for name, attribute in attributes.labelled.items():
        used = set(images[name].drop_nulls().cast(pl.String)) if name in images.columns else set()
        if lost := sorted(used - set(attribute.names)):
            raise FairfaceError(
                f"{path}: {name} lacks the class {lost[0]!r}, which packed images have: add it, or pack again with "
                "`fairface shards --attributes FILE --force`"
            )
