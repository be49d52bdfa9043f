"""Samples are a pure function of (checkpoint, seed, index)."""

import io
import math

import numpy as np
import polars as pl
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from models.dcgan import Generator, optimise_for_inference
from pipeline.cli.main import main
from pipeline.gan import sample
from pipeline.gan.train import train
from pipeline.gan.trainer import GanOptions
from shards import tar
from shards.atomic_io import read_json

CPU = torch.device("cpu")
TINY = GanOptions(
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


def draw(net, seed: int, first: int, count: int, batch: int | None = None, truncation: float | None = None):
    """The samples' pixels: uint8 [count, S, S, 3]."""
    files = sample.iterate_png(net, seed, first, count, CPU, batch, truncation=truncation)
    return np.stack([np.asarray(Image.open(io.BytesIO(data))) for data in files])


def wide(classes: int = 0) -> Generator:
    """A generator of the published width, whose matrix products a library may well round by their size."""
    torch.manual_seed(0)
    net = Generator(128, 64, 32, classes).eval()
    for layer in net.net:
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.uniform_(-0.1, 0.1)
            layer.running_var.uniform_(0.01, 0.05)
    return net.requires_grad_(False).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("batch", [1, 7, 64, 100, 1000])
@pytest.mark.parametrize("truncation", [None, 0.5])
def test_a_sample_does_not_depend_on_the_batch(net, batch, truncation):
    assert np.array_equal(draw(net, 3, 0, 130, batch, truncation), draw(net, 3, 0, 130, None, truncation))


@pytest.mark.parametrize("index", [0, 63, 64, 129])
@pytest.mark.parametrize("truncation", [None, 0.5])
def test_any_sample_can_be_drawn_alone(net, index, truncation):
    alone = draw(net, 3, index, 1, truncation=truncation)
    assert np.array_equal(alone[0], draw(net, 3, 0, 130, truncation=truncation)[index])


def test_nor_does_one_of_a_wide_generator_or_with_other_cores(monkeypatch):
    net, all_cores = wide(), torch.get_num_threads()
    images = draw(net, 3, 0, 130)
    assert len(np.unique(images.reshape(130, -1), axis=0)) == 130
    assert np.array_equal(draw(net, 3, 0, 130, batch=3), images)
    assert np.array_equal(draw(net, 3, 70, 9)[0], images[70])
    monkeypatch.setattr(sample, "available_cpus", lambda: 7)
    assert np.array_equal(draw(net, 3, 0, 130), images)
    assert torch.get_num_threads() == all_cores


def test_seeds_and_indices_differ(net):
    images = draw(net, 3, 0, 130)
    assert len(np.unique(images.reshape(130, -1), axis=0)) == 130
    assert not np.array_equal(images, draw(net, 4, 0, 130))


@pytest.mark.parametrize("classes", [0, 3])
def test_what_draws_is_the_generator_up_to_rounding(classes):
    net = wide(classes)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    inputs = (torch.randn(50, 128), *([torch.arange(50) % 3] if classes else []))
    exact, images = net.double()(inputs[0].double(), *inputs[1:]), optimise_for_inference(net.float())(*inputs)
    assert exact.std() > 0.1
    assert (images - exact).abs().max() < 1e-5
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("side", [1, 5, 32])
def test_a_file_holds_the_pixels_as_they_are(side):
    images = torch.randint(0, 256, (3, side, side, 3), dtype=torch.uint8)
    images[1], images[2, :, : side // 2] = 200, 0
    for pixels, rows in zip(images, sample.png_rows(images), strict=True):
        image = Image.open(io.BytesIO(sample.encode_png(rows)))
        assert (image.format, image.mode) == ("PNG", "RGB")
        assert np.array_equal(np.asarray(image), pixels.numpy())
        Image.open(io.BytesIO(sample.encode_png(rows))).verify()  # the chunks' checksums


def many_latents(truncation: float | None = None) -> torch.Tensor:
    return torch.cat([sample.latents(0, block, 16, truncation) for block in range(100)])


def test_latents_are_standard_normal():
    z = many_latents()
    assert z.shape == (6400, 16)
    assert z.dtype == torch.float32
    assert abs(z.mean().item()) < 0.02
    assert abs(z.std().item() - 1) < 0.02


@pytest.mark.parametrize("truncation", [1e-3, 0.5, 1, 2, 40])
def test_truncated_latents_are_of_the_normal_that_is_cut_off(truncation):
    z = many_latents(truncation).double()
    assert z.dtype == torch.float64
    assert z.abs().max() <= np.float32(truncation)
    mass = math.erf(truncation / math.sqrt(2))
    density = math.exp(-(truncation**2) / 2) / math.sqrt(2 * math.pi)
    variance = 1 - 2 * truncation * density / mass
    if truncation < 0.01:  # where that formula cancels: nearly a uniform's
        variance = truncation**2 / 3
    assert z.var().item() == pytest.approx(variance, rel=0.02)
    assert abs(z.mean().item()) < 0.02 * math.sqrt(variance)
    # the whole distribution: Kolmogorov's distance, below what 1 of 1,000 samples of the size exceed
    share = (torch.special.erf(z.flatten().sort().values / math.sqrt(2)) / mass + 1) / 2
    steps = torch.arange(len(share)) / len(share)
    assert (share - steps).abs().max() < 1.95 / math.sqrt(len(share))


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
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), images[index])
    assert not done["unchanged"]
    assert sample.sample(out, "r", count=130, seed=3, device="cpu", progress=False)["unchanged"]
    assert not sample.sample(out, "r", count=131, seed=3, device="cpu", progress=False)["unchanged"]


