"""Fixtures: OUT folders whose truth is known."""

import pytest

from reports import page
from tests.reports.outs import make


@pytest.fixture
def world(tmp_path):
    """A maker of OUT folders: world(run=..., drawn=..., annotated=..., labeller=..., women=...)."""
    return lambda **options: make(tmp_path / "out", **options)


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """An OUT folder whose report is built: to look at, not to change."""
    out = make(tmp_path_factory.mktemp("built"))
    assert page.build(out) == (out / "report" / "index.html", True)
    return out
