"""A server of forked `fairface` processes, the stages that it runs, and the comparison of folders byte by byte."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

KILLED = -9
LONGEST_SECONDS = 300
SERVER = Path(__file__).with_name("server.py")
# What differs between two runs of the same command: times, rates, and hashes of files that contain them.
VOLATILE_FIELDS = (
    "started|finished|created|built|seconds|command|commands|fingerprint|throughput|training|files|made_of|device|"
    "images_per_s|data_wait"
)
VOLATILE_NAMES = re.compile(r"\b[0-9a-f]{16}(?=-[0-9a-f]{64}(\.parquet)?$)")  # cached predictions of a training's start
VOLATILE_COLUMNS = ("seconds", "images_per_s", "data_wait")
VOLATILE_PATHS = re.compile(
    r"(^|/)(tensorboard/|\.[\w.-]*lock$)|/(losses|discriminator)\.(svg|png)$|index\.html$|/logs/"
)


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    code: int  # negative: the signal that ended it
    output: str
    seconds: float
    changes: int  # of the file system, by the process itself


class Server:
    """The process that forks commands, started by `launcher`; as a context manager, it ends with the block."""

    def __init__(self, scratch: Path, launcher: Sequence[str] = ()):
        self.scratch = scratch
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MPLBACKEND": "agg"}
        self.process = subprocess.Popen(
            [*launcher, sys.executable, str(SERVER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert self._read() == "ready"

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def run(
        self,
        *words: object,
        root: Path,
        change: int | None = None,
        seconds: float = LONGEST_SECONDS,
        environment: dict[str, str] | None = None,
    ) -> Result:
        """Run a command; it is killed before its `change`-th change below `root`, or after `seconds`."""
        output, counter = self.scratch / "output.txt", self.scratch / "changes.txt"
        counter.unlink(missing_ok=True)
        request = {
            "arguments": [str(word) for word in words],
            "cwd": str(self.scratch),
            "root": str(root),
            "output": str(output),
            "counter": str(counter),
            "change": change,
            "seconds": seconds,
            "environment": {"XDG_CACHE_HOME": str(self.scratch / "cache")} | (environment or {}),
        }
        assert self.process.stdin
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        ended = self._read()
        changes = int(counter.read_text() or 0) if counter.exists() else 0
        return Result(ended["code"], output.read_text(errors="replace"), ended["seconds"], changes)

    def finish(self, *words: object, root: Path, **options: Any) -> Result:
        """Run a command that must succeed."""
        result = self.run(*words, root=root, **options)
        assert result.code == 0, (words, result.output)
        return result

    def _read(self) -> Any:
        assert self.process.stdout
        return json.loads(self.process.stdout.readline())


@dataclass(frozen=True)
class Stage:
    """A command that writes below OUT."""

    name: str
    after: str  # the stage before it, or `nothing`
    words: tuple[str, ...]
    folder_option: str = "--out"  # names the folder that is written to

    @property
    def replaces(self) -> bool:
        """Whether the stage replaces results of an earlier run of the same stage."""
        return self.name.endswith(" again")

    @property
    def title(self) -> str:
        """The command as the documentation names it."""
        return f"{self.words[0]} --import CSV" if "--import" in self.words else self.words[0]

    def command(self, out: Path) -> list[str]:
        """The words of the command on `out`."""
        return [*self.words, self.folder_option, str(out)]


TRAIN = ("--run", "r", "--steps", "20", "--batch-size", "16", "--width-g", "8", "--width-d", "8",
         "--sample-every", "10")  # fmt: skip
DETECT = ("--name", "d", "--model", "xception", "--from-scratch", "--image-size", "64", "--steps", "2",
          "--batch-size", "2")  # fmt: skip
STAGES = {
    stage.name: stage
    for stage in (
        Stage("labeller", "nothing", ("labeller",), folder_option="--cache"),
        Stage("synth", "nothing", ("synth", "--count", "72", "--size", "64")),
        Stage("shards", "synth", ("shards", "--shard-images", "30", "--workers", "1")),
        Stage("train", "shards", ("train", *TRAIN)),
        Stage("sample", "train", ("sample", "--num-samples", "64")),
        Stage("label", "sample", ("label",)),
        Stage("report", "label", ("report",)),
        Stage("detect", "report", ("detect", *DETECT)),
        Stage("import labels", "detect", ("label", "--import", "labels.csv", "--run", "imported")),
        Stage("import predictions", "import labels", ("detect", "--import", "predictions.csv", "--name", "imported")),
        # a second run of the stages that replace what is there
        Stage("synth again", "import predictions", ("synth", "--count", "48", "--size", "32")),
        Stage("shards again", "import predictions", ("shards", "--shard-images", "40", "--seed", "1", "--force")),
        Stage("train again", "import predictions", ("train", *TRAIN, "--seed", "1", "--force")),
        Stage("sample again", "import predictions", ("sample", "--num-samples", "80", "--seed", "1")),
        Stage("label again", "import predictions", ("label", "--run", "r", "--force")),
        Stage("report again", "import predictions", ("report", "--run", "r", "--run", "imported", "--force")),
        Stage("detect again", "import predictions", ("detect", *DETECT, "--seed", "1", "--force")),
        Stage("import labels again", "import predictions",
              ("label", "--import", "others.csv", "--run", "imported", "--force")),
        Stage("import predictions again", "import predictions",
              ("detect", "--import", "others-predictions.csv", "--name", "imported", "--force")),
    )
}  # fmt: skip


def write_csv_files(folder: Path) -> None:
    """The CSV files that the import stages read, in the server's working folder."""
    for name, gender in (("labels.csv", "female"), ("others.csv", "male")):
        rows = [f"sample_{number:05d}.png,{gender},young,{number % 10 + 1}" for number in range(40)]
        (folder / name).write_text("\n".join(["Image Path,gender,age,skin_tone", *rows, ""]))
    for name, sign in (("predictions.csv", 1), ("others-predictions.csv", -1)):
        rows = [f"female,light,young,{number % 2},{sign * (number % 7 - 3)}" for number in range(60)]
        rows += [f"male,dark,adult,{number % 2},{sign * (number % 5 - 2)}" for number in range(60)]
        (folder / name).write_text("\n".join(["gender,skin_group,age,target,logit", *rows, ""]))


