"""Names of runs and detectors, and the folders that count as one."""

import pytest

from shards.errors import FairfaceError
from shards.provenance import current_files
from shards.workspace import Workspace

REFUSED = [
    "",
    ".",
    "..",
    ".hidden",
    "a/b",
    "/a",
    "../a",
    "-x",
    "all",
    "newest",
    "\udcff",
    "x*",
    "x?",
    "[x]",
    "a\nb",
    "a\tb",
]


@pytest.mark.parametrize("name", [*REFUSED, "\x1b[31m", "\u202eabc", "ü" * 101])
def test_names_that_are_not_a_single_folder_are_refused(tmp_path, name):
    with pytest.raises(FairfaceError, match="--run"):
        Workspace(tmp_path).run(name)
    with pytest.raises(FairfaceError, match="--name"):
        Workspace(tmp_path).detector(name)


def test_runs_are_the_folders_with_a_config_by_name(tmp_path):
    workspace = Workspace(tmp_path)
    for name in ("b", "a", "empty"):
        workspace.run(name).folder.mkdir(parents=True)
        if name != "empty":
            workspace.run(name).config.write_text("{}")
    assert [run.name for run in workspace.runs()] == ["a", "b"]
    assert workspace.run("ü 'x'").config == tmp_path / "runs" / "ü 'x'" / "config.json"


def test_folders_with_invalid_names_are_not_runs(tmp_path):
    workspace = Workspace(tmp_path)
    for name in ("x*", "xy", "newest", "-x"):
        for folder in (workspace.runs_folder, workspace.detectors_folder):
            (folder / name).mkdir(parents=True)
        (workspace.runs_folder / name / "config.json").write_text("{}")
    assert [run.name for run in workspace.runs()] == ["xy"]
    assert [detector.name for detector in workspace.detectors()] == ["xy"]
    assert workspace.view_files()["runs"] == [workspace.run("xy").config]
    warnings = "\n".join(current_files(workspace).warnings)
    names = ("runs/x*", "detectors/-x", "runs/newest", "xy")
    assert [f"{name} is left out: rename it" in warnings for name in names] == [True, True, True, False]


def test_no_two_label_files_share_a_path(tmp_path):
    files = Workspace(tmp_path).shards.label_files.all()
    assert len(set(files)) == len(files)
