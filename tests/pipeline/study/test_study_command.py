"""`fairface study`: what its TOML may say, what it runs, and how it goes on after changes, failures and kills."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar

import pytest

from pipeline.cli import study as study_command
from pipeline.cli.main import main
from pipeline.cli.study import OPTIONS
from pipeline.study import runner
from pipeline.study.plan import plan_study, read_study, tasks
from pipeline.study.progress import write_run
from shards.documents import read_document, write_document
from shards.study import StudyDocument
from shards.workspace import Workspace
from tests.attacks.helpers import differences, read_tree
from tests.pipeline.cli.helpers import error_line, fairface
from tests.reports.fake_workspace import text_of

STUDY = """
seeds = [0, 1]
samples = 64
[train]
image-size = 32
width-g = 8
width-d = 8
batch-size = 16
steps = 40
[arms.natural]
[arms.truncated.sample]
truncation = 0.5
[arms.uniform.train]
balance = "uniform"
balance-by = "gender"
"""


@pytest.fixture
def out(packed, torch_server, tmp_path) -> Path:
    """An OUT folder with packed images and no run."""
    shutil.copytree(packed, tmp_path / "out")  # where labels are written as well
    return tmp_path / "out"


@pytest.fixture
def study(tmp_path):
    """Write a study's TOML; returns its path."""

    def write(text: str = STUDY, name: str = "s") -> Path:
        path = tmp_path / f"{name}.toml"
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("steps = 40", "stepz = 40", r"train: `fairface train` has no option 'stepz': did you mean 'steps'\?"),
        ("truncation = 0.5", "truncate = 0.5", r"arms.truncated.sample: .* did you mean 'truncation'\?"),
        ("seeds = [0, 1]", "seeds = [0, 0]", "seeds: 0 is listed twice"),
        ("seeds = [0, 1]", "seeds = [-1]", "seeds: -1 is not a whole number"),
        ("seeds = [0, 1]", "", "seeds is missing"),
        ("samples = 64", "sample = 64", "sample is not a table"),
        ("samples = 64", "sampels = 64", "'sampels' is not a key of a study: did you mean 'samples'"),
        ("truncation = 0.5", "", "the arms natural and truncated are alike"),
        ("[arms.natural]", "[arms.same.train]\nbalance = 'natural'\n[arms.natural]", "same and natural are alike"),
        ("[arms.natural]", "[arms.same.train]\npreset = 'sketch'\n[arms.natural]", "same and natural are alike"),
        ("truncation = 0.5", "truncation = -1", "arms.truncated.sample: Invalid value for '--truncation'"),
        ("steps = 40", "steps = true", "train: steps: True is not a text or a number"),
        ("steps = 40", "seed = 4", "'seed' can't be an option of a study"),
        ("steps = 40", "steps = 40\nepochs = 1", "--steps and --epochs are alternatives"),
        ('balance = "uniform"', "", "--balance-by needs --balance"),
        ("[arms.uniform.train]", "[arms.uniform]", "write it below"),
        ("[arms.natural]", "[arms.'a/b']", "arms.a/b: name an arm by"),
        ("[arms.natural]", "[arms.natural]\nout = 'nowhere'", "no finished shards in nowhere"),
        ("[arms.natural]", "[slurm]\narray = 3\n[arms.natural]", "slurm: the study itself sets array"),
        ("[train]", "[train", "not a TOML file"),
    ],
)
def test_a_mistake_in_the_file_is_one_line_and_nothing_is_written(out, study, old, new, message):
    assert old in STUDY
    line = error_line("study", study(STUDY.replace(old, new, 1)), "--out", out)
    assert re.search(message, line), line
    assert not (out / "studies").exists()
    assert not (out / "runs").exists()


def test_every_option_of_training_can_be_given_except_those_that_the_study_sets():
    reserved = {"workspace", "data", "run", "seed", "other_data", "resume", "force"}
    names = {option.name for option in OPTIONS["train"].options.values()}
    assert names == {parameter.name for parameter in main.commands["train"].params} - reserved


