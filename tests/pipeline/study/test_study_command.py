"""`fairface study`: what its TOML may say, what it runs, and how it goes on after changes, failures and kills."""

import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.cli.main import main
from shards.documents import read_document, write_document
from shards.study import StudyDocument, StudyRunDocument
from shards.workspace import Workspace
from tests.attacks.helpers import read_tree
from tests.pipeline.cli.helpers import error_line, fairface

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
def out(packed, tmp_path) -> Path:
    """An OUT folder with packed images and no run."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "shards").symlink_to(packed / "shards")
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
    from pipeline.cli.study import OPTIONS

    reserved = {"workspace", "data", "run", "seed", "other_data", "resume", "force"}
    names = {option.name for option in OPTIONS["train"].options.values()}
    assert names == {parameter.name for parameter in main.commands["train"].params} - reserved


def begin(out: Path, file: Path, run: str) -> StudyDocument:
    """Plan a study as `--submit` does, and record that one of its runs has begun."""
    from pipeline.cli.study import OPTIONS
    from pipeline.study.plan import plan_study, read_study
    from pipeline.study.progress import write_run

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
    assert "#SBATCH --array=0,1,2,3\n" in tasks  # two arms of the three share their trainings
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


def start(*words: object) -> subprocess.Popen:
    """Start a command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


@pytest.mark.attack
def test_a_study_that_is_killed_twice_ends_like_one_that_was_not(packed, study, tmp_path):
    rng, trees = random.Random(0), []
    for kills in (0, 2):
        shutil.copytree(packed, tmp_path / "out")
        command = ("study", study(STUDY.replace("steps = 40", "steps = 400")), "--out", tmp_path / "out")
        for _ in range(kills):
            process = start(*command)
            time.sleep(rng.uniform(15, 30))
            assert process.poll() is None
            process.send_signal(signal.SIGKILL)
            process.wait()
        process = start(*command)
        printed, _ = process.communicate()
        assert process.returncode == 0, printed.decode()
        records = Workspace(tmp_path / "out").study("s").records
        assert len([read_document(path, StudyRunDocument) for path in records.iterdir()]) == 6
        tree = read_tree(tmp_path / "out")
        trees.append({path: content for path, content in tree.items() if not path.startswith("studies/s/logs/")})
        (tmp_path / "out").rename(tmp_path / f"out{kills}")
    assert {path for path in trees[0] if trees[0][path] != trees[1].get(path)} == set()
