"""Trainings in processes of their own: killed, stopped by a signal, and shared by two ranks."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import polars as pl
import torch

from pipeline.gan.options import PRESETS
from pipeline.training import checkpoint
from pipeline.training.run_directory import read_run
from pipeline.training.signals import StopSignals
from shards.workspace import Workspace
from tests.pipeline.gan.helpers import is_equal, run_weights, train_run, wait_for_checkpoint

OPTIONS = replace(PRESETS["sketch"], image_size=32, width_g=8, width_d=8, batch_size=16)
WORDS = "--preset sketch --image-size 32 --width-g 8 --width-d 8 --batch-size 16 --save-every-epoch 1"  # the same


def train_command(workspace: Workspace, run: str, steps: int) -> list[str]:
    words = f"train --out {workspace.root} --run {run} --steps {steps} {WORDS}"
    return [sys.executable, "-m", "pipeline.cli", *words.split()]


def same_threads() -> dict[str, str]:
    """The environment of a process that rounds as this one does."""
    return os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}


def torchrun_command(workspace: Workspace, run: str, steps: int, *, feed: str) -> list[str]:
    # "--": otherwise torchrun takes our --run for an abbreviation of one of its own options
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--"]
    return [*words, *train_command(workspace, run, steps)[2:], "--feed", feed]


def saved_step(workspace: Workspace, run: str) -> int:
    return checkpoint.checkpoint_step(checkpoint.list_checkpoints(workspace.run(run).checkpoints)[-1])


def test_a_killed_run_resumes_to_the_same_weights(workspace):
    train_run(workspace, 200, OPTIONS, run="uninterrupted")
    process = subprocess.Popen(train_command(workspace, "killed", 200), env=same_threads())
    wait_for_checkpoint(workspace.run("killed").checkpoints, process)
    assert process.poll() is None
    process.kill()
    process.wait()
    assert saved_step(workspace, "killed") < 200
    assert not train_run(workspace, 200, OPTIONS, run="killed").unchanged
    assert is_equal(run_weights(workspace, "uninterrupted", 200), run_weights(workspace, "killed", 200))


def test_two_ranks_train_one_network_and_resume_after_a_kill_to_the_same_weights(workspace):
    command = torchrun_command(workspace, "uninterrupted", 150, feed="resident")
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("trained 150 steps") == 1
    command = torchrun_command(workspace, "killed", 150, feed="streaming")
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    wait_for_checkpoint(workspace.run("killed").checkpoints, process)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()  # in sessions of their own
    for number in (process.pid, *map(int, workers)):
        os.kill(number, signal.SIGKILL)
    process.wait()
    assert saved_step(workspace, "killed") < 150
    subprocess.run(command, check=True, capture_output=True, timeout=200)
    # the two runs also have different feeds
    assert is_equal(run_weights(workspace, "uninterrupted", 150), run_weights(workspace, "killed", 150))
    assert pl.read_parquet(workspace.run("uninterrupted").steps)["images"].to_list()[-1] == 150 * 16
    # another number of processes resumes what two have trained
    single = train_run(workspace, 170, OPTIONS, run="uninterrupted")
    assert (single.unchanged, single.config.steps) == (False, 170)
    assert saved_step(workspace, "uninterrupted") == 170


def test_sigterm_saves_and_exits_with_its_own_code(workspace):
    process = subprocess.Popen(train_command(workspace, "stopped", 100_000), stderr=subprocess.PIPE, text=True)
    wait_for_checkpoint(workspace.run("stopped").checkpoints, process)
    os.kill(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "Progress is saved; rerun the same command to resume." in errors
    assert "Traceback" not in errors
    assert read_run(workspace.run("stopped")).status == "stopped"


def test_signals_only_request_an_end_and_handlers_are_restored():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    with StopSignals() as signals:
        assert not signals.received
        os.kill(os.getpid(), signal.SIGTERM)
        assert (signals.received, signals.exit_code) == (True, 75)
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.exit_code == 130
        assert signal.getsignal(signal.SIGINT) == before[signal.SIGINT]  # a second Ctrl-C ends at once
    assert {number: signal.getsignal(number) for number in before} == before


def test_an_error_of_all_ranks_is_printed_once(tmp_path):
    done = subprocess.run(
        torchrun_command(Workspace(tmp_path), "never", 3, feed="auto"), capture_output=True, text=True
    )
    assert done.returncode != 0
    assert done.stderr.count("Error: no finished shards in ") == 1
    assert not list(tmp_path.iterdir())


def test_a_second_process_is_refused_while_one_trains(workspace):
    command = train_command(workspace, "mine", 100_000)
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        wait_for_checkpoint(workspace.run("mine").checkpoints, process)
        for more in ((), ("--force",)):
            refused = subprocess.run([*command, *more], capture_output=True, text=True)
            assert refused.returncode == 1
            assert refused.stderr.startswith("Error: another process is using ")
            assert process.poll() is None
    finally:
        process.kill()
        process.wait()
