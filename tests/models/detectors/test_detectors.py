"""Each of the twelve: it learns, it compiles as one graph, it goes on to the bit from a checkpoint."""

import click
import numpy as np
import pytest
import torch

from models.detectors import (
    ALIASES,
    DETECTORS,
    BuildConfig,
    Labels,
    Weights,
    backbones,
    build_detector_network,
    find_detector,
    srm,
)
from models.detectors.base import varied
from models.detectors.input_transforms import FrequencyBands, NoiseResidual, with_phase
from models.detectors.ucf import restyled
from pipeline.data.loader import decode_all
from pipeline.data.shard_set import ShardSet
from pipeline.detection.trainer import DetectorOptions, DetectorTrainer
from pipeline.gan.trainer import PRESETS, GanTrainer
from pipeline.training import checkpoint
from shards.errors import FairfaceError

CPU = torch.device("cpu")
PIXELS = dict.fromkeys(DETECTORS, 64) | {"univfd": 70}
RATES = dict.fromkeys(DETECTORS, 1e-2) | {
    "efficientnet": 3e-4,
    "vit": 1e-3,
    "univfd": 1e-1,
    "srm": 3e-3,
    "ucf": 5e-2,
    "pg_fdd": 5e-2,
}
STEPS = 5
SCRATCH = Weights(scratch=True)


@pytest.fixture(scope="module")
def faces(packed):
    """Four drawn faces, then four of an untrained DCGAN: uint8 [8, 64, 64, 3]; and what is known of them."""
    drawn = next(decode_all(ShardSet.open(packed / "shards"), 64, CPU, 4)).clone()
    made = GanTrainer(PRESETS["sketch"], CPU).grid()[:4]
    made = (made * 255).to(torch.uint8).permute(0, 2, 3, 1)
    known = Labels(
        torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]),
        torch.tensor([0, 0, 0, 0, 2, 2, 1, -1]),
        torch.tensor([0, 5, 2, -1, 0, 1, 1, 3]),
    )
    return torch.cat([drawn, made]), known


def options(name: str) -> DetectorOptions:
    batch = 4 if DETECTORS[name].paired else 8
    return DetectorOptions(
        name, PIXELS[name], batch, lr=RATES[name], from_scratch=True, precision="fp32", compile=False, feed="resident"
    )


def trainer(name: str) -> DetectorTrainer:
    return DetectorTrainer(options(name), [9, 1, 2, 3, 4, 5], CPU, per_epoch=10)


@pytest.mark.parametrize("name", DETECTORS)
def test_it_learns_and_goes_on_to_the_bit(name, faces, tmp_path):
    images, known = faces
    whole = trainer(name)
    told = [whole.step(0, images, known)]
    checkpoint.save(tmp_path, 1, {"nets": whole.state()}, 1)
    told += [whole.step(step, images, known) for step in range(1, STEPS)]
    assert torch.stack(told[-2:]).mean(0)[0] < 0.9 * told[0][0], [round(t[0].item(), 3) for t in told]
    after, went_on = whole.state(), trainer(name)
    went_on.load(checkpoint.load(checkpoint.checkpoint_path(tmp_path, 1))["nets"])
    again = [went_on.step(step, images, known) for step in range(1, STEPS)]
    assert torch.equal(torch.stack(again), torch.stack(told[1:]))
    for key, value in went_on.state()["net"].items():
        assert torch.equal(value, after["net"][key]), key
    net = went_on.net.eval()
    with torch.inference_mode():
        seen = DETECTORS[name].normalised(images, PIXELS[name])
        logits = net(seen)
        assert logits.shape == (8,)
        assert torch.allclose(net(seen[2:5]), logits[2:5], atol=1e-3)  # a face's logit is its own alone


@pytest.mark.parametrize("name", ["core", "spsl", "srm", "daw_fdd", "pg_fdd"])
def test_a_step_is_one_graph(name, faces):
    """As torch.compile must see it: whatever depended on the data would break it."""
    images, known = faces
    net = build_detector_network(name, BuildConfig(SCRATCH, PIXELS[name]), 0)
    seen = DETECTORS[name].normalised(images, PIXELS[name])
    torch.manual_seed(0)
    plain = net.learn(seen, known)[0]
    torch.manual_seed(0)
    compiled = torch.compile(net.learn, fullgraph=True, backend="eager")(seen, known)[0]
    assert torch.allclose(plain, compiled, rtol=0.2), "BatchNorm has moved once between the two"


