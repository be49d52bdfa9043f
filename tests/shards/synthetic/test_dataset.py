"""The drawn faces: the same bytes every time, the shares asked for, and a truth that can be seen."""

import csv
import hashlib
import json
import math

import numpy as np
import pytest

from shards.annotations import AGES, GENDERS
from shards.errors import FairfaceError
from shards.synthetic.dataset import COLUMNS, Shares, parse_shares, sample_faces, write_dataset
from shards.synthetic.face import TONES, Face, render


def digest(folder):
    """One hash of every file's path and bytes."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        total.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return total.hexdigest()


def test_same_bytes_whatever_the_workers(tmp_path):
    options = {"count": 240, "seed": 5, "size": 32, "progress": False}
    assert write_dataset(tmp_path / "one", workers=1, **options)["unchanged"] is False
    write_dataset(tmp_path / "two", workers=2, **options)
    assert digest(tmp_path / "one") == digest(tmp_path / "two")
    assert len(list((tmp_path / "one").rglob("*.jpg"))) == 240


def test_a_face_is_a_pure_function():
    face = Face("female", "senior", 4, 99)
    first = render(face)
    render(Face("male", "adult", 8, 1))
    assert (first.size, first.mode) == ((128, 128), "RGB")
    assert first.tobytes() == render(face).tobytes()
    assert first.tobytes() != render(Face("female", "senior", 4, 100)).tobytes()


SKEWED = Shares(gender={"female": 0.7, "male": 0.3}, skin_tone={1: 0.5, 9: 0.5})


@pytest.mark.parametrize("shares", [Shares(), SKEWED])
def test_shares_are_respected(shares):
    faces = sample_faces(6000, 0, shares)
    for attribute in ("gender", "age", "skin_tone"):
        wanted = getattr(shares, attribute)
        assert math.isclose(sum(wanted.values()), 1, abs_tol=1e-5)
        seen = {name: sum(getattr(face, attribute) == name for face in faces) for name in wanted}
        assert sum(seen.values()) == len(faces)
        chi2 = sum((seen[name] - 6000 * share) ** 2 / (6000 * share) for name, share in wanted.items())
        assert chi2 < 28  # the 0.999 quantile for 9 degrees of freedom


def test_default_has_some_of_every_tone():
    assert min(Shares().skin_tone.values()) > 0.02
    assert sample_faces(50, 3) == sample_faces(80, 3)[:50] != sample_faces(50, 4)


@pytest.mark.parametrize("tone", TONES)
def test_cheeks_have_the_tone(tone):
    patches = []
    for seed in range(12):
        face = Face(GENDERS[seed % 2], "young", tone, seed)
        pixels = np.asarray(render(face), dtype=float)
        patches += [pixels[78:84, 41:46].mean((0, 1)), pixels[78:84, 83:88].mean((0, 1))]
    assert np.abs(np.median(patches, 0) - TONES[tone]).max() < 4 + 0.05 * max(TONES[tone])


@pytest.mark.parametrize("size", [64, 256])
def test_every_class_draws_at_every_size(size):
    for number, (gender, age) in enumerate((gender, age) for gender in GENDERS for age in AGES):
        for seed in range(3):
            image = np.asarray(render(Face(gender, age, 1 + number, seed), size))
            assert image.shape == (size, size, 3)
            assert image.std() > 10


def test_the_table_says_what_was_drawn(tmp_path):
    write_dataset(tmp_path, count=60, seed=2, size=32, progress=False)
    with (tmp_path / "train.csv").open() as file:
        rows = list(csv.DictReader(file))
    faces = sample_faces(60, 2)
    assert (",".join(rows[0]), len(rows)) == (COLUMNS, 60)
    for index, (row, face) in enumerate(zip(rows, faces, strict=True)):
        assert row["Image Path"] == f"AI_Face_imagesV2/GANs/Drawn/000/{index:06d}.jpg"
        assert (tmp_path / row["Image Path"].removeprefix("AI_Face_imagesV2/")).is_file()
        group = 0 if face.skin_tone < 4 else 1 if face.skin_tone < 7 else 2
        male = face.gender == "male"
        codes = [male, AGES.index(face.age), face.skin_tone, 1, group, 3 * male + group]
        assert [int(value) for value in list(row.values())[1:]] == codes


def test_a_second_run_changes_nothing_and_other_options_draw_again(tmp_path):
    options = {"seed": 1, "size": 32, "progress": False}
    first = write_dataset(tmp_path, count=12, **options)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert write_dataset(tmp_path, count=12, **options) == first | {"unchanged": True}
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert write_dataset(tmp_path, count=7, **options)["unchanged"] is False
    assert len(list(tmp_path.rglob("*.jpg"))) == 7
    assert json.loads((tmp_path / "drawn.json").read_text())["count"] == 7


def test_a_half_written_folder_is_drawn_again(tmp_path):
    write_dataset(tmp_path, count=5, size=32, progress=False)
    (tmp_path / "drawn.json").rename(tmp_path / ".drawn.json.partial")  # as a killed command leaves it
    assert write_dataset(tmp_path, count=5, size=32, progress=False)["unchanged"] is False
    assert sorted(path.name for path in tmp_path.iterdir()) == ["GANs", "drawn.json", "train.csv"]


def test_a_foreign_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "holiday.jpg").write_bytes(b"mine")
    with pytest.raises(FairfaceError, match="holds other files"):
        write_dataset(tmp_path, count=5, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shards.synthetic.save", full)
    with pytest.raises(OSError, match="No space left"):
        write_dataset(tmp_path, count=5, size=32, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_parse_shares():
    assert parse_shares("female=3, male=1", "gender") == {"female": 0.75, "male": 0.25}
    tones = parse_shares("1=0.1,10=0.1", "skin_tone")
    assert tones == {tone: 0.5 if tone in (1, 10) else 0 for tone in range(1, 11)}


@pytest.mark.parametrize(
    ("text", "attribute", "message"),
    [
        ("woman=1", "gender", "female, male"),
        ("female", "gender", "no number"),
        ("", "age", "child, young"),
        ("female=x", "gender", "no number"),
        ("child=-1", "age", "from 0 up"),
        ("child=nan", "age", "from 0 up"),
        ("11=1", "skin_tone", "'11=1'"),
        ("1=1,1=2", "skin_tone", "twice"),
        ("female=0", "gender", "above 0"),
    ],
)
def test_bad_shares_are_named(text, attribute, message):
    with pytest.raises(FairfaceError, match=message) as error:
        parse_shares(text, attribute)
    assert "\n" not in str(error.value)
