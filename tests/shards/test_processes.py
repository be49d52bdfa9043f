"""Worker processes run nothing of the working folder, end with their parent, and are missed when they are killed."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from shards import dali_decoder
from shards.dali_decoder import DaliDecoder
from shards.errors import FairfaceError
from shards.processes import WorkerContext, warm_up, worker_pool
from tests.shards.sample_images import GOOD

FAIRFACE = Path(sys.executable).with_name("fairface")
RENDER = "from pipeline.labelling.embedded_fit import render_faces\nif __name__ == '__main__': render_faces(2100, 1)\n"
TRAPS = ("csv", "pickle", "PIL", "json", "socket", "sitecustomize", "shards/__init__", "numpy/__init__")


@pytest.fixture
def trap(tmp_path) -> Path:
    """A working folder whose modules, if imported, leave a file."""
    folder = tmp_path / "trap"
    for name in TRAPS:
        path = folder / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"open({str(tmp_path / 'executed')!r}, 'a').write({name!r} + ' ')\n")
    return folder


def user_environment() -> dict[str, str]:
    """Without what tests add to the path of their processes."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONSAFEPATH")}


def run_in(folder: Path, *words: object) -> subprocess.CompletedProcess:
    command = [str(word) for word in words]
    return subprocess.run(
        command,
        cwd=folder,
        env=user_environment(),
        capture_output=True,
        text=True,
        timeout=200,
        stdin=subprocess.DEVNULL,
    )


def test_no_command_executes_the_code_of_the_working_folder(trap, tmp_path):
    script = tmp_path / "render.py"
    script.write_text(RENDER)
    for words in (
        [FAIRFACE, "synth", "--data", tmp_path / "faces", "--count", 310, "--size", 32, "--workers", 2],
        [FAIRFACE, "shards", "--data", tmp_path / "faces", "--out", tmp_path, "--workers", 2, "--no-check"],
        [FAIRFACE, "verify", "--out", tmp_path, "--workers", 2],
        [sys.executable, "-m", "pipeline.cli", "shards", "--data", tmp_path / "faces", "--out", tmp_path / "two"],
        [sys.executable, script],  # a part of `fairface label`
    ):
        done = run_in(trap, *words)
        assert done.returncode == 0, done.stderr
        assert not (tmp_path / "executed").exists(), (words, (tmp_path / "executed").read_text())


def test_processes_that_libraries_start_inherit_the_safe_path(trap, tmp_path):
    script = tmp_path / "start.py"
    script.write_text(
        "import subprocess, sys, pipeline.cli.main\nsubprocess.run([sys.executable, '-c', 'import csv'])\n"
    )
    assert run_in(trap, sys.executable, script).returncode == 0
    assert not (tmp_path / "executed").exists()


def children(parent: int) -> list[int]:
    """The processes that a process has started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(folder.name))
        except OSError:  # it has ended
            continue
    return found


def workers(parent: int) -> list[int]:
    """The processes that the fork server of a process has started."""
    return [worker for server in children(parent) for worker in children(server)]


@pytest.fixture
def many_faces(tmp_path) -> Path:
    done = run_in(tmp_path, FAIRFACE, "synth", "--data", "faces", "--count", 310, "--size", 256)
    assert done.returncode == 0, done.stderr
    return tmp_path / "faces"


@pytest.mark.parametrize("command", ["synth", "shards", pytest.param("label", marks=pytest.mark.attack)])
def test_a_killed_worker_ends_the_command_with_one_line(many_faces, tmp_path, command):
    script = tmp_path / "render.py"
    script.write_text(RENDER)
    words = {
        "synth": [FAIRFACE, "synth", "--data", tmp_path / "new", "--count", 3000, "--workers", 2],
        "shards": [FAIRFACE, "shards", "--data", many_faces, "--out", tmp_path, "--workers", 2, "--shard-images", 9],
        "label": [sys.executable, script],
    }[command]
    with subprocess.Popen(map(str, words), env=user_environment(), stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and len(workers(process.pid)) < 2:
            time.sleep(0.01)
        started = workers(process.pid)
        os.kill(started[0], signal.SIGKILL)
        _, printed = process.communicate(timeout=20)
    assert process.returncode == 1
    lines = printed.splitlines()
    assert "a worker process crashed, or was killed" in lines[-1]
    assert len(lines) == 1 or command == "label"  # which is not run by the command line
    assert not [worker for worker in started if Path(f"/proc/{worker}").exists()]
    if command == "synth":
        assert not (tmp_path / "new").exists()


def test_an_image_is_decoded_again_when_its_process_was_killed():
    image = GOOD["bmp"][1]
    with DaliDecoder(1) as dali:
        assert dali.find_error(image) is None
        for process in list(dali.current_pool()._processes.values()):
            os.kill(process.pid, signal.SIGKILL)
        assert dali.find_error(image) is None


def test_decoders_that_cannot_start_are_not_a_fault_of_the_image(monkeypatch):
    def broken_pool(count: int, **_: object) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(count, WorkerContext(), initializer=os._exit, initargs=(1,))

    monkeypatch.setattr(dali_decoder, "new_pool", broken_pool)
    with DaliDecoder(1) as dali, pytest.raises(FairfaceError, match="worker process"):
        dali.find_error(GOOD["bmp"][1])


def kill_an_idle_worker(pool: ProcessPoolExecutor) -> None:
    """Kill one of two, perhaps the one that holds the lock of their queue, and give work to the other."""
    warm_up(pool, 2)
    assert {pool.submit(os.getpid).result(20) for _ in range(20)}
    os.kill(next(iter(pool._processes)), signal.SIGKILL)
    for _ in range(100):
        pool.submit(time.sleep, 0.02).result(20)


def test_an_idle_worker_that_is_killed_does_not_make_the_others_wait():
    with pytest.raises(FairfaceError, match="worker process"), worker_pool(2, preload="shards.worker") as pool:
        kill_an_idle_worker(pool)


def test_workers_end_with_their_parent(tmp_path):
    words = [FAIRFACE, "synth", "--data", tmp_path / "new", "--count", 30_000, "--workers", 2]
    process = subprocess.Popen(map(str, words), env=user_environment())
    while process.poll() is None and len(workers(process.pid)) < 2:
        time.sleep(0.01)
    started = workers(process.pid)
    process.kill()
    process.wait()
    limit = time.monotonic() + 10
    while any(Path(f"/proc/{worker}").exists() for worker in started) and time.monotonic() < limit:
        time.sleep(0.05)
    assert not [worker for worker in started if Path(f"/proc/{worker}").exists()]