def test_names_of_the_benchmark_are_known():
    official = [
        "xception",
        "efficientnet",
        "core",
        "ucf",
        "srm",
        "f3net",
        "spsl",
        "daw_fdd",
        "dag_fdd",
        "fair_df_detector",
    ]
    assert {find_detector(name)[0] for name in [*official, "vit", "clip"]} == set(DETECTORS)
    assert find_detector("ViT-B/16")[0] == "vit"
    assert find_detector("DAW-FDD")[0] == "daw_fdd"
    assert set(ALIASES.values()) <= set(DETECTORS)
    with pytest.raises(FairfaceError, match="no such detector; there are xception"):
        find_detector("resnet")


def test_sizes_that_a_network_cannot_look_at_are_refused():
    with pytest.raises(FairfaceError, match="ViT-B/16 takes 64 pixels or more, in multiples of 16"):
        build_detector_network("vit", BuildConfig(SCRATCH, 100), 0)
    with pytest.raises(FairfaceError, match="64 pixels or more"):
        build_detector_network("xception", BuildConfig(SCRATCH, 32), 0)


def test_what_is_not_pretrained_is_a_function_of_the_seed():
    one, same, other = (
        build_detector_network("dag_fdd", BuildConfig(SCRATCH, 64), seed).state_dict() for seed in (0, 0, 1)
    )
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(one["net.fc.weight"], other["net.fc.weight"])


def test_weights_come_from_a_file_and_fit_other_inputs_and_heads(tmp_path):
    """A checkpoint of timm's, and one as the benchmark has it, with flat pointwise layers."""
    from safetensors.torch import save_file

    with torch.random.fork_rng():
        torch.manual_seed(5)
        state = backbones.timm.create_model("legacy_xception").state_dict()
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "timm.safetensors")
    flat = {key: value[:, :, 0, 0] if "pointwise" in key else value for key, value in state.items()}
    torch.save(flat, tmp_path / "xception.pth")
    for file in ("timm.safetensors", "xception.pth"):
        weights = Weights(str(tmp_path / file))
        net = build_detector_network("xception", BuildConfig(weights, 64), 0).net
        assert torch.equal(net.block7.rep[1].pointwise.weight, state["block7.rep.1.pointwise.weight"])
        assert net.fc.out_features == 1
        phases = build_detector_network("spsl", BuildConfig(weights, 64), 0).net
        assert phases.conv1.weight.shape[1] == 4
        assert torch.allclose(phases.conv1.weight[:, 0], state["conv1.weight"][:, 0] * 3 / 4)
        both = build_detector_network("srm", BuildConfig(weights, 64), 0)
        assert torch.equal(both.noise.conv4.pointwise.weight, state["conv4.pointwise.weight"])


