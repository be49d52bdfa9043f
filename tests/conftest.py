"""Fixtures of several folders: a small synthetic data set, packed once, and a labeller fitted in seconds."""

import os

# One torch thread each: threads of several busy processes that spin while they wait slow each other many times over.
# Before any import of torch, and inherited by the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Iterator
from importlib import import_module
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

# Processes that tests start by `python -c` import `tests`; PYTHONSAFEPATH, which our commands set, hides the checkout.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH"))))

import pytest
from hypothesis import settings

from pipeline.study.runner import PRELOADED
from reports.estimation.stratified import REPLICATES, correct_stratified
from shards import pack
from shards.locks import awaited_lock
from shards.plan import PackConfig
from shards.processes import start_fork_server
from shards.synthetic import dataset
from shards.synthetic.dataset import SyntheticConfig
from shards.workspace import Workspace
from tests.attacks.server import SHORTER

SHORT: dict[str, dict[str, Any]] = {
    **{module: values for module, values in SHORTER["report"].items() if "estimation" in module},
    "models.probe": {"PENALTIES": (1e-3,)},
}
FULL = {(module, name): getattr(import_module(module), name) for module, values in SHORT.items() for name in values}
STRATIFIED: dict[str, Any] = correct_stratified.__kwdefaults__  # of the slowest computation of a report

settings.register_profile("patient", deadline=None)  # a slow machine is no failure
settings.load_profile("patient")


@pytest.fixture(autouse=True, scope="session")
def short_computations():
    """Intervals are resampled less often, and the probe tries one penalty; `full_computations` undoes it for a test."""
    with pytest.MonkeyPatch.context() as patch:
        for module, values in SHORT.items():
            for name, value in values.items():
                patch.setattr(import_module(module), name, value)
        patch.setitem(STRATIFIED, "replicates", 60)
        yield


@pytest.fixture
def full_computations(monkeypatch):
    """Intervals are resampled as often as in the program, and the probe tries all penalties."""
    for (module, name), value in FULL.items():
        monkeypatch.setattr(import_module(module), name, value)
    monkeypatch.setitem(STRATIFIED, "replicates", REPLICATES)


@pytest.fixture(scope="session")
def synthetic_root(tmp_path_factory) -> Path:
    """240 synthetic faces in AI-Face's layout."""
    root = tmp_path_factory.mktemp("synthetic")
    dataset.write_dataset(root, SyntheticConfig(count=240, size=64), progress=False)
    return root


@pytest.fixture(scope="session")
def packed(synthetic_root, tmp_path_factory) -> Iterator[Path]:
    """An OUT folder whose shards/ holds the synthetic faces in three tars; a test that writes there copies it first."""
    workspace = Workspace(tmp_path_factory.mktemp("out"))
    pack.pack(synthetic_root, workspace.shards, PackConfig(shard_images=100), progress=False)
    before = sorted(path for path in workspace.root.rglob("*") if not path.name.endswith(".lock"))
    yield workspace.root
    assert sorted(path for path in workspace.root.rglob("*") if not path.name.endswith(".lock")) == before


@pytest.fixture(scope="session")
def torch_server() -> None:
    """A server that has imported torch and forks processes, in the place of one that other tests have started."""
    forkserver._forkserver._stop()
    start_fork_server(*PRELOADED, "pipeline.detection.train", "pipeline.study.cost")


@pytest.fixture(scope="session")
def quick_labeller(tmp_path_factory):
    """The embedded labeller, fitted by its own code for seconds: well above chance, no more."""
    import torch
    from safetensors.torch import load_file

    from pipeline.labelling import embedded, embedded_model

    own = tmp_path_factory.getbasetemp()
    cache = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "labeller"
    cache.mkdir(exist_ok=True)
    with awaited_lock(cache / ".lock", "fitting"), pytest.MonkeyPatch.context() as patch:  # in one of the processes
        patch.setattr(embedded, "HELD_OUT", 32)
        path = embedded.fit(cache, steps=40, faces=400, progress=False)
    model = embedded_model.build_model()
    model.load_state_dict(load_file(path))
    return embedded_model.make_labeller(model, torch.device("cpu"))
