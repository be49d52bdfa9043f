"""An OUT folder on which the whole job has run."""

import pytest

from pipeline.labelling import embedded
from shards.workspace import Workspace
from tests.pipeline.cli.helpers import SMALL_TRAINING, fairface


@pytest.fixture
def embedded_labeller(quick_labeller, monkeypatch):
    """`fairface label` uses the labeller that was fitted for tests."""
    monkeypatch.setattr(embedded, "load_embedded", lambda *_, **__: quick_labeller)
    return quick_labeller


@pytest.fixture(scope="session")
def finished(tmp_path_factory, quick_labeller) -> Workspace:
    """The workspace after the five commands of the whole job. A test that changes it restores it."""
    out = tmp_path_factory.mktemp("finished")
    fairface("synth", "--out", out, "--count", 200, "--size", 64, "--gender", "female=3,male=1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedded, "load_embedded", lambda *_, **__: quick_labeller)
        fairface("shards", "--out", out, "--data", out / "synthetic", "--shard-images", 64)
        fairface("train", "--out", out, *SMALL_TRAINING)
        fairface("sample", "--out", out, "--num-samples", 70, "--png-dir", out / "png")
        fairface("label", "--out", out)
        fairface("report", "--out", out)
    return Workspace(out)
