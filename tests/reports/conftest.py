"""Fixtures: OUT folders with known shares."""

from importlib import import_module

import pytest

from tests.attacks.server import SHORTER
from tests.reports.fake_workspace import build, make


@pytest.fixture
def world(tmp_path):
    """A maker of OUT folders: world(run=..., synthetic=..., annotated=..., labeller=..., women=...)."""
    return lambda **options: make(tmp_path / "out", **options)


@pytest.fixture
def short_reports(monkeypatch):
    """Reports that draw fewer faces and resample less often."""
    for module, values in SHORTER["report"].items():
        for name, value in values.items():
            monkeypatch.setattr(import_module(module), name, value)


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """An OUT folder whose page is built; tests only read it."""
    out = make(tmp_path_factory.mktemp("built"))
    result = build(out)
    assert (result.page, result.rebuilt) == (out / "report" / "index.html", True)
    return out
