"""Files that are not what their names promise neither stop the packer nor are lost to it."""

import os
import re
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shards import annotations
from shards.errors import FairfaceError
from shards.images_table import read_images
from shards.locks import exclusive_lock
from shards.unfinished import read_rows
from shards.verify import verify
from shards.workspace import ShardsFolder, SyntheticFolder
from tests.pipeline.cli.helpers import error_line, fairface
from tests.shards.packing import interrupted_pack, pack_into, pack_result
from tests.shards.sample_images import encoded_image


@pytest.fixture
def photos(tmp_path) -> Path:
    (tmp_path / "photos" / "a").mkdir(parents=True)
    for number in range(3):
        (tmp_path / "photos" / "a" / f"{number}.jpg").write_bytes(encoded_image())
    return tmp_path / "photos"


def test_pipes_devices_and_loops_among_tables_and_images_are_skipped_and_reported(photos, tmp_path):
    os.mkfifo(photos / "pipe.csv")
    os.mkfifo(photos / "a" / "pipe.csv")
    os.mkfifo(photos / "a" / "pipe.jpg")
    (photos / "loop.csv").symlink_to("loop.csv")
    (photos / "a" / "zero.csv").symlink_to("/dev/zero")
    (photos / "a" / "zero.jpg").symlink_to("/dev/zero")
    (photos / "a" / "loop.jpg").symlink_to("loop.jpg")
    (photos / "folder.csv").mkdir()
    printed = fairface("shards", "--data", photos, "--out", tmp_path)
    assert "3 images packed" in printed
    assert "3 unreadable" in printed
    assert re.findall(r"Warning: \S*/(\S+\.csv) could not be read", printed) == [
        "pipe.csv", "zero.csv", "folder.csv", "loop.csv", "pipe.csv"
    ]  # fmt: skip
    assert "pipe.csv is not a regular file" in error_line(
        "shards", "--data", photos, "--out", tmp_path / "two", "--annotations", photos / "pipe.csv"
    )


def test_a_hidden_table_is_not_read(photos, tmp_path):
    (photos / ".hidden").mkdir()
    (photos / ".hidden" / "train.csv").write_text("Image Path,Gender\na/0.jpg,1\n")
    assert pack_into(photos, tmp_path / "shards").tables == []


def test_unreadable_files_are_reported_without_a_table_too(photos, tmp_path):
    (photos / os.fsdecode(b"not unicode \xff.jpg")).write_bytes(encoded_image())
    (photos / os.fsdecode(b"folder \xff")).mkdir()
    printed = fairface("shards", "--data", photos, "--out", tmp_path)
    assert "no annotation table was found" in printed
    assert r"Warning: not unicode \udcff.jpg could not be read" in printed
    assert r"Warning: folder \udcff could not be read" in printed
    assert len(ShardsFolder(tmp_path / "shards").document.read_text().split("udcff")) == 3


CELLS = st.one_of(
    st.sampled_from(
        ["Image Path", "Gender", "Age", "Skin Tone", "Target", "Intersection", "Ground Truth Race", "split"]
    ),
    st.sampled_from(["0", "1", "-1", "1e400", "nan", "9" * 30, '"', '"a\nb"', "a/b.jpg", "\0", ""]),
    st.text(max_size=6),
)


