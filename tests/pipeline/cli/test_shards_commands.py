"""`fairface synth`, `shards` and `verify`."""

import re
import shutil

import polars as pl
import pytest

from tests.pipeline.cli.helpers import SMALL_TRAINING, error_line, fairface


def test_the_pack_summary_accounts_for_every_image(synthetic_root, tmp_path):
    root, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(synthetic_root / "GANs", root / "GANs")
    (root / "GANs" / "Synthetic" / "000" / "000007.jpg").write_bytes(b"")
    lines = (synthetic_root / "train.csv").read_text().splitlines()
    cells, place = lines[1].split(","), lines[0].split(",").index("Intersection")
    cells[place] = "0" if cells[place] == "5" else "5"
    disagreeing = ",".join(cells)
    rows = [lines[0], disagreeing, *lines[2:-9], lines[5], "GANs/None/1.jpg,0,0,1,1,0,0"]
    (root / "train.csv").write_text("\n".join(rows))
    printed = fairface("shards", "--data", root, "--out", out)
    assert re.search(r"239 images packed, \d\.\d MB in 1 shards, \d+\.\d s \([\d,]+ images/s\)", printed)
    assert "rejected:  1 (1 empty; `fairface sql rejects`)" in printed
    assert "annotated: 231 of 240 images (96.2%) match one of 233 rows in 1 table (AI-Face (released files))" in printed
    assert "unmatched: 1 rows without an image, 9 images without a row (`fairface sql unmatched`" in printed
    assert "Warning: 1 rows name an image that an earlier row names" in printed
    assert "Warning: 1 rows have an Intersection that is not gender x skin tone" in printed
    answer = fairface("sql", "unmatched", "--out", out, "--format", "csv").splitlines()
    assert answer[1] == "image,missing,GANs,Synthetic,9,GANs/Synthetic/000/000231.jpg"
    assert answer[2] == "row,missing,GANs,None,1,GANs/None/1.jpg"
    few = fairface("shards", "--data", root, "--out", tmp_path / "few", "--where", "gender = 'male'", "--limit", 20)
    assert "selected:  20 of 240 images found" in few


def test_verify_prints_that_all_is_well_or_the_first_fault(synthetic_root, tmp_path):
    fairface("shards", "--data", synthetic_root, "--out", tmp_path, "--shard-bytes", "0.2MB")
    assert "all 240 images are intact" in fairface("verify", "--out", tmp_path)
    path = tmp_path / "shards" / "shard-000001.tar"
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    data[-1] = 1
    path.write_bytes(data)
    printed = fairface("verify", "--out", tmp_path, code=1)
    assert re.search(
        r"shards/shard-000001\.tar at byte 0, key \d{8}: has other bytes .*`fairface shards --force`", printed
    )
    assert "Error: 2 faults in" in printed
    assert "shard-000001.tar at byte 0" in error_line("train", "--out", tmp_path, *SMALL_TRAINING)
    assert "fairface shards" in error_line("verify", "--out", tmp_path / "none")


@pytest.mark.parametrize(
    "options",
    [
        ("--quality", 80),
        ("--size", 32, "--no-check"),
        ("--shard-images", 10, "--shard-bytes", "1MB"),
        ("--shard-bytes", "much"),
        ("--shard-bytes", "10"),
        ("--alias", "a"),
        ("--alias", "=b"),
        ("--alias", "a/b=c"),
        ("--annotations", "train.csv", "--no-annotations"),
        ("--columns", "gender=sex"),
        ("--annotations", "train.csv", "--columns", "gender"),
        ("--annotations", "train.csv", "--columns", "gender=sex,gender=kind"),
        ("--annotations", "train.csv", "--columns", "gender=sex", "--age-codes", "first"),
    ],
    ids=lambda options: " ".join(map(str, options)),
)
def test_contradictory_options_are_refused(synthetic_root, tmp_path, options):
    error_line("shards", "--data", synthetic_root, "--out", tmp_path, *options, code=2)
    assert not (tmp_path / "shards" / "shards.json").exists()