def begin(out: Path, file: Path, run: str) -> StudyDocument:
    """Plan a study as `--submit` does, and record that one of its runs has started."""
    workspace = Workspace(out)
    document, _ = plan_study(workspace, read_study(file, OPTIONS))
    folder = workspace.study(document.name)
    write_run(folder, next(one for one in document.runs if one.run == run))
    write_document(folder.document, document)
    return document


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("steps = 40", "steps = 50", "arm natural has another steps"),
        ("samples = 64", "samples = 65", "samples is 65 instead of 64"),
        ("seeds = [0, 1]", "seeds = [1]", "seed 0 is gone"),
        ("[arms.natural]", "[label]\nlimit = 9\n[arms.natural]", "label has other options"),
    ],
)
def test_what_would_change_runs_that_began_is_refused(out, study, old, new, message):
    begin(out, study(), "s.natural.0")
    assert message in error_line("study", study(STUDY.replace(old, new, 1)), "--out", out)


def test_another_content_of_a_named_file_is_refused(out, study, tmp_path):
    shares = tmp_path / "shares.csv"
    shares.write_text("group,share\nfemale,1\n")
    file = study(STUDY.replace('"uniform"', f'"{shares}"', 1))
    begin(out, file, "s.natural.0")
    shares.write_text("group,share\nmale,1\n")
    assert f"{shares} has another content" in error_line("study", file, "--out", out)


def test_arms_and_seeds_may_be_added_and_share_the_training_that_began(out, study):
    begin(out, study(), "s.natural.0")
    new = STUDY.replace("seeds = [0, 1]", "seeds = [0, 1, 2]").replace(
        "[arms.natural]", "[arms.first.sample]\ntruncation = 1\n[arms.natural]"
    )
    document = begin(out, study(new), "s.first.0")
    assert {run.trained_run for run in document.runs if run.arm == "first"} == {f"s.natural.{i}" for i in range(3)}


def test_the_script_for_slurm_has_a_task_for_each_unfinished_training(out, study):
    text = STUDY.replace("[arms.natural]", "[slurm]\naccount = 'abc'\ntime = '01:00:00'\n[arms.natural]")
    script = fairface("study", study(text), "--out", out, "--slurm")
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=True).returncode == 0
    _, tasks, report = re.split("^TASKS\n|<<'TASKS'\n", script, flags=re.M)
    assert "#SBATCH --array=0,1,2,3\n" in tasks  # two arms of the three share their training runs
    assert "#SBATCH --signal=TERM@120\n" in tasks
    assert "#SBATCH --account=abc\n" in tasks
    assert "#SBATCH --time=01:00:00\n" in tasks
    assert '--task "$SLURM_ARRAY_TASK_ID" ||' in tasks
    assert '[ "$code" = 75 ] && scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"' in tasks
    assert "--dependency=" in report
    assert "--report" in report
    assert "gpus-per-node" not in report
    assert not (out / "studies").exists()