@settings(max_examples=300, suppress_health_check=list(HealthCheck))
@given(st.one_of(st.binary(max_size=300), st.lists(st.lists(CELLS, max_size=6).map(",".join)).map("\n".join)))
def test_no_table_ends_in_a_traceback(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "table.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode(errors="surrogatepass"))
    try:
        annotations.read_tables([path])
    except FairfaceError as error:
        assert str(error)  # noqa: PT017 - any other exception fails the test


@settings(max_examples=200, suppress_health_check=list(HealthCheck))
@given(st.one_of(st.binary(max_size=300), st.lists(st.lists(CELLS, max_size=9).map(",".join)).map("\n".join)))
def test_no_rows_of_a_finished_shard_end_in_a_traceback(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "rows.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode(errors="surrogatepass"))
    try:
        read_rows(path)
    except FairfaceError as error:
        assert "is damaged" in str(error)  # noqa: PT017


@pytest.mark.parametrize("column", ["key", "shard", "bytes", "sha256", "status", "gender"])
def test_a_table_of_images_of_another_shape_is_one_line(packed, tmp_path, column):
    images = pl.read_parquet(packed / "shards" / "images.parquet")
    wrong = [images.with_columns(pl.lit(1.5).alias(column))]
    if column != "gender":  # a table of another attribute file may lack it
        wrong.append(images.drop(column))
    if column in ("key", "shard", "bytes", "sha256"):
        wrong.append(images.with_columns(pl.lit(None, images.schema[column]).alias(column)))
    if column == "bytes":
        wrong.append(images.with_columns(bytes=-pl.col("bytes")))
    for frame in wrong:
        frame.write_parquet(tmp_path / "images.parquet")
        with pytest.raises(FairfaceError, match=r"images\.parquet") as error:
            read_images(tmp_path / "images.parquet", sha256=None)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["plan.json", "shard-000000.tar.csv"])
@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff", b"00000000,a,b,c,d,e,f\n"])
def test_a_damaged_unfinished_pack_is_finished_or_one_line(synthetic_root, tmp_path, name, content):
    folder = interrupted_pack(synthetic_root, tmp_path)
    (folder / ".unfinished" / name).write_bytes(content)
    try:
        pack_into(synthetic_root, folder, shard_images=20)
    except FairfaceError as error:
        assert name == "plan.json"
        assert "--force" in str(error) or "remove it" in str(error)  # noqa: PT017
        pack_into(synthetic_root, folder, shard_images=20, force=True)
    assert verify(ShardsFolder(folder), progress=False) == ([], 240)


def test_a_folder_in_the_place_of_a_file_is_refused_before_anything_is_removed(photos, tmp_path):
    shards = ShardsFolder(tmp_path / "shards")
    pack_into(photos, shards.folder)
    shards.images.unlink()
    shards.images.mkdir()
    (shards.images / "mine").write_bytes(b"mine")
    before = sorted(shards.folder.rglob("*"))
    with pytest.raises(FairfaceError, match=r"images\.parquet is a folder"):
        pack_into(photos, shards.folder, force=True)
    assert sorted(shards.folder.rglob("*")) == before


def test_links_are_replaced_and_what_they_lead_to_stays(photos, tmp_path):
    shards, precious = ShardsFolder(tmp_path / "shards"), tmp_path / "precious"
    pack_into(photos, shards.folder)
    precious.write_bytes(b"mine")
    for path in [shards.images, shards.unmatched, shards.document, *shards.tars_and_indices()]:
        path.unlink()
        path.symlink_to(precious)
    for name in (".shard-000000.tar.partial", ".shard-000000.idx.partial", ".images.parquet.partial"):
        (shards.folder / name).symlink_to(precious)
    pack_into(photos, shards.folder, force=True)
    assert precious.read_bytes() == b"mine"
    assert verify(shards, progress=False) == ([], 3)


def test_a_link_to_a_folder_in_the_place_of_the_state_is_refused(photos, tmp_path):
    (tmp_path / "shards").mkdir()
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "shard-000000.tar.csv").write_bytes(b"mine")
    (tmp_path / "shards" / ".unfinished").symlink_to(tmp_path / "precious")
    for force in (False, True):
        with pytest.raises(FairfaceError, match="is a link"):
            pack_into(photos, tmp_path / "shards", force=force)
    assert (tmp_path / "precious" / "shard-000000.tar.csv").read_bytes() == b"mine"


def test_tars_of_other_programs_stay(photos, tmp_path):
    shards = ShardsFolder(tmp_path / "shards")
    shards.folder.mkdir()
    for name in ("shard-000000.tar", "shard-old.tar", "mine.tar"):
        (shards.folder / name).write_bytes(b"mine")
    with pytest.raises(FairfaceError, match=r"shard-000000\.tar does not belong to a known pack"):
        pack_into(photos, shards.folder)
    (shards.folder / "shard-000000.tar").unlink()
    for force in (False, True):
        pack_into(photos, shards.folder, force=force)
    assert [(shards.folder / name).read_bytes() for name in ("shard-old.tar", "mine.tar")] == [b"mine"] * 2


def test_temporary_files_of_killed_workers_are_removed(photos, tmp_path):
    (tmp_path / "shards" / ".unfinished").mkdir(parents=True)
    for name in (".shard-000000.tar.0123abcd.partial", ".unfinished/.shard-000000.tar.csv.0123abcd.partial"):
        (tmp_path / "shards" / name).write_bytes(b"a part")
    pack_into(photos, tmp_path / "shards")
    assert not list(tmp_path.rglob("*.partial"))


def test_faces_are_not_packed_while_they_are_rendered(tmp_path):
    fairface("synth", "--data", tmp_path / "faces", "--count", 5, "--size", 32)
    faces = SyntheticFolder(tmp_path / "faces")
    with (
        exclusive_lock(faces.lock, "rendering"),
        pytest.raises(FairfaceError, match=r"another process is using .*faces"),
    ):
        pack_into(faces.folder, tmp_path / "shards")
    faces.document.unlink()
    with pytest.raises(FairfaceError, match="was stopped before the faces"):
        pack_into(faces.folder, tmp_path / "shards")


def test_a_damaged_table_of_images_does_not_prevent_packing_again(photos, tmp_path):
    shards = ShardsFolder(tmp_path / "shards")
    pack_into(photos, shards.folder)
    whole = shards.images.read_bytes()
    for damaged in (pl.DataFrame({"a": [1]}), pl.read_parquet(shards.images).with_columns(gender=pl.lit("male"))):
        damaged.write_parquet(shards.images)
        assert not pack_result(photos, shards.folder).unchanged
        assert shards.images.read_bytes() == whole
        assert verify(shards, progress=False) == ([], 3)