def test_a_folder_of_files_is_what_the_shards_hold(out, monkeypatch, tmp_path):
    monkeypatch.setattr(sample, "SHARD_IMAGES", 50)
    call = {"count": 70, "seed": 5, "png_dir": tmp_path / "png", "device": "cpu", "progress": False}
    drawn, blocks = sample.generate_block, []
    monkeypatch.setattr(sample, "generate_block", lambda *given: blocks.append(given[2]) or drawn(*given))
    done = sample.sample(out, "r", **call)
    assert sorted(blocks) == [0, 1]  # once, not for the shards and for the folder
    files = [path.read_bytes() for path in sorted((tmp_path / "png").iterdir())]
    assert [path.name for path in sorted((tmp_path / "png").iterdir())] == [f"sample_{i:05d}.png" for i in range(70)]
    keys, folder = [f"{i:08d}" for i in range(70)], out / "runs" / "r" / "samples"
    shards = [shard["name"] for shard in done["shards"]]
    assert files == [
        *tar.read(folder, shards[0], keys[:50]).values(),
        *tar.read(folder, shards[1], keys[50:]).values(),
    ]
    (tmp_path / "png" / "sample_00007.png").unlink()
    assert sample.sample(out, "r", **call)["unchanged"]
    assert (tmp_path / "png" / "sample_00007.png").read_bytes() == files[7]
    assert len(blocks) == 2


def test_other_truncation_is_other_samples(out):
    def drawn(truncation=None):
        done = sample.sample(out, "r", count=20, device="cpu", progress=False, truncation=truncation)
        return done, (out / "runs" / "r" / "samples" / done["shards"][0]["name"]).read_bytes()

    (plain, plain_tar), (cut, cut_tar) = drawn(), drawn(0.5)
    assert "truncation" not in plain  # and the fingerprints of samples without one stay as they were
    assert cut["truncation"] == read_json(out / "runs" / "r" / "samples.json")["truncation"] == 0.5
    assert not cut["unchanged"]
    assert cut_tar != plain_tar
    assert drawn(0.5)[0]["unchanged"]
    assert not drawn(0.4)[0]["unchanged"]
    again, again_tar = drawn()
    assert not again["unchanged"]
    assert again_tar == plain_tar
    assert again["fingerprint"] == plain["fingerprint"]
    rows = pl.read_parquet(out / "runs" / "r" / "samples.parquet")
    assert rows.columns == ["key", "run", "checkpoint", "seed", "index", "shard", "requested"]


def test_the_command_truncates_and_refuses_what_is_no_bound(out):
    def fairface(*words):
        given = ["sample", "--out", out, "--run", "r", "--num-samples", 5, "--device", "cpu", *words]
        return CliRunner().invoke(main.main, [str(word) for word in given])

    result = fairface("--truncation", 0.7)
    assert result.exit_code == 0, result.output
    assert read_json(out / "runs" / "r" / "samples.json")["truncation"] == 0.7
    assert "unchanged" in fairface("--truncation", 0.7).output
    assert "unchanged" not in fairface().output
    for wrong in ("0", "-1", "nan", "inf", "much"):
        result = fairface("--truncation", wrong)
        assert result.exit_code == 2
        lines = [line for line in result.output.splitlines() if line.startswith("Error:")]
        assert len(lines) == 1
        assert "--truncation" in lines[0]


def test_the_average_is_drawn_by_default_and_the_generator_on_request(out):
    path = out / "runs" / "r" / "checkpoints" / "step_000000012.pt"
    (ema, state), (g, _) = sample.load_generator(path, CPU), sample.load_generator(path, CPU, "g")
    assert torch.equal(ema.net[0].weight, state["nets"]["ema"]["net.0.weight"])
    assert torch.equal(g.net[0].weight, state["nets"]["g"]["net.0.weight"])
    assert not torch.equal(ema.net[0].weight, g.net[0].weight)
