"""The page of an audit: one HTML file on which a person labels faces, without the program and without a network."""

import base64
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from PIL import Image, ImageOps

from reports.faces import read_images
from reports.render import TEMPLATES, template_environment
from shards.atomic_io import atomic_write, read_parquet
from shards.attributes import AttributeTable, workspace_attributes
from shards.audit import ANSWER_COLUMNS, CANNOT_TELL, AuditPlan, audit_lock, read_plan
from shards.audit_tables import read_plan_table
from shards.documents import SamplesDocument, ShardsDocument, read_document
from shards.errors import FairfaceError
from shards.locks import shared_lock
from shards.workspace import Workspace

SCRIPT = TEMPLATES / "audit.js"
MAX_SIDE = 512  # pixels of a face on the page
LOSSLESS_SIDE = 128  # pixels, up to which faces are stored without loss


@dataclass(frozen=True)
class AuditPage:
    """What the template of the page shows."""

    run: str
    faces: int
    questions: int  # about all faces
    titles: list[str]  # what is asked about each face
    has_swatches: bool
    smallest: int  # width of the narrowest face, in pixels
    data: dict[str, Any]  # for the script
    script: str
    script_hash: str  # the only script that the browser may run


def write_audit_page(workspace: Workspace, run: str) -> Path:
    """Write the page on which people label the faces of a run's plan, and return its path.

    The page shows nothing of a face but its image, without metadata: in particular, not the labeller's labels. Raises
    FairfaceError if there is no plan, if it is stale, and if an image can't be read.
    """
    folder = workspace.run(run)
    with (
        shared_lock(workspace.shards.lock, "reading the faces"),
        shared_lock(folder.samples_lock, "reading the faces"),
        audit_lock(folder, "writing the page"),
    ):
        plan = read_plan(workspace, folder)
        faces = read_plan_table(folder.audit, plan)
        images = {
            (source, key): data
            for source in plan.sides
            for key, data in read_faces(workspace, run, source, faces.filter(source=source)["key"]).items()
        }
        page = build_audit_page(plan, faces, images, attributes=workspace_attributes(workspace))
        html = template_environment().get_template("audit.html.j2").render(page=page)
        with atomic_write(folder.audit.page) as file:
            file.write(html.encode())
    return folder.audit.page


def read_faces(workspace: Workspace, run: str, source: str, keys: pl.Series) -> dict[str, bytes]:
    """The encoded images of one side's `keys`. Raises FairfaceError if one of them can't be read."""
    if source == "train":
        table, folder = workspace.shards.images, workspace.shards.folder
        document: ShardsDocument | SamplesDocument | None = read_document(workspace.shards.document, ShardsDocument)
    else:
        run_folder = workspace.run(run)
        table, folder = run_folder.samples_table, run_folder.samples
        document = read_document(run_folder.samples_document, SamplesDocument)
    places = read_parquet(table, ("key", "shard"), sha256=document.files.get(table.name) if document else None)
    images = read_images(folder, places.filter(pl.col("key").is_in(keys.implode())))
    if missing := len(keys) - len(images):
        raise FairfaceError(f"{missing:,} of the plan's faces in {folder} can't be read: run `fairface verify`")
    return images


def build_audit_page(
    plan: AuditPlan, faces: pl.DataFrame, images: dict[tuple[str, str], bytes], *, attributes: AttributeTable
) -> AuditPage:
    """The content of the page, from the `images` by source and key."""
    asked = {source: side.attributes for source, side in plan.sides.items()}
    pictures = [shrink(images[row["source"], row["key"]]) for row in faces.iter_rows(named=True)]
    data = {
        "plan": plan.id,
        "run": plan.run,
        "columns": ANSWER_COLUMNS,
        "cannot_tell": CANNOT_TELL,
        "attributes": {
            name: {
                "title": attributes[name].title,
                "classes": [{"name": item.name, "colour": item.colour} for item in attributes[name].classes],
            }
            for name in plan.attributes
        },
        "faces": [
            {"number": row["face"], "attributes": asked[row["source"]], "image": data_uri(picture)}
            for row, picture in zip(faces.iter_rows(named=True), pictures, strict=True)
        ],
    }
    titles = [attributes[name].title for name in plan.attributes]
    script = SCRIPT.read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return AuditPage(
        run=plan.run,
        faces=len(faces),
        questions=sum(len(asked[source]) for source in faces["source"]),
        titles=titles,
        has_swatches=any(item.colour for name in plan.attributes for item in attributes[name].classes),
        smallest=min(picture.width for picture in pictures),
        data=data,
        script=script,
        script_hash=f"sha256-{digest}",
    )


def shrink(data: bytes) -> Image.Image:
    """An encoded image, upright, in RGB, and not larger than MAX_SIDE."""
    with Image.open(io.BytesIO(data)) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
    upright.thumbnail((MAX_SIDE, MAX_SIDE))
    return upright


def data_uri(image: Image.Image) -> str:
    """An image as a data URI without metadata: PNG if it is small, JPEG otherwise."""
    content, kind = io.BytesIO(), "png" if max(image.size) <= LOSSLESS_SIDE else "jpeg"
    clean = Image.frombytes("RGB", image.size, image.tobytes())  # without comments, profiles and text
    clean.save(content, kind, **({"quality": 90} if kind == "jpeg" else {}))
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}"
