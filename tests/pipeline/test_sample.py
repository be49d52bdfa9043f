"""Samples are a pure function of (checkpoint, seed, index)."""

import io

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image

from pipeline import sample
from pipeline.step import Options
from pipeline.train import train
from shards import tar

CPU = torch.device("cpu")
TINY = Options(
    image_size=32, latent_dim=16, width_g=8, width_d=8, batch_size=16, ema_start=5, precision="fp32", compile=False
)


@pytest.fixture(scope="module")
def out(packed, tmp_path_factory):
    out = tmp_path_factory.mktemp("sampled")
    (out / "shards").symlink_to(packed / "shards")
    train(out, TINY, "sketch", steps=12, run="r", progress=False)
    return out


@pytest.fixture(scope="module")
def net(out):
    return sample.load_generator(out / "runs" / "r" / "checkpoints" / "step_000000012.pt", CPU)[0]


def draw(net, seed: int, first: int, count: int, batch: int = 256) -> torch.Tensor:
    return torch.cat(list(sample.generate(net, seed, first, count, CPU, batch)))


@pytest.mark.parametrize("batch", [1, 7, 64, 100])
def test_a_sample_does_not_depend_on_the_batch(net, batch):
    assert torch.equal(draw(net, 3, 0, 130, batch), draw(net, 3, 0, 130))


@pytest.mark.parametrize("index", [0, 63, 64, 129])
def test_any_sample_can_be_drawn_alone(net, index):
    assert torch.equal(draw(net, 3, index, 1)[0], draw(net, 3, 0, 130)[index])


def test_seeds_and_indices_differ(net):
    images = draw(net, 3, 0, 130)
    assert len(torch.unique(images.flatten(1), dim=0)) == 130
    assert not torch.equal(images, draw(net, 4, 0, 130))


def test_latents_are_standard_normal():
    z = sample.latents(0, 5, 4000, 16)
    assert z.shape == (4000, 16)
    assert abs(z.mean().item()) < 0.02
    assert abs(z.std().item() - 1) < 0.02


def test_the_shards_hold_the_samples_in_order(out, net, monkeypatch):
    monkeypatch.setattr(sample, "SHARD_IMAGES", 50)
    done = sample.sample(out, "r", count=130, seed=3, device="cpu", force=True, progress=False)
    rows = pl.read_parquet(out / "runs" / "r" / "samples.parquet")
    assert rows["index"].to_list() == list(range(130))
    assert rows["shard"].n_unique() == 3
    assert rows.select("run", "checkpoint", "seed").unique().row(0) == ("r", "step_000000012.pt", 3)
    images = draw(net, 3, 0, 130)
    for shard, part in rows.group_by("shard", maintain_order=True):
        files = tar.read(out / "runs" / "r" / "samples", shard[0], part["key"])
        for index, data in zip(part["index"], files.values(), strict=True):
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), images[index].numpy())
    assert not done["unchanged"]
    assert sample.sample(out, "r", count=130, seed=3, device="cpu", progress=False)["unchanged"]
    assert not sample.sample(out, "r", count=131, seed=3, device="cpu", progress=False)["unchanged"]


def test_the_average_is_drawn_by_default_and_the_generator_on_request(out):
    path = out / "runs" / "r" / "checkpoints" / "step_000000012.pt"
    (ema, state), (g, _) = sample.load_generator(path, CPU), sample.load_generator(path, CPU, "g")
    assert torch.equal(ema.net[0].weight, state["nets"]["ema"]["net.0.weight"])
    assert torch.equal(g.net[0].weight, state["nets"]["g"]["net.0.weight"])
    assert not torch.equal(ema.net[0].weight, g.net[0].weight)
