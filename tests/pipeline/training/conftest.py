import pytest

from shards.workspace import Workspace


@pytest.fixture
def workspace(packed, tmp_path) -> Workspace:
    """An OUT folder with 240 packed synthetic faces and no runs."""
    (tmp_path / "shards").symlink_to(packed / "shards")
    return Workspace(tmp_path)