def test_weights_that_cannot_be_had_are_said(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(backbones.hub, "probe", lambda url: (_ for _ in ()).throw(OSError("no route to host")))
    with pytest.raises(
        click.ClickException, match=r"legacy_xception.tf_in1k are not here .* pass --pretrained .* --from-scratch"
    ):
        build_detector_network("xception", BuildConfig(Weights(), 64), 0)
    monkeypatch.setattr(backbones.hub.huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    with pytest.raises(FairfaceError, match=r"hf download timm/efficientnet_b4.ra2_in1k model.safetensors"):
        build_detector_network("efficientnet", BuildConfig(Weights(), 64), 0)
    with pytest.raises(FairfaceError, match=r"ViT-L-14-quickgelu/openai are not here .* --pretrained /path"):
        build_detector_network("univfd", BuildConfig(Weights(), 70), 0)
    with pytest.raises(FairfaceError, match=r"'gone.pth' is no file and no tag of timm's legacy_xception"):
        build_detector_network("core", BuildConfig(Weights("gone.pth"), 64), 0)
    (tmp_path / "x.pth").write_bytes(b"nothing")
    with pytest.raises(FairfaceError, match=r"x.pth is not a checkpoint of timm's legacy_xception"):
        build_detector_network("core", BuildConfig(Weights(str(tmp_path / "x.pth")), 64), 0)
    torch.save({"a": torch.zeros(1)}, tmp_path / "x.pth")
    with pytest.raises(FairfaceError, match=r"x.pth is not a checkpoint of timm's vit_base_patch16_224"):
        build_detector_network("vit", BuildConfig(Weights(str(tmp_path / "x.pth")), 64), 0)


def test_frozen_features_do_not_learn_and_are_not_saved(faces):
    images, known = faces
    ours = trainer("univfd")
    before = ours.net.features.visual.proj.clone()
    ours.step(0, images, known)
    assert torch.equal(before, ours.net.features.visual.proj)
    assert set(ours.state()["net"]) == {"head.weight", "head.bias"}
    assert not ours.net.features.visual.training


def test_bands_of_frequencies_add_up():
    """With no learnt mask the last band is the image, and the three others make it up but for their shared edges."""
    bands = FrequencyBands(64)
    torch.nn.init.zeros_(bands.learnt)
    images = torch.randn(2, 3, 64, 64)
    out = bands(images)
    assert out.shape == (2, 12, 64, 64)
    assert torch.allclose(out[:, 9:], images, atol=1e-4)
    flat = bands(torch.ones(1, 3, 64, 64))
    assert torch.allclose(flat[:, :3], torch.ones(1, 3, 64, 64), atol=1e-4)  # a flat image has low frequencies alone
    assert flat[:, 3:9].abs().max() < 1e-4


def test_phases_keep_no_contrast():
    images = torch.rand(2, 3, 32, 32)
    both = with_phase(torch.cat([images, 5 * images]))
    assert torch.equal(both[:2, :3], images)
    assert torch.allclose(both[:2, 3], both[2:, 3], atol=1e-4)
    spectrum = torch.fft.fft2(both[0, 3].double()).abs()
    assert torch.allclose(spectrum, torch.ones_like(spectrum), atol=1e-3)


def test_noise_of_a_smooth_image_is_none():
    ramp = torch.linspace(0, 1, 16).expand(1, 3, 16, 16)
    assert NoiseResidual()(ramp)[..., 2:-2, 2:-2].abs().max() < 1e-5
    spike = torch.zeros(1, 3, 16, 16)
    spike[0, :, 8, 8] = 1
    noise = NoiseResidual()(spike)[0]
    assert noise[:, 8, 8].tolist() == [-3.0, -3.0, -3.0]  # -4/4, -12/12, -2/2, of three channels
    assert noise[2, 8, 7] == 1.5


def test_the_middle_of_xception_has_the_side_that_attention_was_made_for():
    net = backbones.xception(SCRATCH)
    for size in (64, 96, 101, 256):
        features = torch.zeros(1, 3, size, size)
        for layer in ("conv1", "conv2", "block1", "block2", "block3"):
            features = getattr(net, layer)(features)
        assert features.shape[-1] == srm.middle_side(size), size


def test_views_of_one_image_differ_and_stay_images():
    torch.manual_seed(0)
    images = torch.rand(16, 3, 64, 64)
    one, other = varied(images), varied(images)
    assert one.shape == images.shape
    assert not torch.equal(one, other)
    assert one.min() >= 0
    assert one.max() <= 1
    assert 1 < ((one == 0).all(1).flatten(1).any(1)).sum() < 16  # some have a part erased


def test_restyled_features_have_the_means_and_deviations_of_the_style():
    content, style = torch.randn(2, 5, 8, 8), 3 * torch.randn(2, 5, 8, 8) + 1
    out = restyled(content, style)
    assert torch.allclose(out.mean((2, 3)), style.mean((2, 3)), atol=1e-4)
    assert torch.allclose(out.std((2, 3)), style.std((2, 3)), rtol=1e-3)
    assert np.corrcoef(out[0, 0].flatten(), content[0, 0].flatten())[0, 1] > 0.999
