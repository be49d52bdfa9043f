"""Synthetic faces: the same bytes every time, the requested shares, and annotations that match the pixels."""

import csv
import hashlib
import json
import math
from dataclasses import replace

import numpy as np
import pytest

from shards.annotations import AGES, GENDERS
from shards.errors import FairfaceError
from shards.synthetic import dataset
from shards.synthetic.dataset import (
    COLUMNS,
    Shares,
    SyntheticConfig,
    SyntheticResult,
    parse_shares,
    sample_faces,
    write_dataset,
)
from shards.synthetic.face import TONES, Face
from shards.synthetic.look import choose_look
from shards.synthetic.render import render


def folder_hash(folder):
    """One hash of every file's path and bytes."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return digest.hexdigest()


def test_the_bytes_do_not_depend_on_the_workers(tmp_path):
    config = SyntheticConfig(count=240, seed=5, size=32)
    assert not write_dataset(tmp_path / "one", config, workers=1, progress=False).unchanged
    write_dataset(tmp_path / "two", config, workers=2, progress=False)
    assert folder_hash(tmp_path / "one") == folder_hash(tmp_path / "two")
    assert len(list((tmp_path / "one").rglob("*.jpg"))) == 240


def test_rendering_is_a_pure_function_of_the_face():
    face = Face("female", "senior", 4, 99)
    first = render(face)
    render(Face("male", "adult", 8, 1))
    assert (first.size, first.mode) == ((128, 128), "RGB")
    assert first.tobytes() == render(face).tobytes()
    assert first.tobytes() != render(Face("female", "senior", 4, 100)).tobytes()


SKEWED = Shares(gender={"female": 0.7, "male": 0.3}, skin_tone={1: 0.5, 9: 0.5})


@pytest.mark.parametrize("shares", [Shares(), SKEWED])
def test_sampled_faces_have_the_requested_shares(shares):
    faces = sample_faces(6000, 0, shares)
    for attribute in ("gender", "age", "skin_tone"):
        expected = getattr(shares, attribute)
        assert math.isclose(sum(expected.values()), 1, abs_tol=1e-5)
        counts = {name: sum(getattr(face, attribute) == name for face in faces) for name in expected}
        assert sum(counts.values()) == len(faces)
        chi2 = sum((counts[name] - 6000 * share) ** 2 / (6000 * share) for name, share in expected.items())
        assert chi2 < 28  # the 0.999 quantile for 9 degrees of freedom


def test_the_default_shares_have_every_tone_and_a_shorter_sample_is_a_prefix():
    assert min(Shares().skin_tone.values()) > 0.02
    assert sample_faces(50, 3) == sample_faces(80, 3)[:50] != sample_faces(50, 4)


@pytest.mark.parametrize("tone", TONES)
def test_cheeks_have_the_colour_of_the_tone(tone):
    patches = []
    for seed in range(12):
        face = Face(GENDERS[seed % 2], "young", tone, seed)
        pixels = np.asarray(render(face), dtype=float)
        patches += [pixels[78:84, 41:46].mean((0, 1)), pixels[78:84, 83:88].mean((0, 1))]
    assert np.abs(np.median(patches, 0) - TONES[tone]).max() < 4 + 0.05 * max(TONES[tone])


@pytest.mark.parametrize("size", [64, 256])
def test_every_class_renders_at_every_size(size):
    for number, (gender, age) in enumerate((gender, age) for gender in GENDERS for age in AGES):
        for seed in range(3):
            image = np.asarray(render(Face(gender, age, 1 + number, seed), size))
            assert image.shape == (size, size, 3)
            assert image.std() > 10


def test_the_table_has_the_annotations_of_the_rendered_faces(tmp_path):
    write_dataset(tmp_path, SyntheticConfig(count=60, seed=2, size=32), progress=False)
    with (tmp_path / "train.csv").open() as file:
        rows = list(csv.DictReader(file))
    faces = sample_faces(60, 2)
    assert (",".join(rows[0]), len(rows)) == (COLUMNS, 60)
    for index, (row, face) in enumerate(zip(rows, faces, strict=True)):
        assert row["Image Path"] == f"AI_Face_imagesV2/GANs/Synthetic/000/{index:06d}.jpg"
        assert (tmp_path / row["Image Path"].removeprefix("AI_Face_imagesV2/")).is_file()
        group = 0 if face.skin_tone < 4 else 1 if face.skin_tone < 7 else 2
        male = face.gender == "male"
        codes = [male, AGES.index(face.age), face.skin_tone, 1, group, 3 * male + group]
        *stated, glasses, hair = list(row.values())[1:]
        assert [int(value) for value in stated] == codes
        assert (glasses == "glasses") == choose_look(face).has_glasses
        if face.age != "middle":  # the hair of half of these is grey
            assert (hair == "grey") == (face.age == "senior")


def test_a_second_run_changes_nothing_and_other_options_render_again(tmp_path):
    config = SyntheticConfig(count=12, seed=1, size=32)
    assert write_dataset(tmp_path, config, progress=False) == SyntheticResult(config, unchanged=False)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert write_dataset(tmp_path, config, progress=False) == SyntheticResult(config, unchanged=True)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert not write_dataset(tmp_path, replace(config, count=7), progress=False).unchanged
    assert len(list(tmp_path.rglob("*.jpg"))) == 7
    assert json.loads((tmp_path / "synthetic.json").read_text())["count"] == 7


NAMES = [".lock", "GANs", "synthetic.json", "synthetic.sha256", "train.csv"]


def test_faces_without_their_document_are_rendered_again(tmp_path):
    config = SyntheticConfig(count=5, size=32)
    write_dataset(tmp_path, config, progress=False)
    (tmp_path / "synthetic.json").unlink()
    assert not write_dataset(tmp_path, config, progress=False).unchanged
    assert sorted(path.name for path in tmp_path.iterdir()) == NAMES


def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path):
    (tmp_path / "holiday.jpg").write_bytes(b"mine")
    with pytest.raises(FairfaceError, match="holds files other"):
        write_dataset(tmp_path, SyntheticConfig(count=5), progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(dataset, "save_image", fail)
    with pytest.raises(OSError, match="No space left"):
        write_dataset(tmp_path / "new", SyntheticConfig(count=5, size=32), progress=False)
    assert not (tmp_path / "new").exists()


def test_parsed_shares_are_scaled_and_missing_classes_get_none():
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
        ("child=-1", "age", "of 0 or more"),
        ("child=nan", "age", "of 0 or more"),
        ("11=1", "skin_tone", "'11=1'"),
        ("1=1,1=2", "skin_tone", "twice"),
        ("female=0", "gender", "above 0"),
    ],
)
def test_invalid_shares_are_refused_in_one_line(text, attribute, message):
    with pytest.raises(FairfaceError, match=message) as error:
        parse_shares(text, attribute)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("options", [{"count": 0}, {"size": 31}, {"size": 1025}, {"quality": 0}, {"quality": 96}])
def test_options_out_of_range_are_refused_in_one_line(options):
    with pytest.raises(FairfaceError, match=r"must be 1 or more, size .* 32-1024, quality .* 1-95") as error:
        SyntheticConfig(**options)
    assert "\n" not in str(error.value)
