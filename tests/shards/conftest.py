"""Fixtures of the tests of packing."""

from pathlib import Path

import pytest

from tests.shards.sample_images import BAD, GOOD


@pytest.fixture
def mixed(tmp_path) -> Path:
    """Good and broken images under hostile names."""
    root = tmp_path / "mixed"
    (root / "GANs" / "A B'\"\n").mkdir(parents=True)
    for i, data in enumerate([*(data for _, data in GOOD.values()), *BAD.values()]):
        (root / "GANs" / "A B'\"\n" / f"ü {i}.jpg").write_bytes(data)
    (root / "GANs" / "gone.jpg").symlink_to(root / "nowhere.jpg")
    return root
