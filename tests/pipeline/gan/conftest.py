import pytest

from shards.workspace import Workspace
from tests.pipeline.gan.helpers import train_run


@pytest.fixture
def workspace(packed, tmp_path) -> Workspace:
    """An OUT folder with 240 packed synthetic faces and no runs."""
    (tmp_path / "shards").symlink_to(packed / "shards")
    return Workspace(tmp_path)


@pytest.fixture(scope="session")
def trained(packed, tmp_path_factory) -> Workspace:
    """An OUT folder with the run `r`, trained for 12 steps; tests may sample it."""
    root = tmp_path_factory.mktemp("trained")
    (root / "shards").symlink_to(packed / "shards")
    train_run(Workspace(root), 12, run="r")
    return Workspace(root)
