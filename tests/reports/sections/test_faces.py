"""The pictures of faces."""

import io
import json
import re

from PIL import Image

from reports.sections import faces
from tests.reports.fake_workspace import build


def test_generated_faces_of_every_group_are_shown_next_to_training_faces(built):
    html = (built / "report" / "index.html").read_text()
    assert html.count('alt="Generated faces: ') > 10
    assert html.count('alt="Generated faces: ') + html.count(">no generated face<") == 26
    assert html.count('alt="Training faces: ') > 10


def test_damaged_pictures_cost_only_the_pictures(world):
    out = world()
    tar = out / "runs" / "first" / "samples" / "s.tar"
    tar.write_bytes(tar.read_bytes()[:30_000])
    train = bytearray((out / "shards" / "a.tar").read_bytes())
    train[512:700] = bytes(188)
    (out / "shards" / "a.tar").write_bytes(train)
    numbers = json.loads((build(out).page.parent / "report.json").read_text())
    assert numbers["estimates"]
    html = (out / "report" / "index.html").read_text()
    pictured = int(re.search(r"Generated: the first (\d+) faces, not selected", html)[1])
    assert 0 < pictured < 48


def test_a_few_faces_are_as_large_as_those_of_a_full_row():
    data = io.BytesIO()
    Image.new("RGB", (8, 8)).save(data, "png")
    pictures = faces.group_pictures("old", {"generated": [data.getvalue()] * 2, "train": [data.getvalue()] * 8})
    assert [side.width for side in pictures.sides] == [25, 100]
