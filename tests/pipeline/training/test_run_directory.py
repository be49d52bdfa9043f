"""Which run a command means: by name, or the newest one that can be sampled."""

import pytest
import torch

from pipeline.training import checkpoint
from pipeline.training.run_directory import can_sample, find_run, newest_checkpoint
from shards.documents import RunConfig, write_document
from shards.errors import FairfaceError
from shards.workspace import RunFolder, Workspace


@pytest.fixture
def empty(tmp_path) -> Workspace:
    return Workspace(tmp_path)


def add_run(workspace: Workspace, name: str, *, day: int, steps: tuple[int, ...] = (), **fields: str) -> RunFolder:
    folder = workspace.run(name)
    started = f"2026-01-{day:02d}T00:00:00+00:00"
    write_document(folder.config, RunConfig(name=name, status="finished", started=started, **fields))
    for step in steps:
        checkpoint.save(folder.checkpoints, step, {"networks": torch.zeros(1)}, keep=9)
    return folder


def test_the_newest_run_that_can_be_sampled_is_found(empty):
    add_run(empty, "early", day=1, steps=(5, 20))
    add_run(empty, "late", day=2, steps=(3,))
    assert not can_sample(add_run(empty, "running", day=3))
    assert find_run(empty, None) == empty.run("late")
    assert find_run(empty, "early") == empty.run("early")
    assert newest_checkpoint(empty.run("early")).name == "step_000000020.pt"
    empty.run("running").samples_document.write_text("{}")
    assert find_run(empty, None) == empty.run("running")


def test_the_newest_run_is_found_where_none_can_be_sampled(empty):
    add_run(empty, "a", day=2)
    add_run(empty, "b", day=1)
    assert find_run(empty, None) == empty.run("a")
    with pytest.raises(FairfaceError, match="has no checkpoint yet"):
        newest_checkpoint(empty.run("a"))


def test_a_run_that_was_sampled_from_elsewhere_has_that_checkpoint(empty, tmp_path):
    path = checkpoint.save(tmp_path / "elsewhere", 7, {"networks": torch.zeros(1)}, keep=1)
    assert newest_checkpoint(add_run(empty, "theirs", day=1, checkpoint=str(path))) == path
    path.unlink()
    with pytest.raises(FairfaceError, match="has no checkpoint yet"):
        newest_checkpoint(empty.run("theirs"))


def test_a_missing_run_is_named_with_the_existing_ones(empty):
    with pytest.raises(FairfaceError, match=r"there is no run in .*: run `fairface train` first"):
        find_run(empty, None)
    with pytest.raises(FairfaceError, match=r"there is no run x in .* \(existing runs: none\)"):
        find_run(empty, "x")
    add_run(empty, "b", day=1)
    add_run(empty, "a", day=2)
    with pytest.raises(FairfaceError, match=r"existing runs: a, b\)"):
        find_run(empty, "x")


def test_damaged_runs_are_passed_over_with_a_warning_unless_they_are_named(empty, capsys):
    add_run(empty, "a", day=1)
    add_run(empty, "b", day=2).config.write_text("{")
    assert find_run(empty, None) == empty.run("a")
    assert "runs/b/config.json is not valid JSON" in capsys.readouterr().err
    empty.run("a").config.write_text('{"format": 1}')
    with pytest.raises(FairfaceError, match=r"a/config\.json is of format 1"):
        find_run(empty, None)
