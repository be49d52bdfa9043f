"""Names of runs and detectors, and the folders that count as one."""

import pytest

from shards.errors import FairfaceError
from shards.workspace import Workspace


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "/a", "../a", "all", "\udcff"])
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


def test_no_two_label_files_share_a_path(tmp_path):
    files = Workspace(tmp_path).shards.label_files.all()
    assert len(set(files)) == len(files)
