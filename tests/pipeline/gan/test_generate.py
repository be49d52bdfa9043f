"""A generated image is a pure function of (generator, seed, index)."""

import io
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from models.dcgan import Generator, optimise_for_inference
from pipeline.gan import generate
from pipeline.gan.generate import ImageGenerator, average_weights, latents, load_generator
from pipeline.gan.options import GanOptions
from pipeline.training import checkpoint
from pipeline.training.checkpoint import checkpoint_path
from shards.errors import FairfaceError
from tests.pipeline.gan.helpers import TINY

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def images(trained) -> ImageGenerator:
    network, _ = load_generator(checkpoint_path(trained.run("r").checkpoints, 12), CPU)
    return ImageGenerator(network, CPU, seed=3)


def pixels_of(images: ImageGenerator, first: int, count: int) -> np.ndarray:
    """uint8 [count, S, S, 3]."""
    return np.stack([np.asarray(Image.open(io.BytesIO(data))) for data in images.iterate_png(first, count)])


def wide_network(classes: int = 0) -> Generator:
    """A generator of the published width, whose matrix products a library may well round by their size."""
    torch.manual_seed(0)
    network = Generator(image_size=32, classes=classes).eval()
    for layer in network.net:
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.uniform_(-0.1, 0.1)
            layer.running_var.uniform_(0.01, 0.05)
    return network.requires_grad_(False).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("batch_size", [1, 7, 64, 100, 1000])
@pytest.mark.parametrize("truncation", [None, 0.5])
def test_an_image_does_not_depend_on_the_batch_size(images, batch_size, truncation):
    images = replace(images, truncation=truncation)
    assert np.array_equal(pixels_of(replace(images, batch_size=batch_size), 0, 130), pixels_of(images, 0, 130))


@pytest.mark.parametrize("index", [0, 63, 64, 129])
@pytest.mark.parametrize("truncation", [None, 0.5])
def test_any_image_can_be_generated_on_its_own(images, index, truncation):
    images = replace(images, truncation=truncation)
    assert np.array_equal(pixels_of(images, index, 1)[0], pixels_of(images, 0, 130)[index])


def test_an_image_of_a_wide_network_does_not_depend_on_batch_size_or_cores(monkeypatch):
    images, threads = ImageGenerator(wide_network(), CPU, seed=3), torch.get_num_threads()
    pixels = pixels_of(images, 0, 130)
    assert len(np.unique(pixels.reshape(130, -1), axis=0)) == 130
    assert np.array_equal(pixels_of(replace(images, batch_size=3), 0, 130), pixels)
    assert np.array_equal(pixels_of(images, 70, 9)[0], pixels[70])
    monkeypatch.setattr(generate, "available_cpus", lambda: 7)
    assert np.array_equal(pixels_of(images, 0, 130), pixels)
    assert torch.get_num_threads() == threads


def test_seeds_and_indices_differ(images):
    pixels = pixels_of(images, 0, 130)
    assert len(np.unique(pixels.reshape(130, -1), axis=0)) == 130
    assert not np.array_equal(pixels, pixels_of(replace(images, seed=4), 0, 130))


@pytest.mark.parametrize("classes", [0, 3])
def test_the_optimised_network_is_the_generator_up_to_rounding(classes):
    network = wide_network(classes)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    inputs = (torch.randn(50, 128), *([torch.arange(50) % 3] if classes else []))
    exact, pixels = network.double()(inputs[0].double(), *inputs[1:]), optimise_for_inference(network.float())(*inputs)
    assert exact.std() > 0.1
    assert (pixels - exact).abs().max() < 1e-5
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def many_latents(truncation: float | None = None) -> torch.Tensor:
    return torch.cat([latents(0, block, latent_dim=16, truncation=truncation) for block in range(100)])


def test_latents_are_standard_normal():
    z = many_latents()
    assert z.shape == (6400, 16)
    assert z.dtype == torch.float32
    assert abs(z.mean().item()) < 0.02
    assert abs(z.std().item() - 1) < 0.02


