"""The packed synthetic faces, as the tests of this folder read them."""

import shutil
from pathlib import Path

import pytest

from pipeline.data.shard_set import ShardSet
from shards.workspace import ShardsFolder, Workspace


@pytest.fixture(scope="session")
def shards(packed: Path) -> ShardSet:
    """240 images of 64x64 in tars of 100, 100 and 40."""
    return ShardSet.open(Workspace(packed).shards)


@pytest.fixture
def damageable(packed: Path, tmp_path: Path) -> ShardsFolder:
    """A copy of the pack that a test may damage."""
    workspace = Workspace(tmp_path)
    shutil.copytree(Workspace(packed).shards.folder, workspace.shards.folder)
    return workspace.shards
