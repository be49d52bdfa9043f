"""Writing leaves the old or the new file and follows no link; reading neither hangs nor crashes."""

import json
import os
import threading
from io import BytesIO
from pathlib import Path

import polars as pl
import pytest

from shards import atomic_io
from shards.atomic_io import (
    atomic_write,
    file_sha256,
    open_output,
    read_bytes,
    read_json,
    read_parquet,
    remove_partials,
    remove_tree,
    write_parquet,
)
from shards.errors import FairfaceError

FRAME = pl.DataFrame({"key": ["a", "b"], "n": [1, 2]})


def test_a_failed_write_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(TypeError), atomic_write(path) as file:
        file.write("text")
    assert os.listdir(tmp_path) == ["file"]
    assert path.read_text() == "old"


def test_a_temporary_name_cannot_be_foreseen_and_never_follows_a_link(tmp_path, monkeypatch):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    with atomic_write(tmp_path / "page") as file:
        first = Path(os.readlink(f"/proc/self/fd/{file.fileno()}"))
    with atomic_write(tmp_path / "page") as file:
        assert Path(os.readlink(f"/proc/self/fd/{file.fileno()}")) != first
    monkeypatch.setattr(os, "urandom", bytes)  # an attacker guesses the name all the same
    atomic_io.partial_path(tmp_path / "page").symlink_to(victim)
    with pytest.raises(FileExistsError), atomic_write(tmp_path / "page", clean=False):
        pass
    assert victim.read_text() == "precious"


def test_a_file_replaces_a_link_and_not_what_it_leads_to(tmp_path):
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "page").symlink_to(tmp_path / "victim")
    with atomic_write(tmp_path / "page") as file:
        file.write(b"new")
    assert (tmp_path / "victim").read_text() == "precious"
    assert not (tmp_path / "page").is_symlink()


def test_what_killed_writers_left_is_removed_and_nothing_else(tmp_path):
    kept = ["page", ".page.partial", ".page.0123456.partial", ".pages.01234567.partial", "page.01234567.partial"]
    for name in [*kept, ".page.01234567.partial", ".page.89abcdef.partial"]:
        (tmp_path / name).touch()
    with atomic_write(tmp_path / "page"):
        pass
    assert sorted(os.listdir(tmp_path)) == sorted(kept)
    remove_partials(tmp_path)
    assert ".pages.01234567.partial" not in os.listdir(tmp_path)


@pytest.mark.parametrize("name", ["x" * 255, "ü" * 127, "new\nline", "-x", "[x]"])
def test_every_name_that_a_file_can_have_is_written(tmp_path, name):
    for text in (b"1", b"2"):
        with atomic_write(tmp_path / name) as file:
            file.write(text)
    assert os.listdir(tmp_path) == [name]
    assert (tmp_path / name).read_bytes() == b"2"


def test_output_through_a_link_changes_its_target_and_keeps_the_link(tmp_path):
    target = tmp_path / "target"
    (tmp_path / "link").symlink_to(target)
    for text in (b"1", b"2"):
        with open_output(tmp_path / "link") as file:
            file.write(text)
        assert target.read_bytes() == text
    assert (tmp_path / "link").is_symlink()
    assert sorted(os.listdir(tmp_path)) == ["link", "target"]


def test_output_to_a_pipe_arrives_there_and_it_stays_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    with open_output(tmp_path / "pipe") as file:
        write_parquet(Path("pipe"), FRAME, output=file)
    reader.join()
    assert pl.read_parquet(received[0]).equals(FRAME)
    assert (tmp_path / "pipe").is_fifo()


def test_output_to_a_device_or_an_open_file_is_written_through(tmp_path):
    with open_output(Path("/dev/null")) as file:
        file.write(b"x")
    assert Path("/dev/null").is_char_device()
    with open(tmp_path / "log", "w") as log:
        with open_output(Path(f"/proc/self/fd/{log.fileno()}")) as file:
            file.write(b"first")
        assert os.fstat(log.fileno()).st_ino == (tmp_path / "log").stat().st_ino
    with pytest.raises(OSError, match="No space"), open_output(Path("/dev/full")) as file:
        file.write(b"x")


def test_output_to_a_folder_is_refused(tmp_path):
    with pytest.raises(FairfaceError, match="is a folder"), open_output(tmp_path):
        pass


def test_removing_follows_no_link(tmp_path):
    (tmp_path / "precious" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "precious")
    with pytest.raises(FairfaceError, match="is a link"):
        remove_tree(tmp_path / "link")
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "link").symlink_to(tmp_path / "precious")
    remove_tree(tmp_path / "ours")
    remove_tree(tmp_path / "ours")
    assert sorted(os.listdir(tmp_path)) == ["link", "precious"]
    assert (tmp_path / "precious" / "deep").is_dir()


def test_pipes_devices_and_huge_files_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(FairfaceError, match="not a regular file"):
            read_bytes(path)
        with pytest.raises(FairfaceError, match="not a regular file"):
            read_parquet(path)
    (tmp_path / "file").write_bytes(b"12345")
    assert read_bytes(tmp_path / "file", limit=5) == b"12345"
    with pytest.raises(FairfaceError, match="5 bytes"):
        read_bytes(tmp_path / "file", limit=4)


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "1" * 5000, "\0", b"\xff"])
def test_json_that_cannot_be_read_is_one_clear_error(tmp_path, text):
    (tmp_path / "x.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(FairfaceError, match=r"x\.json"):
        read_json(tmp_path / "x.json")


def test_deep_json_that_python_can_read_is_read(tmp_path):
    (tmp_path / "x.json").write_text("[" * 50 + "]" * 50)
    assert json.dumps(read_json(tmp_path / "x.json")) == "[" * 50 + "]" * 50


def test_a_full_disk_that_polars_reports_as_a_fault_of_parquet_is_one_of_the_disk(monkeypatch):
    def failing(*_: object, **__: object) -> None:
        raise pl.exceptions.ComputeError("parquet: File out of specification: Invalid thrift: transport error")

    monkeypatch.setattr(pl.DataFrame, "write_parquet", failing)
    with open("/dev/full", "wb", 0) as full, pytest.raises(OSError, match="No space left"):
        write_parquet(Path("x.parquet"), FRAME, output=full)
    with pytest.raises(pl.exceptions.ComputeError):  # with space, it is what it says
        write_parquet(Path("x.parquet"), FRAME, output=BytesIO())


def test_a_table_of_another_shape_is_one_clear_error(tmp_path):
    path = tmp_path / "x.parquet"
    write_parquet(path, FRAME)
    assert read_parquet(path, {"n": pl.Int64}).equals(FRAME.select("n"))
    assert read_parquet(path, sha256=file_sha256(path)).equals(FRAME)
    with pytest.raises(FairfaceError, match="n is Int64 instead of String"):
        read_parquet(path, {"key": pl.String, "n": pl.String})
    with pytest.raises(FairfaceError, match="can't be read"):
        read_parquet(path, {"absent": pl.String})


def test_a_flipped_bit_is_found_by_the_hash(tmp_path):
    path = tmp_path / "x.parquet"
    write_parquet(path, FRAME, compress=False)
    digest, data = file_sha256(path), bytearray(path.read_bytes())
    data[10] ^= 1
    path.write_bytes(data)
    with pytest.raises(FairfaceError, match="was changed after it was written"):
        read_parquet(path, sha256=digest)
