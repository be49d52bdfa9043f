"""Pictures of many faces in rows, as PNG files and embedded into the page."""

import base64
import io
from collections.abc import Sequence

from PIL import Image

COLUMNS, FACE_SIZE, GAP = 8, 64, 2  # faces in a row; pixels


def contact_sheet(images: Sequence[bytes], *, image_format: str = "png") -> bytes:
    """Arrange encoded images row by row, each resized to FACE_SIZE pixels, with gaps of GAP pixels."""
    step = FACE_SIZE + GAP
    rows = -(-len(images) // COLUMNS)
    sheet = Image.new("RGBA", (min(COLUMNS, len(images)) * step - GAP, rows * step - GAP))
    for index, data in enumerate(images):
        with Image.open(io.BytesIO(data)) as image:
            face = image.convert("RGB").resize((FACE_SIZE, FACE_SIZE), Image.Resampling.LANCZOS)
        sheet.paste(face, (index % COLUMNS * step, index // COLUMNS * step))
    file = io.BytesIO()
    if image_format == "webp":
        sheet.save(file, image_format, quality=88, method=2)
    else:
        sheet.save(file, image_format)
    return file.getvalue()


def data_url(images: Sequence[bytes]) -> str:
    """A contact sheet as a data URL, in WebP, which is a tenth of PNG's size."""
    return "data:image/webp;base64," + base64.b64encode(contact_sheet(images, image_format="webp")).decode()
