"""Output files that the user names are written through links, pipes and devices, which stay what they are."""

import os
import shutil
import stat
import threading
from pathlib import Path

import pytest
from PIL import Image

from pipeline.bench import run as bench_run
from pipeline.labelling import embedded
from tests.pipeline.cli.helpers import error_line, fairface

# Every option that names a file to be written, as the words that go before the name.
OUTPUTS = {
    "sql": ("sql", "composition", "--format", "csv", "-o"),
    "sql table": ("sql", "composition", "-o"),
    "sql json": ("sql", "composition", "--format", "json", "-o"),
    "sql parquet": ("sql", "composition", "--format", "parquet", "-o"),
    "sql typed": ("sql", "-c", "select 1", "--format", "markdown", "-o"),
    "label": ("label", "--input-dir", "faces", "--out-csv"),
    "bench json": ("bench", "nothing", "--json"),
    "bench markdown": ("bench", "nothing", "--markdown"),
}
TRIED = {"outputs to links, pipes, devices, open files and folders": 14 * len(OUTPUTS)}
outputs = pytest.mark.parametrize("words", OUTPUTS.values(), ids=OUTPUTS)


@pytest.fixture
def folder(tmp_path, packed, quick_labeller, monkeypatch) -> Path:
    """The working folder of a command: with faces, and benchmarks that measure nothing."""
    encode_face(tmp_path / "faces")
    shutil.copytree(packed, tmp_path / "outputs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(embedded, "load_embedded", lambda *_, **__: quick_labeller)
    monkeypatch.setitem(bench_run.STAGES, "nothing", lambda _: iter(()))
    monkeypatch.setattr(bench_run, "write_dataset", lambda root, _: encode_face(root))
    return tmp_path


def encode_face(folder: Path) -> None:
    folder.mkdir()
    Image.new("RGB", (32, 32), "brown").save(folder / "face.jpg")


def write_to(words: tuple[str, ...], path: object) -> str:
    model = ("--clip-model", "embedded") if words[0] == "label" else ()
    return fairface(*words, path, *model)


def kind_of(path: Path) -> int:
    return stat.S_IFMT(os.lstat(path).st_mode)


@outputs
def test_a_link_stays_and_its_target_is_written(folder, words):
    (folder / "target").write_text("old")
    (folder / "link").symlink_to("target")
    (folder / "second link").symlink_to(folder / "link")
    (folder / "dangling").symlink_to("new")
    for name, target in (("second link", "target"), ("dangling", "new")):
        write_to(words, name)
        assert (folder / name).is_symlink()
        assert (folder / target).is_file()
        assert (folder / target).read_bytes() not in (b"old", b"")
    assert (folder / "link").is_symlink()


@outputs
def test_a_pipe_gets_what_a_file_would_get_and_stays_a_pipe(folder, words):
    os.mkfifo(folder / "pipe")
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append((folder / "pipe").read_bytes()))
    reader.start()
    write_to(words, "pipe")
    reader.join()
    write_to(words, "file")
    assert kind_of(folder / "pipe") == stat.S_IFIFO
    assert received == [(folder / "file").read_bytes()]


@outputs
@pytest.mark.parametrize("device", ["/dev/null", "/dev/full", "/dev/zero"])
def test_a_device_stays_a_device_directly_and_behind_a_link(folder, words, device):
    before = os.lstat(device)
    (folder / "link").symlink_to(device)
    for path in (device, "link"):
        if device == "/dev/full":
            with pytest.raises(AssertionError, match="disk is full"):
                write_to(words, path)
        else:
            write_to(words, path)
    assert (folder / "link").is_symlink()
    after = os.lstat(device)
    assert (kind_of(Path(device)), after.st_rdev, after.st_ino) == (stat.S_IFCHR, before.st_rdev, before.st_ino)


@outputs
@pytest.mark.parametrize("path", ["/dev/fd/{}", "/proc/self/fd/{}"])
def test_an_open_file_is_written_through_its_number(folder, words, path):
    read, write = os.pipe()
    try:
        write_to(words, path.format(write))
        os.close(write)
        with open(read, "rb") as file:
            assert file.read()
    except BaseException:
        os.close(read)
        raise


@outputs
def test_a_folder_and_a_loop_are_refused_in_one_line_and_stay(folder, words):
    (folder / "folder").mkdir()
    (folder / "folder" / "mine").write_text("mine")
    (folder / "link").symlink_to("folder")
    (folder / "loop").symlink_to("loop")
    model = ("--clip-model", "embedded") if words[0] == "label" else ()
    for name in ("folder", "link"):
        assert "is a directory" in error_line(*words, name, *model, code=2)
    assert "leads to itself" in error_line(*words, "loop", *model)
    assert [entry.name for entry in (folder / "folder").iterdir()] == ["mine"]
    assert (folder / "link").is_symlink()
    assert (folder / "loop").is_symlink()


@outputs
def test_a_failed_output_leaves_the_old_file(folder, words, monkeypatch):
    (folder / "file").write_text("old")

    def fail(*_, **__):
        raise OSError(28, "No space left on device", "file")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(AssertionError, match="disk is full"):
        write_to(words, "file")
    assert (folder / "file").read_text() == "old"
    assert not [path for path in folder.iterdir() if path.name.endswith(".partial")]
