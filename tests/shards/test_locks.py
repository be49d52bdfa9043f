"""Writers exclude everybody, readers only writers; folders with links to elsewhere are left alone."""

import os
import subprocess
import sys

import pytest

from shards.errors import FairfaceError
from shards.locks import exclusive_lock, shared_lock

HOLD = """
import sys
from pathlib import Path
from shards import locks
with getattr(locks, sys.argv[1])(Path(sys.argv[2]), "holding"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def hold():
    """Start another process that holds a lock until it is killed."""
    holders = []

    def start(kind, lock):
        command = [sys.executable, "-c", HOLD, kind, str(lock)]
        holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert holder.stdout.readline() == b"held\n"
        holders.append(holder)
        return holder

    yield start
    for holder in holders:
        holder.kill()
        holder.communicate()


@pytest.mark.parametrize(
    ("theirs", "ours", "compatible"),
    [
        ("shared_lock", shared_lock, True),
        ("shared_lock", exclusive_lock, False),
        ("exclusive_lock", shared_lock, False),
        ("exclusive_lock", exclusive_lock, False),
    ],
)
def test_only_readers_share_a_lock_and_it_ends_with_its_process(tmp_path, hold, theirs, ours, compatible):
    lock = tmp_path / "out" / ".lock"
    lock.parent.mkdir()
    holder = hold(theirs, lock)
    if compatible:
        with ours(lock, "reading"):
            pass
    else:
        with (
            pytest.raises(FairfaceError, match=f"another process is using {lock.parent}.*before reading"),
            ours(lock, "reading"),
        ):
            pass
    holder.kill()
    holder.wait()
    with exclusive_lock(lock, "writing"):
        pass


def test_a_new_folder_is_removed_again_if_nothing_was_written(tmp_path):
    with pytest.raises(ValueError, match="no"), exclusive_lock(tmp_path / "new" / ".lock", "writing"):
        raise ValueError("no")
    assert not (tmp_path / "new").exists()
    (tmp_path / "old").mkdir()
    with exclusive_lock(tmp_path / "old" / ".lock", "writing"):
        pass
    with exclusive_lock(tmp_path / "used" / ".lock", "writing"):
        (tmp_path / "used" / "file").touch()
    assert sorted(os.listdir(tmp_path)) == ["old", "used"]


def test_a_reader_creates_no_folder(tmp_path):
    with shared_lock(tmp_path / "none" / ".lock", "reading"):
        pass
    assert not os.listdir(tmp_path)


def test_a_link_to_elsewhere_is_refused_before_anything_is_written(tmp_path):
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "out"
    elsewhere.mkdir()
    folder.mkdir()
    (tmp_path / "file").touch()
    (folder / "file").symlink_to(tmp_path / "file")
    with exclusive_lock(folder / ".lock", "writing"):
        pass
    for target in (elsewhere, tmp_path / "nowhere", folder / "samples", "/dev/zero"):
        (folder / "samples").symlink_to(target)
        with (
            pytest.raises(FairfaceError, match=r"samples is a link, .* replace it with a folder"),
            exclusive_lock(folder / ".lock", "writing"),
        ):
            pass
        (folder / "samples").unlink()


def test_the_lock_itself_is_never_a_link(tmp_path):
    (tmp_path / ".lock").symlink_to(tmp_path / "created")
    with pytest.raises(OSError, match="symbolic links"), exclusive_lock(tmp_path / ".lock", "writing"):
        pass
    assert not (tmp_path / "created").exists()
