"""Replacing described files: nothing is lost or mixed by a kill at any step, a full disk, links or folders."""

import errno
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from shards import replacement
from shards.documents import Document, changed_files, read_document
from shards.errors import FairfaceError
from shards.replacement import replace_described_files


@dataclass(kw_only=True)
class Content(Document):
    files: dict[str, str]


def replace(folder: Path, version: bytes) -> None:
    """Replace the files a and b, the folder c, and remove d."""
    new = folder / ".c"
    new.mkdir(exist_ok=True)
    (new / "e").write_bytes(version)
    replace_described_files(
        folder / "document.json",
        {folder / name: lambda file: file.write(version) for name in "ab"},
        describe=lambda files: Content(files=files),
        obsolete=[folder / "d"],
        folders={new: folder / "c"},
    )


def versions(folder: Path) -> set[bytes]:
    return {path.read_bytes() for path in (folder / "a", folder / "b", folder / "c" / "e") if path.exists()}


@pytest.fixture
def folder(tmp_path) -> Path:
    replace(tmp_path, b"old")
    (tmp_path / "d").write_bytes(b"obsolete")
    return tmp_path


def replace_until(folder: Path, step: int) -> int:
    """Replace the files in a process that is killed before its system call `step`; its exit status, 9 if killed."""
    if (child := os.fork()) == 0:
        calls = 0

        def counted(call):
            def run(*args, **kwargs):
                nonlocal calls
                calls += 1
                if calls == step:
                    os._exit(9)
                return call(*args, **kwargs)

            return run

        for name in ("open", "replace", "rename", "unlink", "rmdir", "fsync"):
            setattr(os, name, counted(getattr(os, name)))
        replace(folder, b"new")
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_at_every_step_of_a_kill_a_document_describes_what_is_there(tmp_path):
    for step in range(1, 100):
        folder = tmp_path / str(step)
        folder.mkdir()
        replace(folder, b"old")
        (folder / "d").write_bytes(b"obsolete")
        status = replace_until(folder, step)
        document = read_document(folder / "document.json", Content)
        if document:
            assert not changed_files(folder, document.files)
            assert len(versions(folder)) == 1
        replace(folder, b"new")
        assert versions(folder) == {b"new"}
        assert sorted(path.name for path in folder.iterdir()) == ["a", "b", "c", "document.json"]
        if status == 0:
            break
    assert step > 10


@pytest.mark.parametrize("writes", range(3))
def test_a_full_disk_loses_nothing(folder, monkeypatch, writes):
    def fsync(_):
        nonlocal writes
        if (writes := writes - 1) < 0:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="No space"):
        replace(folder, b"new")
    document = read_document(folder / "document.json", Content)
    assert document is not None
    assert not changed_files(folder, document.files)
    assert versions(folder) == {b"old"}
    assert (folder / "d").exists()
    assert not list(folder.glob("*.partial"))


def test_the_new_files_are_on_the_disk_before_the_old_ones_are_removed(folder, monkeypatch):
    def remove_files(_):
        partial = [path.read_bytes() for path in folder.glob(".*.partial")]
        assert len(partial) == 3
        assert partial.count(b"new") == 2
        raise KeyboardInterrupt

    monkeypatch.setattr(replacement, "remove_files", remove_files)
    with pytest.raises(KeyboardInterrupt):
        replace(folder, b"new")
    assert versions(folder) == {b"old"}


@pytest.mark.parametrize("name", ["document.json", "a", "d", "c"])
def test_what_is_in_the_place_of_a_file_or_folder_is_refused_before_anything_is_removed(folder, tmp_path_factory, name):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "precious").write_bytes(b"precious")
    path = folder / name
    if name == "c":
        (path / "e").unlink()
        path.rmdir()
        path.symlink_to(elsewhere)
    else:
        path.unlink()
        path.mkdir()
        (path / "precious").write_bytes(b"precious")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.parent.name != ".c"}
    with pytest.raises(FairfaceError, match=f"{name} is .*where a .* should be"):
        replace(folder, b"new")
    assert {path: path.read_bytes() for path in before} == before
    assert (elsewhere / "precious").read_bytes() == b"precious"
