"""What a user can mend becomes one line and an exit code; a bug keeps its traceback."""

import errno
import os
import signal
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from pipeline.cli.main import Group
from shards.errors import FairfaceError
from tests.pipeline.cli.helpers import error_line, fairface


class OtherExitCode(FairfaceError):
    """An error with an exit code of its own."""

    exit_code = 75


def fail_with(error: BaseException) -> Result:
    """The result of a command whose work raises `error`."""

    @click.group(cls=Group)
    def group() -> None: ...

    @group.command()
    def work() -> None:
        raise error

    return CliRunner().invoke(group, ["work"])


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (FairfaceError("wrong\n  input"), 1, "Error: wrong input"),
        (OtherExitCode("stopped"), 75, "Error: stopped"),
        (FileNotFoundError(errno.ENOENT, "No such file", "/a"), 1, "Error: /a can't be used: No such file"),
        (OSError(errno.ENOSPC, "No space left"), 1, "Error: the disk is full"),
        (OSError(errno.EDQUOT, "Quota exceeded", "/a"), 1, "Error: the disk is full"),
        (MemoryError(), 1, "Error: not enough memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate"), 1, "Error: not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 1, "Error: not enough memory"),
        (KeyboardInterrupt(), 130, "Interrupted. Progress is saved; rerun the same command to resume."),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_what_a_user_can_mend_is_one_line(error, code, line):
    result = fail_with(error)
    assert result.exit_code == code
    assert result.output.splitlines()[-1].startswith(line)
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    "error", [ValueError("a bug"), TypeError("a bug"), RuntimeError("a bug"), OSError("a bug"), FloatingPointError()]
)
def test_a_bug_keeps_its_traceback(error):
    result = fail_with(error)
    assert result.exception is error
    assert "Error:" not in result.output


def test_the_environment_variable_shows_any_traceback(monkeypatch):
    monkeypatch.setenv("FAIRFACE_DEBUG", "1")
    error = FairfaceError("wrong input")
    assert fail_with(error).exception is error


def test_the_handler_of_sigterm_is_restored():
    before = signal.getsignal(signal.SIGTERM)
    fail_with(FairfaceError("wrong input"))
    assert signal.getsignal(signal.SIGTERM) == before


def test_wrong_input_is_explained_in_one_line(tmp_path, packed):
    empty, wrong = tmp_path / "empty", tmp_path / "wrong"
    empty.mkdir()
    wrong.mkdir()
    Image.new("RGB", (64, 64)).save(wrong / "a.png")
    (wrong / "train.csv").write_text("a,b\n1,2\n")
    assert "no folder" in error_line("shards", "--out", tmp_path, "--data", tmp_path / "missing")
    assert "no images" in error_line("shards", "--out", tmp_path, "--data", empty)
    assert "not those of a known layout" in error_line("shards", "--out", tmp_path, "--data", wrong)
    fairface("shards", "--out", tmp_path / "other", "--data", wrong, "--no-annotations")
    assert "cpu, cuda" in error_line("train", "--out", packed, "--device", "tpu")
    assert "women" in error_line("synth", "--out", tmp_path, "--gender", "women=1", code=2)
    assert "48" in error_line("train", "--out", packed, "--image-size", "48", code=2)
    assert "--no-such-option" in error_line("train", "--out", packed, "--no-such-option", code=2)
    assert "nonsense" in error_line("bench", "nonsense")
    assert "--recipe applies to the stage gan" in error_line("bench", "train", "--recipe", "sketch", code=2)
    assert not list(tmp_path.glob("shards/*"))


def test_an_output_folder_that_no_document_can_name_is_refused():
    assert "not valid UTF-8" in error_line("sql", "runs", "--out", "\udcff", code=2)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_is_reported_and_leaves_no_partial_file(synthetic_root, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    words = ["-m", "pipeline.cli", "shards", "--data", synthetic_root, "--out", disk, "--shard-images", "40"]
    try:
        failed = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True)
        assert failed.returncode == 1
        assert "the disk is full" in failed.stderr
        assert "Traceback" not in failed.stderr
        assert not list((disk / "shards").glob("*.partial")) + list((disk / "shards").glob(".*.partial"))
    finally:
        subprocess.run(["umount", disk], check=True)