def copy_tree(source: Path, target: Path) -> None:
    """Replace `target` by a copy of a folder."""
    shutil.rmtree(target, ignore_errors=True)
    if source.exists():
        shutil.copytree(source, target, symlinks=True)


def read_tree(root: Path) -> dict[str, str]:
    """The content of every file below a folder by its path: a hash of all that should be the same in every run."""
    return {
        relative_name(path, root): content_hash(path)
        for path in files_below(root)
        if not VOLATILE_PATHS.search(str(path.relative_to(root)))
    }


def relative_name(path: Path, root: Path) -> str:
    """A path below `root`, without VOLATILE_NAMES."""
    return VOLATILE_NAMES.sub("", str(path.relative_to(root)))


def files_below(root: Path) -> list[Path]:
    """Every file below a folder."""
    return [path for path in sorted(root.rglob("*")) if path.is_file()]


def content_hash(path: Path) -> str:
    """A hash of a file's content without VOLATILE_FIELDS and VOLATILE_COLUMNS."""
    data = path.read_bytes()
    if path.suffix == ".json":
        data = json.dumps(without_volatile(json.loads(data)), sort_keys=True).encode()
    elif path.name == "steps.parquet":
        data = pl.read_parquet(path).drop(VOLATILE_COLUMNS, strict=False).write_csv().encode()
    return hashlib.sha256(data).hexdigest()[:16]


def without_volatile(value: Any) -> Any:
    """A JSON value without VOLATILE_FIELDS and VOLATILE_NAMES."""
    if isinstance(value, dict):
        return {k: without_volatile(v) for k, v in value.items() if not re.fullmatch(VOLATILE_FIELDS, k)}
    if isinstance(value, str):
        return VOLATILE_NAMES.sub("", value)
    return [without_volatile(item) for item in value] if isinstance(value, list) else value


def differences(expected: dict[str, str], found: dict[str, str]) -> list[str]:
    """The paths whose content differs, or that only one side has."""
    return sorted(path for path in expected.keys() | found.keys() if expected.get(path) != found.get(path))


def own_files(stage: Stage, before: Path, after: Path) -> set[str]:
    """The files that a stage writes or removes, by two states of OUT: before it, and after it ran undisturbed.

    For a stage that replaces results, these include everything next to them.
    """
    times = [
        {relative_name(path, root): path.stat().st_mtime_ns for path in files_below(root)} for root in (before, after)
    ]
    own = {path for path in times[0].keys() | times[1].keys() if times[0].get(path) != times[1].get(path)}
    folders = {os.path.dirname(path) for path in own} if stage.replaces else set()
    return own | {path for path in times[0] if os.path.dirname(path) in folders}


def lost_files(before: dict[str, str], own: set[str], found: dict[str, str]) -> list[str]:
    """The files that a stage has changed or removed, except its `own`."""
    return [path for path in differences(before, found) if path in before and path not in own]
