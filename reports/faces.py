"""Reads the faces on the page: the first ones, those of each group, those of extreme confidence, nearest neighbours."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
from PIL import Image

import sql
from reports.estimation.first_faces import first_faces
from reports.figures.contact_sheet import contact_sheet
from reports.run_report import RunReport
from shards import tar
from shards.attributes import AttributeTable
from shards.errors import FairfaceError
from shards.workspace import Workspace

SIDES = ("generated", "train")
FIRST_FACES = 48  # of either side
GROUP_FACES = 8  # of each group and side

GroupFaces = dict[str, dict[str, dict[str, list[bytes]]]]  # attribute -> group -> side -> encoded images


@dataclass(frozen=True)
class RunFaces:
    """The encoded images on the page of a run; those that cannot be read are left out."""

    first: dict[str, list[bytes]]  # by side
    by_group: GroupFaces
    confidence: list[dict[str, Any]]  # rows of question `confidence`, with `image`
    neighbours: list[dict[str, Any]]  # rows of question `neighbours`, with `image` and `train_image`


def collect_faces(
    connection: duckdb.DuckDBPyConnection, workspace: Workspace, *, report: RunReport, attributes: AttributeTable
) -> RunFaces:
    """Read every face on the page of a run."""
    reader = FaceReader(connection, workspace, report.run)
    return RunFaces(
        first={side: reader.first(side) for side in SIDES},
        by_group=reader.by_group(attributes),
        confidence=reader.with_images(report.confidence),
        neighbours=reader.with_neighbours(report.neighbours),
    )


def contact_sheets(faces: RunFaces) -> dict[str, bytes]:
    """PNG files by name: the first faces of each side, and the faces of each attribute's groups."""
    sheets = {f"faces-{side}.png": images for side, images in faces.first.items()}
    for attribute, groups in faces.by_group.items():
        sheets[f"faces-{attribute}.png"] = [
            image for sides in groups.values() for images in sides.values() for image in images
        ]
    return {name: contact_sheet(images) for name, images in sheets.items() if images}


def read_images(folder: Path, wanted: pl.DataFrame) -> dict[str, bytes]:
    """The encoded images of `wanted` (key, shard) by key, without those whose shard is missing or damaged."""
    found: dict[str, bytes] = {}
    for (shard,), rows in wanted.drop_nulls().unique(maintain_order=True).group_by("shard", maintain_order=True):
        name = str(shard)
        try:
            index = tar.read_index(folder / name)
            found |= tar.read_members(folder / name, [key for key in rows["key"] if key in index])
        except (OSError, FairfaceError):  # a missing shard loses its pictures, not the report
            continue
    return {key: data for key, data in found.items() if is_decodable(data)}


def is_decodable(data: bytes) -> bool:
    """Whether an encoded image can be decoded to its end."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
    except (
        OSError,
        ValueError,
        SyntaxError,
        Image.DecompressionBombError,
    ):  # every type that Pillow raises for damaged bytes
        return False
    return True


@dataclass(frozen=True)
class FaceReader:
    """A reader of the faces of one run and of its training images; a side is `generated` or `train`."""

    connection: duckdb.DuckDBPyConnection
    workspace: Workspace
    run: str

    def folder(self, side: str) -> Path:
        """The folder of a side's tars."""
        return self.workspace.run(self.run).samples if side == "generated" else self.workspace.shards.folder

    def first(self, side: str) -> list[bytes]:
        """The first images of a side: samples by index, training images in the order shuffled by packing."""
        params: dict[str, object] = {}
        source = "from images where status = 'packed' order by key"
        if side == "generated":
            source, params = "from samples where run = $run order by seed, index", {"run": self.run}
        wanted = sql.select(self.connection, f"select key, shard {source} limit {FIRST_FACES}", params)
        images = read_images(self.folder(side), wanted)
        return [images[key] for key in wanted["key"] if key in images]

    def by_group(self, attributes: AttributeTable) -> GroupFaces:
        """The first images of every group, not hand-picked; an empty list if none of them can be read.

        A sample's group is the selected labeller's label; a training image's is its annotation, or its label if
        nothing is annotated. A side without any face of the group is left out.
        """
        wanted = self._group_keys(list(attributes.tabulated))
        annotated = wanted.filter(source="annotated")["attribute"].unique().to_list()
        training = pl.when(pl.col("attribute").is_in(annotated)).then(pl.lit("annotated")).otherwise(pl.lit("train"))
        sides = {"generated": wanted.filter(source="generated"), "train": wanted.filter(pl.col("source") == training)}
        found: GroupFaces = {}
        for row in wanted.iter_rows(named=True):
            found.setdefault(row["attribute"], {}).setdefault(row["group"], {})
        for side, rows in sides.items():
            images = self._images(side, rows["key"])
            for row in rows.iter_rows(named=True):
                faces = found[row["attribute"]][row["group"]].setdefault(side, [])
                if row["key"] in images:
                    faces.append(images[row["key"]])
        return found

    def with_images(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The `rows` (of question `confidence`) whose image can be read, with `image`."""
        wanted = pl.DataFrame(rows, {"key": pl.String, "shard": pl.String})
        images = read_images(self.folder("generated"), wanted)
        return [row | {"image": images[row["key"]]} for row in rows if row["key"] in images]

    def with_neighbours(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The `rows` (of question `neighbours`) whose two images can be read, with `image` and `train_image`."""
        keys, nearest = (pl.Series([row[name] for row in rows], dtype=pl.String) for name in ("key", "nearest"))
        samples, training = self._images("generated", keys), self._images("train", nearest)
        return [
            row | {"image": samples[row["key"]], "train_image": training[row["nearest"]]}
            for row in rows
            if row["key"] in samples and row["nearest"] in training
        ]

    def _group_keys(self, attributes: list[str]) -> pl.DataFrame:
        """attribute, group, source, rank, key of the first images of every group, in the order of the page."""
        faces = first_faces(self.connection, attributes, run=self.run, faces=GROUP_FACES)
        ranks = sql.select(self.connection, "from vocabulary")
        rows = faces.join(ranks, on=["attribute", "group"], how="left").with_columns(pl.col("rank").fill_null(1000))
        return rows.sort("attribute", "rank", "group", "key")

    def _images(self, side: str, keys: pl.Series) -> dict[str, bytes]:
        """The images of a side by their keys."""
        source, params = "images where", {}
        if side == "generated":
            source, params = "samples where run = $run and", {"run": self.run}
        text = f"select key, shard from {source} key in (select unnest($keys::varchar[]))"
        wanted = sql.select(self.connection, text, params | {"keys": keys.unique().to_list()})
        return read_images(self.folder(side), wanted)