def test_tables_and_subsets_that_do_not_exist_are_refused(synthetic_root, tmp_path):
    pack = ("shards", "--data", synthetic_root, "--out", tmp_path)
    assert "none.csv" in error_line(*pack, "--annotations", synthetic_root / "none.csv")
    assert "GANs, Synthetic" in error_line(*pack, "--subset", "FFHQ")
    assert not (tmp_path / "shards" / "shards.json").exists()


@pytest.fixture
def portraits(tmp_path):
    """Twenty images with names as UTKFace's, of which a table in own columns states the same."""
    from PIL import Image

    folder = tmp_path / "portraits"
    folder.mkdir()
    rows = ["picture,sex,years"]
    for number in range(20):
        name = f"{5 * number}_{number % 2}_0_2017{number:04d}.jpg"
        Image.effect_noise((64, 64), 50).convert("RGB").save(folder / name)
        rows.append(f"{name},{'mf'[number % 2]},{5 * number}")
    (tmp_path / "own.csv").write_text("\n".join([*rows, "missing.jpg,m,n/a", ""]))
    return folder


def test_labels_come_from_names_or_from_own_columns(portraits, tmp_path):
    pack = ("shards", "--data", portraits)
    printed = fairface(*pack, "--out", tmp_path / "names")
    assert "annotated: 20 of 20 images (100.0%) have labels in their file names (UTKFace)" in printed
    assert "Warning: 1 rows with a label that matches no class" in printed  # an age of 15
    own = ("--annotations", tmp_path / "own.csv", "--columns", "gender=sex,age=years")
    printed = fairface(*pack, "--out", tmp_path / "own", *own)
    assert "match one of 21 rows in 1 table" in printed
    assert "Warning: 2 rows with a label" in printed
    by_names, by_table = (
        pl.read_parquet(tmp_path / out / "shards" / "images.parquet").drop("race") for out in ("names", "own")
    )
    assert by_names.equals(by_table)
    assert by_names["age"].n_unique() == 5
    assert "unchanged" in fairface(*pack, "--out", tmp_path / "own", *own)
    assert "options differ" in error_line(*pack, "--out", tmp_path / "own")
    assert "none, because" in fairface(*pack, "--out", tmp_path / "none", "--no-annotations")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("gender=kind", "no column 'kind'"),
        ("gender=sex,path=file", "no column 'file'"),
        ("race=picture", "path=COLUMN"),
    ],
)
def test_columns_that_the_table_lacks_are_refused(portraits, tmp_path, columns, message):
    options = ("--annotations", tmp_path / "own.csv", "--columns", columns)
    assert message in error_line("shards", "--data", portraits, "--out", tmp_path / "out", *options)
    assert not list((tmp_path / "out").rglob("*.tar"))


def test_existing_synthetic_faces_are_packed(tmp_path):
    fairface("synth", "--out", tmp_path, "--count", 30, "--size", 32, "--gender", "female=1")
    assert "30 images" in fairface("shards", "--out", tmp_path)
    assert set(pl.read_parquet(tmp_path / "shards" / "images.parquet")["gender"]) == {"female"}


def test_synthetic_faces_do_not_replace_other_images(packed_photos):
    line = error_line("shards", "--out", packed_photos)
    assert "1 images of" in line
    assert "--data" in line
    assert fairface("verify", "--out", packed_photos)


@pytest.fixture
def packed_photos(tmp_path):
    """An OUT folder with an image that `fairface synth` did not render."""
    from PIL import Image

    (tmp_path / "photos").mkdir()
    Image.effect_noise((64, 64), 50).convert("RGB").save(tmp_path / "photos" / "a.png")
    fairface("shards", "--out", tmp_path / "out", "--data", tmp_path / "photos")
    return tmp_path / "out"
