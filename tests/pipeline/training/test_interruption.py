"""Trainings in processes of their own: killed, stopped by a signal, and shared by two ranks."""

import os
import signal
import subprocess
import sys
from dataclasses import replace

import polars as pl
from click.testing import CliRunner

from pipeline.cli.main import main
from pipeline.gan.options import PRESETS
from pipeline.gan.trainer import GanTrainer
from pipeline.training import checkpoint
from pipeline.training.run_directory import read_run
from pipeline.training.signals import StopSignals
from shards.workspace import Workspace
from tests.pipeline.gan.helpers import is_equal, run_weights, train_run, wait_for_checkpoint
from tests.ranks import finish_ranks, start_ranks

OPTIONS = replace(PRESETS["sketch"], image_size=32, width_g=8, width_d=8, batch_size=16)
WORDS = "--preset sketch --image-size 32 --width-g 8 --width-d 8 --batch-size 16 --save-every-epoch 1"  # the same


def train_words(workspace: Workspace, run: str, steps: int) -> list[str]:
    return f"train --out {workspace.root} --run {run} --steps {steps} {WORDS}".split()


def saved_step(workspace: Workspace, run: str) -> int:
    return checkpoint.checkpoint_step(checkpoint.list_checkpoints(workspace.run(run).checkpoints)[-1])


def test_a_killed_run_resumes_to_the_same_weights(workspace, torch_server, tmp_path):
    train_run(workspace, 120, OPTIONS, run="uninterrupted")
    (process,) = start_ranks(train_words(workspace, "killed", 120), tmp_path / "log", count=1)
    wait_for_checkpoint(workspace.run("killed").checkpoints, process)
    assert process.is_alive()
    process.kill()
    process.join()
    assert saved_step(workspace, "killed") < 120
    assert not train_run(workspace, 120, OPTIONS, run="killed").unchanged
    assert is_equal(run_weights(workspace, "uninterrupted", 120), run_weights(workspace, "killed", 120))


def test_two_ranks_train_one_network_and_resume_after_a_kill_to_the_same_weights(workspace, torch_server, tmp_path):
    killed = [*train_words(workspace, "killed", 120), "--feed", "streaming"]
    # the two runs also have different feeds
    uninterrupted = [*train_words(workspace, "uninterrupted", 120), "--feed", "resident"]
    ranks = start_ranks(killed, tmp_path / "log")
    wait_for_checkpoint(workspace.run("killed").checkpoints, ranks[0])
    for process in ranks:
        process.kill()
        process.join()
    assert saved_step(workspace, "killed") < 120
    for name, words in {"killed": killed, "uninterrupted": uninterrupted}.items():
        printed = finish_ranks(words, tmp_path / name)
        assert printed.count("trained 120 steps") == 1  # one process prints
    assert is_equal(run_weights(workspace, "uninterrupted", 120), run_weights(workspace, "killed", 120))
    assert pl.read_parquet(workspace.run("uninterrupted").steps)["images"].to_list()[-1] == 120 * 16
    # another number of processes resumes what two have trained
    single = train_run(workspace, 135, OPTIONS, run="uninterrupted")
    assert (single.unchanged, single.config.steps) == (False, 135)
    assert saved_step(workspace, "uninterrupted") == 135


def test_sigterm_saves_and_exits_with_its_own_code(workspace, torch_server, tmp_path):
    (process,) = start_ranks(train_words(workspace, "stopped", 100_000), tmp_path / "log", count=1)
    wait_for_checkpoint(workspace.run("stopped").checkpoints, process)
    os.kill(process.pid, signal.SIGTERM)
    process.join()
    errors = (tmp_path / "log").read_text()
    assert process.exitcode == 75
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
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    # "--": otherwise torchrun takes our --run for an abbreviation of one of its own options
    words = ["-m", "--", "pipeline.cli", *train_words(Workspace(tmp_path), "never", 3)]
    done = subprocess.run([*torchrun, *words], capture_output=True, text=True)
    assert done.returncode != 0
    assert done.stderr.count("Error: no finished shards in ") == 1
    assert not list(tmp_path.iterdir())


def test_a_second_training_is_refused_while_one_trains(workspace, monkeypatch):
    step, refused = GanTrainer.step, []

    def train_again(trainer, number, *batch):
        if number == 0:
            for more in ((), ("--force",)):
                words = [*train_words(workspace, "mine", 2), *more]
                refused.append(CliRunner().invoke(main, words))
        return step(trainer, number, *batch)

    monkeypatch.setattr(GanTrainer, "step", train_again)
    assert train_run(workspace, 2, OPTIONS, run="mine").config.status == "finished"
    assert [done.exit_code for done in refused] == [1, 1]
    assert all(done.stderr.startswith("Error: another process is using ") for done in refused)
