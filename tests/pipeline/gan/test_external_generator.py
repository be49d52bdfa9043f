"""Images of another program's generator are checked, and depend only on the seed and the batch."""

import io
import sys
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.data.decoder import decode_all
from pipeline.data.shard_set import ShardSet
from pipeline.gan.external_generator import (
    ExternalGenerator,
    load_function,
    load_torchscript,
    resize_and_crop,
    to_uint8_images,
)
from shards import pack
from shards.errors import FairfaceError
from shards.workspace import Workspace
from tests.pipeline.gan.helpers import CPU


def noise(count: int, seed: int) -> torch.Tensor:
    """Faces of noise, by a generator of its own."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, 32, 32, generator=generator) * 2 - 1


def generator(generate, *, seed: int = 0, batch_size: int = 8) -> ExternalGenerator:
    return ExternalGenerator("net", generate, "", device=CPU, seed=seed, batch_size=batch_size)


def pixels(files) -> np.ndarray:
    return np.stack([np.asarray(Image.open(io.BytesIO(data))) for data in files])


def test_images_depend_on_seed_and_index_alone():
    seeds = []

    def generate(count, seed):
        seeds.append((count, seed))
        return noise(count, seed)

    first = pixels(generator(generate).images(20, size=32))
    assert first.shape == (20, 32, 32, 3)
    assert [count for count, _ in seeds] == [8, 8, 8]  # whole batches: another size may give other images
    assert len(set(seeds)) == 3
    assert np.array_equal(pixels(generator(noise).images(11, size=32)), first[:11])
    assert not np.array_equal(pixels(generator(noise, seed=1).images(8, size=32)), first[:8])


def test_torchs_global_generators_are_seeded_as_well():
    def unseeded(count, _seed):
        return torch.rand(count, 3, 16, 16)

    state = torch.random.get_rng_state()
    assert torch.equal(generator(unseeded).batch(3), generator(unseeded).batch(3))
    assert not torch.equal(generator(unseeded).batch(3), generator(unseeded).batch(4))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_floats_are_scaled_and_clipped():
    values = torch.tensor([-1.5, -1.0, 0.0, 1.0, 1.2]).expand(1, 3, 5, 5)
    assert to_uint8_images(values, count=1, name="net")[0, 0, 0].tolist() == [0, 0, 128, 255, 255]
    assert to_uint8_images(values.numpy(), count=1, name="net")[0, 0, 0].tolist() == [0, 0, 128, 255, 255]
    images = torch.arange(48, dtype=torch.uint8).reshape(1, 3, 4, 4)
    assert torch.equal(to_uint8_images(images, count=1, name="net"), images)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("images", "returned str instead of a tensor"),
        (None, "returned NoneType instead of a tensor"),
        (np.array([object()] * 2), "returned an array of object instead of uint8 or floats"),
        (np.zeros((2, 3, 32, 32), np.longdouble), "returned an array of .* instead of uint8 or floats"),
        (np.zeros((2, 3, 32, 32), bool), "returned bool instead of uint8 or floats"),
        (torch.zeros(2, 3, 32, 32).to_sparse(), "returned Tensor of layout sparse_coo instead of a dense one"),
        (torch.zeros(2, 32, 32, 3), r"the shape \[2, 32, 32, 3\] instead of \[2, 3, height, width\]"),
        (torch.zeros(3, 3, 32, 32), r"the shape \[3, 3, 32, 32\]"),
        (torch.zeros(2, 3, 0, 32), r"the shape \[2, 3, 0, 32\]"),
        (torch.zeros(2, 3, 8, 100), "100 x 8 pixels, which are too large or too narrow"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.int64), "returned int64 instead of uint8 or floats"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.complex64), "returned complex64 instead of uint8 or floats"),
        (torch.full((2, 3, 32, 32), torch.nan), "NaN or infinite"),
        (torch.full((2, 3, 32, 32), 200.0), "values from 200 to 200 instead of"),
    ],
)
def test_other_outputs_are_refused(output, message):
    with pytest.raises(FairfaceError, match=message):
        generator(lambda count, seed: output, batch_size=2).batch(0)


def test_an_exception_of_the_generator_is_named():
    def broken(count, seed):
        raise KeyError("weights\nsecond line")

    with pytest.raises(FairfaceError, match=r"^net\(8, \d+\) failed: KeyError: 'weights") as error:
        generator(broken).batch(0)
    assert isinstance(error.value.__cause__, KeyError)


def test_images_of_changing_sizes_are_refused():
    sizes = iter((32, 48))
    with pytest.raises(FairfaceError, match=r"images of \(32, 32\), then of \(48, 48\) pixels"):
        list(generator(lambda count, seed: torch.zeros(count, 3, *[next(sizes)] * 2)).images(16, size=32))


class Net(torch.nn.Module):
    """A generator as others publish it, but seeded."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(8, 3 * 16 * 16)

    def forward(self, count: int, seed: int) -> torch.Tensor:
        if count < 0:
            raise ValueError("no images")
        torch.manual_seed(seed)
        return torch.tanh(self.layer(torch.randn(count, 8))).reshape(count, 3, 16, 16)


