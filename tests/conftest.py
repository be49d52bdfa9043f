"""What tests of several folders share: a small drawn data set, packed once, and a labeller fitted in seconds."""

from pathlib import Path

import pytest
from hypothesis import settings

from shards import pack
from shards.synthetic import dataset

settings.register_profile("patient", deadline=None)  # a slow machine is no failure
settings.load_profile("patient")


@pytest.fixture(scope="session")
def drawn(tmp_path_factory) -> Path:
    """240 drawn faces in AI-Face's layout."""
    root = tmp_path_factory.mktemp("drawn")
    dataset.write_dataset(root, count=240, size=64, progress=False)
    return root


@pytest.fixture(scope="session")
def packed(drawn, tmp_path_factory) -> Path:
    """An OUT folder whose shards/ holds the drawn faces in three tars."""
    out = tmp_path_factory.mktemp("out")
    pack.pack(drawn, out / "shards", pack.PackConfig(shard_images=100), progress=False)
    return out


@pytest.fixture(scope="session")
def quick_labeller(tmp_path_factory):
    """The embedded labeller by its own code, with a fit short enough for a test: well above chance, no more."""
    import torch
    from safetensors.torch import load_file

    from pipeline.labelling import embedded

    path = embedded.fit(tmp_path_factory.mktemp("cache"), steps=40, faces=400, progress=False)
    model = embedded.build_model()
    model.load_state_dict(load_file(path))
    return embedded.make_labeller(model, torch.device("cpu"))
