"""Each two commands, started at the same time on the same OUT: each succeeds or is refused in one line."""

import itertools
import random
import re
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import polars as pl
import pytest

from pipeline.verify import verify
from shards import provenance
from shards.workspace import Workspace
from tests.attacks.helpers import DETECT, TRAIN, Result, Server, copy_tree, write_csv_files

LATEST_START = 0.5  # seconds that the second command starts after the first
COMMANDS = {
    "synth": ("synth", "--count", "48", "--size", "32"),
    "shards": ("shards", "--shard-images", "30", "--workers", "1"),
    "shards --force": ("shards", "--shard-images", "40", "--seed", "1", "--workers", "1", "--force"),
    "train": ("train", *TRAIN, "--steps", "25"),
    "train --force": ("train", *TRAIN, "--seed", "1", "--force"),
    "sample": ("sample", "--run", "r", "--num-samples", "80"),
    "sample --force": ("sample", "--run", "r", "--seed", "2", "--force", "--num-samples", "64"),
    "label": ("label", "--run", "r"),
    "label --force": ("label", "--run", "r", "--force"),
    "label --import": ("label", "--import", "others.csv", "--run", "imported", "--force"),
    "detect": ("detect", *DETECT, "--seed", "1", "--force"),
    "detect --import": ("detect", "--import", "others-predictions.csv", "--name", "imported", "--force"),
    "report": ("report", "--run", "r", "--force"),
    "verify": ("verify",),
}
# Every two once: which of them starts first is chosen at random, and both at the same moment in half of the cases.
PAIRS = [pair if zlib.crc32(repr(pair).encode()) % 2 else pair[::-1]
         for pair in itertools.combinations_with_replacement(COMMANDS, 2)]  # fmt: skip
pytestmark = pytest.mark.attack  # a finished job takes a minute to prepare

REPORTED_PAIRS = [("synth", "synth"), ("sample", "sample --force"), ("sample --force", "label --force"),
               ("label --import", "label --import"), ("shards --force", "verify")]  # fmt: skip
TRIED = {"pairs of commands": len(PAIRS)}
REFUSED = "another process is using"
# Answers to a command that needs what the other one is making, or has just removed: they name a command to run.
MISSING = re.compile(r"[Rr]un `fairface|`fairface \w+|with --force|--other-data")


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """Two processes that fork commands."""
    folders = [tmp_path_factory.mktemp("server") for _ in range(2)]
    for folder in folders:
        write_csv_files(folder)
    with Server(folders[0]) as first, Server(folders[1]) as second:
        yield first, second


def run_together(servers: tuple[Server, Server], names: tuple[str, str], *, out: Path, delay: float) -> list[Result]:
    """Run two commands at the same time; the second starts `delay` seconds after the first."""

    def run(server: Server, name: str, wait: float) -> Result:
        time.sleep(wait)
        return server.run(*COMMANDS[name], "--out", out, root=out)

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(run, servers, names, (0, delay)))


def check_answer(name: str, result: Result) -> None:
    """A command succeeds, or is refused in one line."""
    assert "Traceback" not in result.output, result.output
    if result.code == 0:
        return
    assert result.code == 1, (name, result.code, result.output)
    if name == "verify":
        assert REFUSED in result.output or "out of date" in result.output, result.output
        return
    (error,) = [line for line in result.output.splitlines() if line.startswith("Error:")]
    assert REFUSED in error or MISSING.search(error), (name, error)


def check_consistency(out: Path) -> None:
    """All files have their checksums, and no labels or predictions of other images are used."""
    workspace = Workspace(out)
    faults = [line for lines in verify(workspace, progress=False).faults.values() for line in lines]
    assert not [line for line in faults if "is out of date (" not in line]
    current = provenance.current_files(workspace).files
    for run in workspace.runs():
        if {run.samples_table, run.label_files.labels} <= {*current["samples"], *current["labels"]}:
            samples, labels = (pl.read_parquet(path)["key"] for path in (run.samples_table, run.label_files.labels))
            assert samples.sort().to_list() == labels.unique().sort().to_list()
    assert not [path for path in out.rglob(".*.partial") if path.is_file()]


@pytest.mark.parametrize(
    "names",
    PAIRS,
    ids=" and ".join,
)
def test_two_commands_at_once(servers, base, names):
    out = base / "out"
    copy_tree(base / "import predictions", out)
    rng = random.Random(repr(names))
    results = run_together(servers, names, out=out, delay=rng.choice((0, rng.uniform(0, LATEST_START))))
    for name, result in zip(names, results, strict=True):
        check_answer(name, result)
    check_consistency(out)


def test_the_report_after_two_commands_at_once(servers, base):
    """It succeeds, or names the command to run first."""
    out = base / "out"
    for names in REPORTED_PAIRS:
        copy_tree(base / "import predictions", out)
        run_together(servers, names, out=out, delay=0)
        check_answer("report", servers[0].run("report", "--run", "r", "--out", out, root=out))
