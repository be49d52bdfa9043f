"""Stages on a disk that fills up: one line, nothing lost, and the same command succeeds once there is space.

The disk is a small tmpfs over OUT in a mount namespace of its own, which another `Server` runs in.
"""

import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.attacks.helpers import (
    STAGES,
    Result,
    Server,
    Stage,
    differences,
    lost_files,
    own_files,
    read_tree,
    write_csv_files,
)

DISK_BYTES = 768 << 20
PAGE = os.sysconf("SC_PAGE_SIZE")
POLL_SECONDS = 0.001
LEVELS = {
    "almost nothing": "commands with almost no space",
    "half": "commands with half of the space they need",
    "just short": "commands with a page less than they need",
}
pytestmark = pytest.mark.attack  # a finished job takes a minute to prepare

CASES = [(name, level) for name in STAGES for level in LEVELS]
TRIED = {words: len(STAGES) for words in LEVELS.values()}


class Disk:
    """A full or empty disk with OUT, and the server that sees it."""

    def __init__(self, server: Server, out: Path):
        self.server = server
        self.out = out  # as the server sees it
        self.root = Path(f"/proc/{server.process.pid}/root{out}")  # as this process sees it
        self.filler = self.root / "other-file.bin"

    def free(self) -> int:
        status = os.statvfs(self.root)
        return status.f_bavail * status.f_frsize

    def fill(self, left: int) -> None:
        """Let another file take all space but `left` bytes, rounded to whole pages."""
        with self.filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(self.free() - left // PAGE * PAGE, 1))

    def reset(self, content: Path) -> None:
        """An empty disk with a copy of `content`."""
        for path in self.root.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        shutil.copytree(content, self.root, symlinks=True, dirs_exist_ok=True)

    def run(self, stage: Stage) -> Result:
        return self.server.run(*stage.command(self.out), root=self.out)

    def measure(self, stage: Stage) -> int:
        """The bytes that a stage needs at its peak, by running it."""
        before = lowest = self.free()
        ended = threading.Event()

        def poll() -> None:
            nonlocal lowest
            while not ended.wait(POLL_SECONDS):
                lowest = min(lowest, self.free())

        poller = threading.Thread(target=poll)
        poller.start()
        try:
            result = self.run(stage)
        finally:
            ended.set()
            poller.join()
        assert result.code == 0, result.output
        return before - min(lowest, self.free())


@contextmanager
def mounted_server(scratch: Path, out: Path) -> Iterator[Server]:
    """A server that sees a tmpfs in the place of `out`."""
    mount = f'mount -t tmpfs -o size={DISK_BYTES} disk "$0" && exec "$@"'
    with Server(scratch, launcher=["unshare", "-Urm", "sh", "-c", mount, str(out)]) as server:
        yield server


@pytest.fixture(scope="module")
def disk(base, tmp_path_factory):
    out, scratch = base / "out", tmp_path_factory.mktemp("server")
    try:
        subprocess.run(["unshare", "-Urm", "mount", "-t", "tmpfs", "disk", out], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no tmpfs can be mounted in a namespace of this user: {error}")
    write_csv_files(scratch)
    with mounted_server(scratch, out) as server:
        yield Disk(server, out)


@pytest.fixture(scope="module")
def undisturbed(disk, base):
    """What a stage leaves behind on an empty disk, its own files, and the bytes that it needs; each runs once."""
    results: dict[str, tuple[dict[str, str], set[str], int]] = {}

    def run(name: str) -> tuple[dict[str, str], set[str], int]:
        if name not in results:
            stage = STAGES[name]
            disk.reset(base / stage.after)
            needed = disk.measure(stage)
            results[name] = read_tree(disk.root), own_files(stage, base / stage.after, disk.root), needed
        return results[name]

    return run


@pytest.mark.parametrize(
    ("name", "level"),
    CASES,
)
def test_a_full_disk(disk, undisturbed, base, name, level):
    stage = STAGES[name]
    expected, own, needed = undisturbed(name)
    disk.reset(base / stage.after)
    before = read_tree(disk.root)
    disk.fill({"almost nothing": PAGE, "half": needed // 2, "just short": max(needed - PAGE, 0)}[level])
    result = disk.run(stage)
    disk.filler.unlink()
    assert "Traceback" not in result.output, result.output
    may_succeed = level == "just short" or stage.replaces  # which may first remove what it replaces
    assert result.code == 1 or (result.code == 0 and may_succeed), result.output
    if result.code:
        (error,) = [line for line in result.output.splitlines() if line.startswith("Error:")]
        assert re.search("space|free|left", error), error
    assert not lost_files(before, own, read_tree(disk.root)), result.output
    assert not list(disk.root.rglob("*.partial"))
    again = disk.run(stage)
    assert again.code == 0, again.output
    assert not differences(expected, read_tree(disk.root))