@pytest.mark.parametrize("truncation", [1e-3, 0.5, 1, 2, 40])
def test_truncated_latents_have_the_truncated_normal_distribution(truncation):
    z = many_latents(truncation).double()
    assert z.dtype == torch.float64
    assert z.abs().max() <= np.float32(truncation)
    mass = math.erf(truncation / math.sqrt(2))
    density = math.exp(-(truncation**2) / 2) / math.sqrt(2 * math.pi)
    variance = 1 - 2 * truncation * density / mass
    if truncation < 0.01:  # where that formula cancels: nearly a uniform distribution's
        variance = truncation**2 / 3
    assert z.var().item() == pytest.approx(variance, rel=0.02)
    assert abs(z.mean().item()) < 0.02 * math.sqrt(variance)
    # the whole distribution: Kolmogorov's distance is below what 1 of 1,000 samples of this size exceeds
    share = (torch.special.erf(z.flatten().sort().values / math.sqrt(2)) / mass + 1) / 2
    steps = torch.arange(len(share)) / len(share)
    assert (share - steps).abs().max() < 1.95 / math.sqrt(len(share))


def test_the_moving_average_is_loaded_by_default_and_the_generator_on_request(trained):
    path = checkpoint_path(trained.run("r").checkpoints, 12)
    (ema, state), (g, _) = load_generator(path, CPU), load_generator(path, CPU, weights="g")
    assert torch.equal(ema.net[0].weight, state["networks"]["ema"]["net.0.weight"])
    assert torch.equal(g.net[0].weight, state["networks"]["g"]["net.0.weight"])
    assert not torch.equal(ema.net[0].weight, g.net[0].weight)


def average_of_ones_and_zeros(state: dict[str, Any], half_life: float) -> float:
    """The weight of the short average in a mixture."""
    for name, value in (("ema", 1.0), ("ema_long", 0.0)):
        state["networks"][name] = {key: torch.full_like(old, value) for key, old in state["networks"][name].items()}
    return average_weights(state, half_life)["net.0.weight"].mean().item()


def test_a_mixture_of_averages_is_the_nearest_to_another_half_life(trained):
    state = checkpoint.load(checkpoint_path(trained.run("r").checkpoints, 12))
    short, long = GanOptions(**state["options"]).half_lives
    age = torch.linspace(0, 40 * long, 400_000, dtype=torch.float64)

    def profile(half_life):
        return 0.5 ** (age / half_life) / half_life

    basis, target = torch.stack([profile(short), profile(long)], 1), profile(2 * short)
    difference = basis[:, 0] - basis[:, 1]  # the weights sum to 1
    expected = (difference @ (target - basis[:, 1]) / (difference @ difference)).item()
    assert average_of_ones_and_zeros(state, 2 * short) == pytest.approx(expected, abs=1e-3)
    assert average_of_ones_and_zeros(state, short) == pytest.approx(1)
    assert average_of_ones_and_zeros(state, long) == pytest.approx(0, abs=1e-6)
    state["options"]["batch_size"] = 128
    assert average_of_ones_and_zeros(state, 17_700) == pytest.approx(1)  # 17,700.2, as a message shows it


@pytest.mark.parametrize("factor", [0.9, 4.1])
def test_half_lives_outside_those_of_the_averages_are_refused(trained, factor):
    path = checkpoint_path(trained.run("r").checkpoints, 12)
    half_life = factor * TINY.half_lives[0]
    with pytest.raises(FairfaceError, match=r"allows half-lives of 2,213 to 8,850 images"):
        load_generator(path, CPU, half_life=half_life)