def test_a_torchscript_generator_is_sampled(tmp_path):
    net, path = Net(), tmp_path / "net.pt"
    with warnings.catch_warnings(action="ignore"):
        torch.jit.script(net).save(path)
    generate, sha256 = load_torchscript(path, CPU)
    assert len(sha256) == 64
    with torch.no_grad():
        assert torch.equal(generate(4, 7), net(4, 7))
    assert generator(generate).batch(1).shape == (8, 3, 16, 16)
    with pytest.raises(FairfaceError, match=r"failed: Error: .*no images"):
        generator(generate, batch_size=-1).batch(0)


def test_files_other_than_torchscript_are_refused(tmp_path):
    for name, write in {
        "tensors.pt": lambda path: torch.save({"a": 1}, path),
        "text.ts": lambda p: p.write_text("x"),
    }.items():
        write(tmp_path / name)
        with pytest.raises(FairfaceError, match=f"{name} is not TorchScript"):
            load_torchscript(tmp_path / name, CPU)


def test_a_function_is_imported_from_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "my_gan.py").write_text("def generate(count, seed):\n    return count + seed\nSIZE = 3\n")
    (tmp_path / "my_broken_gan.py").write_text("raise SystemExit('no weights')")
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    generate, sha256 = load_function("my_gan:generate")
    assert generate(1, 2) == 3
    assert sys.path == path
    for name, message in {
        "my_gan:paint": "my_gan has no function paint",
        "my_gan:SIZE": "my_gan has no function SIZE",
        "no_such_gan:generate": "importing no_such_gan failed: ModuleNotFoundError: No module named 'no_such_gan'",
        "my_broken_gan:generate": "importing my_broken_gan failed: SystemExit: no weights",
    }.items():
        with pytest.raises(FairfaceError, match=message):
            load_function(name)
    assert len(sha256) == 64


@pytest.mark.parametrize(("height", "width", "levels"), [(96, 96, 1), (100, 150, 1), (24, 24, 1), (61, 43, 12)])
def test_images_are_resized_as_the_feed_resizes_training_images(height, width, levels, tmp_path):
    """The same PNG through DALI differs by rounding alone, if no side of the resized image has to be rounded."""
    generator = torch.Generator().manual_seed(height)
    images = torch.nn.functional.interpolate(
        torch.rand(3, 3, 9, 9, generator=generator), (height, width), mode="bicubic"
    )
    images = (images * 255).clamp(0, 255).to(torch.uint8)
    (tmp_path / "images").mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "images" / f"{number}.png")
    shards = Workspace(tmp_path / "out").shards
    pack.pack(tmp_path / "images", shards, tables=[], progress=False)
    (decoded,) = decode_all(ShardSet.open(shards), 32, device=CPU)
    ours = resize_and_crop(images, 32).permute(0, 2, 3, 1).int()
    nearest = [(ours - image.int()).abs().amax((1, 2, 3)).min() for image in decoded]  # the pack is shuffled
    assert max(nearest) <= levels