def test_submitting_runs_the_script(out, study, tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.write_text(f'#!/bin/bash\necho "$@" >> {tmp_path}/calls; cat >> {tmp_path}/scripts; echo 42\n')
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", str(sbatch.parent), prepend=":")
    fairface("study", study(), "--out", out, "--submit")
    assert (tmp_path / "calls").read_text().splitlines() == ["--parsable", "--dependency=afterany:42"]
    assert read_document(Workspace(out).study("s").document, StudyDocument).name == "s"
    sbatch.write_text("#!/bin/bash\necho no such account >&2; exit 1\n")
    assert "could not be submitted: no such account" in error_line("study", study(), "--out", out, "--submit")


def test_failed_runs_are_named_and_the_others_go_on(out, study, tmp_path):
    text = STUDY.replace("steps = 40", "steps = 2").replace("[arms.truncated.sample]\ntruncation = 0.5\n", "")
    (tmp_path / "shares.csv").write_text("group,share\nnobody,1\n")
    file = study(text.replace('"uniform"', f'"{tmp_path / "shares.csv"}"'))
    damaged = Workspace(out).run("s.natural.0").config
    damaged.parent.mkdir(parents=True)
    damaged.write_text("{")
    # a run of each arm as SLURM runs it, of which one fails, and the report
    assert "--task 4: the study has the training runs 0 to 3" in error_line("study", file, "--out", out, "--task", 4)
    assert "natural, seed 1: train" in fairface("study", file, "--out", out, "--task", 2)
    assert "natural, seed 1: train" not in fairface("study", file, "--out", out, "--task", 2)
    assert re.search("uniform, seed 1 failed in train: .*nobody", error_line("study", file, "--out", out, "--task", 3))
    line = error_line("study", file, "--out", out, "--report")
    assert "3 of 4 runs of the study s are not finished, and the report is without them" in line
    page = text_of(Workspace(out).study("s").report.page.read_text())
    assert (
        "natural, seed 0 is not finished (pending); uniform, seed 0 is not finished (pending); uniform, seed 1" in page
    )
    # the whole study
    printed = fairface("study", file, "--out", out, code=1)
    assert "natural, seed 1: train" not in printed
    assert "Warning: every run of the arm uniform failed: the report says nothing about it" in printed
    assert re.search("natural, seed 0 failed in train: .*config.json", printed)
    assert "Error: 3 of 4 runs of the study s are not finished, and the report is without them" in printed
    page = text_of(Workspace(out).study("s").report.page.read_text())
    assert "No run of uniform is labelled: all of them failed" in page
    assert "natural, seed 0 failed" in page
    damaged.unlink()
    printed = fairface("study", file, "--out", out, code=1)
    assert "natural, seed 0: train" in printed
    assert "Error: 2 of 4 runs" in printed


def test_a_report_without_labelled_runs_is_refused(out, study):
    line = error_line("study", study(), "--out", out, "--report")
    assert "6 of 6 runs of the study s are not finished, and there is nothing to report" in line


class FakeProcess:
    """A command that takes a moment and succeeds; `most` is how many of them have run at once."""

    running: ClassVar[set["FakeProcess"]] = set()
    most = 0
    pid, exitcode = None, 0

    def __init__(self):
        self.running.add(self)
        FakeProcess.most = max(self.most, len(self.running))

    def join(self) -> None:
        time.sleep(0.01)
        self.running.remove(self)


def test_every_gpu_takes_one_run_at_a_time(out, study, monkeypatch):
    commands = []

    def start_command(_: object, arguments: list[str], **__: object) -> FakeProcess:
        commands.append(arguments)
        return FakeProcess()

    monkeypatch.setattr(study_command, "ask_torch", lambda *_: [2])
    monkeypatch.setattr(runner, "start_command", start_command)
    workspace = Workspace(out)
    document, _ = plan_study(workspace, read_study(study(), OPTIONS))
    devices = study_command.find_devices(document)
    assert devices == ["cuda:0", "cuda:1"]
    study_command.make_runner(workspace, document, lambda _: None).run(tasks(document), devices)
    assert {run.status for run in document.runs} == {"labelled"}
    assert len(commands) == 4 + 6 + 6  # two arms share their training runs
    assert FakeProcess.most == 2
    used = {
        run.run: {words[words.index("--device") + 1] for words in commands if run.run in words} for run in document.runs
    }
    assert all(len(devices) == 1 for devices in used.values())  # a run stays on its GPU
    assert set.union(*used.values()) == {"cuda:0", "cuda:1"}


def test_a_named_device_is_the_only_one(out, study):
    file = study(STUDY.replace("steps = 40", "steps = 40\ndevice = 'cpu'"))
    document, _ = plan_study(Workspace(out), read_study(file, OPTIONS))
    assert study_command.find_devices(document) == [None]


def test_one_seed_promises_no_interval(out, study):
    file = study(STUDY.replace("seeds = [0, 1]", "seeds = [3]"))
    printed = fairface("study", file, "--out", out, "--plan")
    assert "with one seed no interval can be given" in printed
    assert re.search("2 training runs and 3 sets of samples to go: less than a minute, and the time of sample", printed)
    assert not (out / "studies").exists()


def start(*words: object) -> subprocess.Popen:
    """Start a command in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def wait_for(log: Path, text: str, process: subprocess.Popen, *, start: int) -> None:
    """Wait until a text is in a log, after its first `start` characters."""
    while text not in read_log(log)[start:]:
        assert process.poll() is None, process.communicate()[0].decode()
        time.sleep(0.01)


def read_log(log: Path) -> str:
    return log.read_text() if log.exists() else ""


# The run and the stage that each signal interrupts at a random moment; the study is started again after each.
INTERRUPTIONS = [
    ("natural", "train", signal.SIGTERM),  # sent to all processes, as SLURM does
    ("natural", "train", signal.SIGKILL),
    ("natural", "sample", signal.SIGKILL),
    ("natural", "label", signal.SIGTERM),
    ("truncated", "label", signal.SIGKILL),
    ("uniform", "train", signal.SIGKILL),
]


@pytest.mark.attack
def test_a_study_that_is_killed_and_terminated_ends_like_one_that_was_not(packed, study, tmp_path):
    text = STUDY.replace("steps = 40", "steps = 300\nsave-every-epoch = 1").replace("[0, 1]", "[0]")
    rng, trees, printed = random.Random(0), [], ""
    for interruptions in ([], INTERRUPTIONS):
        shutil.copytree(packed, tmp_path / "out")
        workspace = Workspace(tmp_path / "out")
        command = ("study", study(text), "--out", workspace.root)
        for arm, stage, number in interruptions:
            log = workspace.study("s").log(f"s.{arm}.0")
            length, process = len(read_log(log)), start(*command)
            wait_for(log, f"$ fairface {stage} ", process, start=length)
            time.sleep(rng.uniform(0, 2 if stage == "train" else 1))
            if stage == "train" and number == signal.SIGTERM:
                os.killpg(process.pid, number)
            else:
                process.send_signal(number)
            printed = process.communicate()[0].decode()
            assert process.returncode == (75 if number == signal.SIGTERM else -number), printed
            if number == signal.SIGTERM:
                assert printed.endswith("Progress is saved; rerun the same command to resume.\n")
        assert "3 of 3 runs" in fairface(*command)
        trees.append(read_tree(workspace.root))
        workspace.root.rename(tmp_path / f"out{len(interruptions)}")
    # the run that was terminated has another row, of the step at which it ended
    assert set(differences(*trees)) <= {"runs/s.natural.0/steps.parquet"}


@pytest.mark.attack
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk takes root")
def test_a_study_on_a_full_disk_names_the_reason_and_is_finished_with_more_space(packed, study, tmp_path, torch_server):
    text = STUDY.replace("[arms.truncated.sample]\ntruncation = 0.5\n", "").replace("[0, 1]", "[0]")
    command, disk = ("study", study(text), "--out"), tmp_path / "disk"
    shutil.copytree(packed, tmp_path / "undisturbed")
    fairface(*command, tmp_path / "undisturbed")
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=50m", "disk", disk], capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        shutil.copytree(packed, disk, dirs_exist_ok=True)
        # space for nothing, for less than a checkpoint, and for the first run alone
        for left, message in ((0, "disk is full"), (3 << 20, "checkpoints need"), (8 << 20, "1 of 2 runs")):
            with open(disk / "filler", "wb") as filler:
                os.posix_fallocate(filler.fileno(), 0, shutil.disk_usage(disk).free - left)
            printed = fairface(*command, disk, code=1)
            assert message in printed
            assert printed.count("Error: ") == 1
            (disk / "filler").unlink()
        fairface(*command, disk)
        assert differences(read_tree(tmp_path / "undisturbed"), read_tree(disk)) == []
    finally:
        subprocess.run(["umount", disk], check=True)