def test_a_checkpoint_of_an_older_version_has_one_average(trained, tmp_path):
    state = checkpoint.load(checkpoint_path(trained.run("r").checkpoints, 12))
    del state["networks"]["ema_long"]
    path = checkpoint.save(tmp_path, 12, state, keep=1)
    load_generator(path, CPU)
    with pytest.raises(FairfaceError, match="earlier version, which kept a single moving average"):
        load_generator(path, CPU, half_life=3000)


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    path = checkpoint.save(tmp_path, 3, {"networks": {"net": {}}}, keep=1)
    with pytest.raises(FairfaceError, match="not a checkpoint of a generator"):
        load_generator(path, CPU)


def drop(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda state: state.pop(name)


def put(value: Any, *names: str) -> Callable[[dict[str, Any]], None]:
    """Replace what is below `names` in a state."""

    def change(state: dict[str, Any]) -> None:
        for name in names[:-1]:
            state = state[name]
        state[names[-1]] = value

    return change


WEIGHT = ("networks", "ema", "net.0.weight")
HOSTILE = {
    **{f"no {name}": drop(name) for name in ("run", "options", "data", "classes")},
    "options": put(None, "options"),
    "no width": put({"latent_dim": 16, "image_size": 32}, "options"),
    "image size": put(48, "options", "image_size"),
    "a huge width": put(10**7, "options", "width_g"),
    "a huge latent": put(10**18, "options", "latent_dim"),
    "a negative width": put(-1, "options", "width_g"),
    "a width of text": put("8", "options", "width_g"),
    "many classes": put({str(number): 0.5 for number in range(99)}, "classes"),
    "a list of classes": put(["female"], "classes"),
    "classes without share": put({"female": float("nan")}, "classes"),
    "a number as run": put(7, "run"),
    "data": put({"manifest": "x"}, "data"),
    "a list of weights": put([torch.zeros(3)], "networks", "ema"),
    "a number as weight": put(1.5, *WEIGHT),
    "a weight of another shape": put(torch.zeros(3), *WEIGHT),
    "a weight that is repeated": put(torch.zeros(1).expand(10**6, 10**6, 4, 4), *WEIGHT),
    "a weight of another type": put(torch.zeros(16, 32, 4, 4, dtype=torch.float64), *WEIGHT),
    "a sparse weight": put(torch.zeros(16, 32, 4, 4).to_sparse(), *WEIGHT),
    "no weight": put({}, "networks", "ema"),
    "NaN": put(torch.full((16, 32, 4, 4), math.nan), *WEIGHT),
    "infinity": put(torch.full((16, 32, 4, 4), math.inf), *WEIGHT),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_a_checkpoint_that_does_not_describe_its_generator_is_refused(trained, tmp_path, change):
    state = checkpoint.load(checkpoint_path(trained.run("r").checkpoints, 12))
    change(state)
    path = checkpoint.save(tmp_path, 12, state, keep=1)
    with pytest.raises(FairfaceError, match=r"step_000000012\.pt is not a complete checkpoint of a generator \(.+\)"):
        load_generator(path, CPU)


LONG_WEIGHT = ("networks", "ema_long", "net.0.weight")
HOSTILE_AVERAGES = {
    "no weight": put({}, "networks", "ema_long"),
    "a number as weight": put(1.5, *LONG_WEIGHT),
    "a weight that is repeated": put(torch.zeros(1).expand(10**6, 10**6, 4, 4), *LONG_WEIGHT),
    "NaN": put(torch.full((16, 32, 4, 4), math.nan), *LONG_WEIGHT),
    "a half-life of text": put("16", "options", "ema_half_life"),
    "another option": put(1, "options", "other"),
}


@pytest.mark.parametrize("change", HOSTILE_AVERAGES.values(), ids=HOSTILE_AVERAGES)
def test_averages_that_do_not_fit_the_generator_are_refused(trained, tmp_path, change):
    state = checkpoint.load(checkpoint_path(trained.run("r").checkpoints, 12))
    change(state)
    path = checkpoint.save(tmp_path, 12, state, keep=1)
    with pytest.raises(FairfaceError, match=r"step_000000012\.pt is not a complete checkpoint of a generator \(.+\)"):
        load_generator(path, CPU, half_life=3000)
