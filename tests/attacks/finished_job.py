"""A small finished job, made once, in whose copies tests change files; and its commands, run in this process."""

import faulthandler
import fcntl
import hashlib
import json
import os
import shutil
import traceback
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline.cli.main import main
from pipeline.labelling import embedded
from shards.atomic_io import file_sha256
from shards.audit import AuditPlan
from shards.documents import read_document
from shards.workspace import RunFolder, Workspace
from tests.pipeline.audit.helpers import answers_csv

HANG_SECONDS = 120
UNREAD = (".lock", ".png", ".svg", ".html", "tensorboard")  # written, and read by nobody but people
TRAIN = ("--steps", 4, "--batch-size", 16, "--width-g", 4, "--width-d", 4, "--sample-every", 2, "--run", "r")
DETECT = ("--name", "d", "--model", "xception", "--from-scratch", "--image-size", 64, "--steps", 2, "--batch-size", 2)
JOB = (
    ("shards", "--shard-images", 100, "--workers", 1, "--data", "../faces"),
    ("train", *TRAIN),
    ("sample", "--num-samples", 64),
    ("label",),
    ("detect", *DETECT),
    ("label", "--import", "../labels.csv", "--run", "imported"),
    ("detect", "--import", "../predictions.csv", "--name", "imported"),
    ("audit", "plan", "--labels", 20, "--run", "r"),
    ("audit", "import", "../answers.csv"),
    ("report", "--run", "r"),
)


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    printed: str


class Job:
    """A finished job, and a copy of it, in which tests change files."""

    def __init__(self, folder: Path):
        self.pristine, self.out = folder / "pristine", folder / "out"
        self.expected: dict[tuple[object, ...], Outcome] = {}
        self.reset()

    def reset(self) -> None:
        """Make the copy, which is the working folder, the same as the finished job.

        Files are shared: no command may change one in place.
        """
        shutil.rmtree(self.out, ignore_errors=True)
        shutil.copytree(self.pristine, self.out, copy_function=os.link)
        os.chdir(self.out)

    def files(self, *suffixes: str) -> list[str]:
        """The files with one of the suffixes that commands read, by their path below OUT."""
        paths = sorted(str(path.relative_to(self.pristine)) for path in self.pristine.rglob("*") if path.is_file())
        return [path for path in paths if path.endswith(suffixes) and not any(part in path for part in UNREAD)]

    def replace(self, name: str, content: bytes) -> None:
        """Replace the content of a file of the copy."""
        (self.out / name).unlink()
        (self.out / name).write_bytes(content)

    def run(self, *words: object) -> Outcome:
        """Run a command on the copy, and return how it ends: with neither a traceback nor a hang."""
        return run(*words, "--out", self.out)

    def undisturbed(self, words: tuple[object, ...]) -> Outcome:
        """Run a command on the finished job, and return how it ends."""
        if words not in self.expected:
            self.expected[words] = self.run(*words)
        return self.expected[words]


def run(*words: object) -> Outcome:
    """Run a command in this process: it succeeds, or ends with one line."""
    faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)  # a hang would last for ever
    try:
        result = CliRunner().invoke(main, [str(word) for word in words])
    finally:
        faulthandler.cancel_dump_traceback_later()
    if result.exception and not isinstance(result.exception, SystemExit):
        pytest.fail(f"{words}: " + "".join(traceback.format_exception(*result.exc_info))[-3000:])
    if result.exit_code:
        errors = [line for line in result.output.splitlines() if line.startswith("Error: ")]
        assert result.exit_code in (1, 2), result.output
        assert len(errors) == 1, result.output
    return Outcome(result.exit_code, result.output)


@pytest.fixture(scope="session")
def finished_folder(tmp_path_factory, quick_labeller) -> Path:
    """The folder of a finished job, made once for all processes of the test run."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    folder = root / "finished job"
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "w") as lock, pytest.MonkeyPatch.context() as patch:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / "whole").exists():
            return folder
        out = folder / "pristine"
        out.mkdir()
        patch.chdir(out)
        patch.setattr(embedded, "load_embedded", lambda *_, **__: quick_labeller)
        write_tables(folder)
        for words in (("synth", "--count", 240, "--size", 64, "--data", "../faces"), *JOB):
            if words[0] == "report":
                shrink_checkpoint(out / "detectors" / "d")
            if words[:2] == ("audit", "import"):
                (folder / "answers.csv").write_text(all_answers(Workspace(out).run("r")))
            outcome = run(*words, "--out", out)
            assert outcome.code == 0, outcome.printed
        (folder / "whole").touch()
    return folder


def write_tables(folder: Path) -> None:
    """The CSV files that the job imports."""
    rows = [f"sample_{number:05d}.png,female,young,{number % 10 + 1}" for number in range(40)]
    (folder / "labels.csv").write_text("\n".join(["Image Path,gender,age,skin_tone", *rows, ""]))
    rows = [f"{gender},{skin},young,{i % 2},{i % 7 - 3}" for gender, skin in GROUPS for i in range(60)]
    (folder / "predictions.csv").write_text("\n".join(["gender,skin_group,age,target,logit", *rows, ""]))


def all_answers(run: RunFolder) -> str:
    """A rater's file with an answer to every question of a run's audit."""
    plan = read_document(run.audit.plan_document, AuditPlan)
    assert plan
    return answers_csv(run.audit, plan)


GROUPS = (("female", "light"), ("male", "dark"))


def shrink_checkpoint(detector: Path) -> None:
    """Replace a detector's checkpoint by a small file, so that `verify` is quick."""
    config = json.loads((detector / "config.json").read_text())
    (checkpoint,) = (detector / "checkpoints").iterdir()
    checkpoint.write_bytes(b"weights")
    config["files"][f"checkpoints/{checkpoint.name}"] = file_sha256(checkpoint)
    (detector / "config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def job(finished_folder, tmp_path_factory, quick_labeller):
    """The finished job, for all tests of this module."""
    folder = tmp_path_factory.mktemp("job")
    shutil.copytree(finished_folder / "pristine", folder / "pristine")
    for name in ("labels.csv", "predictions.csv"):
        shutil.copy(finished_folder / name, folder)
    shutil.copytree(finished_folder / "faces", folder / "faces")
    before = tree_hashes(folder / "pristine")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(embedded, "load_embedded", lambda *_, **__: quick_labeller)
        finished = Job(folder)
        yield finished
    assert tree_hashes(finished.pristine) == before, "a file was changed in place"


def tree_hashes(folder: Path) -> dict[Path, str]:
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}
