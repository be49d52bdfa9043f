"""Checkpoints of the benchmark's and of the papers' authors: states with their names and shapes.

Each is loaded into our network, whose logits must be those that the authors' network computes with the same weights.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from models.detectors import BuildConfig, Detector, Weights, backbones, build_detector_network, published
from shards.errors import WeightsUnavailable

CLIP = "ViT-S-32-alt"  # in the place of ViT-L/14
WIDTH, PROJECTED = 384, 256  # of its features, before and after the projection
DINOV3 = "vit_small_patch16_dinov3"  # in the place of ViT-L
State = dict[str, Tensor]


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Random weights that are the same in every run."""
    torch.manual_seed(0)


def images(count: int = 2, *, size: int = 64) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def load(name: str, state: object, path: Path, *, size: int = 64, backbone: str | None = None) -> Detector:
    torch.save(state, path)
    return build_detector_network(name, BuildConfig(Weights(str(path)), size, backbone=backbone), seed=0).eval()


def assert_logits(net: Detector, expected: Tensor, *, size: int = 64) -> None:
    with torch.no_grad():
        logits = net(images(size=size))
    assert logits.std() > 1e-4
    tolerance = 3e-4 * expected.abs().max().item()  # UnivFD's features are rounded to float16
    assert torch.allclose(logits, expected.flatten(), rtol=0, atol=tolerance)


def two_classes(weight: Tensor, bias: Tensor) -> Callable[[Tensor], Tensor]:
    """The logit of fake against real by a layer of two classes."""
    return lambda features: F.linear(features, weight, bias).diff(dim=1)


@pytest.fixture(scope="module")
def xception() -> nn.Module:
    """An Xception of one class whose BatchNorms are not at their start."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = timm.create_model("legacy_xception", num_classes=1)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        net.train()(torch.randn(4, 3, 64, 64))
    return net.eval()


def benchmark_state(xception: nn.Module) -> State:
    """The benchmark's names of a detector with one Xception."""
    state = {f"backbone.{name}".replace("fc.", "last_linear."): value for name, value in xception.state_dict().items()}
    return state | {"backbone.adjust_channel.0.weight": torch.zeros(512, 2048, 1, 1)}


@torch.no_grad()
@pytest.mark.parametrize("name", ["xception", "dag_fdd"])
def test_the_benchmarks_xception_keeps_its_head(xception, name, tmp_path):
    state = {f"module.{name}": value for name, value in benchmark_state(xception).items()}
    net = load(name, {"state_dict": state}, tmp_path / "xception4.pth")
    assert_logits(net, xception(images()))


@torch.no_grad()
def test_two_classes_become_one_logit(xception, tmp_path):
    weight, bias = torch.randn(2, 2048), torch.randn(2)
    head = {"backbone.last_linear.weight": weight, "backbone.last_linear.bias": bias}
    net = load("core", benchmark_state(xception) | head, tmp_path / "core.pth")
    assert_logits(net, two_classes(weight, bias)(xception.forward_head(xception.forward_features(images()), True)))


def test_the_benchmarks_f3net_keeps_its_masks(xception, tmp_path):
    state = benchmark_state(xception)
    for part in ("weight", "bias"):
        state[f"backbone.last_linear.1.{part}"] = state.pop(f"backbone.last_linear.{part}")
    state |= {f"FAD_head.filters.{i}.learnable": torch.full((64, 64), float(i)) for i in range(4)}
    state |= {"FAD_head._DCT_all": torch.zeros(64, 64), "backbone.conv1.weight": torch.randn(32, 12, 3, 3)}
    net = load("f3net", state, tmp_path / "f3net.pth")
    assert net.input_transform.learnable_masks[:, 0, 0].tolist() == [0, 1, 2, 3]
    assert torch.equal(net.net.conv1.weight, state["backbone.conv1.weight"])
    with pytest.raises(WeightsUnavailable, match=r"f3net.pth is not a checkpoint of this detector \(size mismatch"):
        build_detector_network("f3net", BuildConfig(Weights(str(tmp_path / "f3net.pth")), 96), seed=0)


@torch.no_grad()
def test_the_benchmarks_vit_is_torchvisions(monkeypatch, tmp_path):
    monkeypatch.setattr(backbones, "VIT", "vit_tiny_patch16_224.augreg_in21k_ft_in1k")
    theirs = torchvision.models.VisionTransformer(
        image_size=64, patch_size=16, num_layers=12, num_heads=3, hidden_dim=192, mlp_dim=768, num_classes=1
    ).eval()
    nn.init.normal_(theirs.heads.head.weight)
    assert_logits(load("vit", theirs.state_dict(), tmp_path / "vit.pth"), theirs(images()))


@torch.no_grad()
def test_univfd_with_its_clip_and_univfds_layer_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(backbones, "CLIP", CLIP)
    size = 70  # a multiple of the patches of ViT-L/14
    model, fc = open_clip.create_model(CLIP, force_image_size=size).eval(), nn.Linear(PROJECTED, 1)
    nn.init.normal_(fc.weight)
    expected = fc(model.encode_image(images(size=size)))
    whole = {f"model.{name}": value for name, value in model.state_dict().items()}
    whole |= {f"fc.{name}": value for name, value in fc.state_dict().items()}
    assert_logits(load("univfd", whole, tmp_path / "univfd.pth", size=size), expected, size=size)
    torch.save(model.state_dict(), tmp_path / "clip.pt")
    monkeypatch.setattr(backbones.clip, "find_weights", lambda *_: tmp_path / "clip.pt")
    assert_logits(load("univfd", fc.state_dict(), tmp_path / "fc_weights.pth", size=size), expected, size=size)


def transformers_state(visual: nn.Module) -> State:
    """The weights of an image tower of open_clip by the names of transformers' CLIP."""
    state = {}
    for name, value in visual.state_dict().items():
        if "attn.in_proj" in name:
            layer, kind = name.split("in_proj_")
            parts = zip("qkv", value.chunk(3), strict=True)
            state |= {f"{layer}{letter}_proj.{kind}": part.clone() for letter, part in parts}
        elif name != "proj":
            state[name] = value.clone()
    replacements = {
        "class_embedding": "embeddings.class_embedding",
        "positional_embedding": "embeddings.position_embedding.weight",
        "conv1.": "embeddings.patch_embedding.",
        "ln_pre.": "pre_layrnorm.",
        "ln_post.": "post_layernorm.",
        "transformer.resblocks.": "encoder.layers.",
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "c_fc": "fc1",
        "c_proj": "fc2",
        ".attn.": ".self_attn.",
    }
    for ours, theirs in replacements.items():
        state = {name.replace(ours, theirs): value for name, value in state.items()}
    return state | {"embeddings.position_ids": torch.arange(5)[None]}


@torch.no_grad()
def test_gend_on_clip_of_transformers_and_on_perception_encoder_of_timm(tmp_path):
    visual = open_clip.create_model(CLIP, force_image_size=64).visual.eval()
    visual.proj, weight, bias = None, torch.randn(2, WIDTH), torch.randn(2)
    head = {"model.linear.weight": weight, "model.linear.bias": bias}
    state = {f"feature_extractor.vision_model.{name}": value for name, value in transformers_state(visual).items()}
    state |= {"feature_extractor.visual_projection.weight": torch.zeros(PROJECTED, WIDTH)}
    net = load("gend", state | head, tmp_path / "gend.pth", backbone=CLIP)
    assert_logits(net, two_classes(weight, bias)(F.normalize(visual(images()))))
    with pytest.raises(
        WeightsUnavailable, match=r"gend.pth is not a checkpoint of timm's vit_pe_core_tiny_patch16_384"
    ):
        load("gend", state | head, tmp_path / "gend.pth", backbone="pe-tiny")
    encoder = timm.create_model("vit_pe_core_tiny_patch16_384", num_classes=0, dynamic_img_size=True).eval()
    weight = torch.randn(2, encoder.num_features)
    state = {f"feature_extractor.backbone.{name}": value for name, value in encoder.state_dict().items()}
    state |= {"model.linear.weight": weight, "model.linear.bias": bias}
    net = load("gend", state, tmp_path / "gend.pth", backbone="pe-tiny")
    assert_logits(net, two_classes(weight, bias)(F.normalize(encoder(images()))))


def hugging_face_dinov3_state(encoder: nn.Module) -> State:
    """The weights of timm's DINOv3 by the names of transformers' DINOv3, with its other tensors."""
    width = encoder.num_features
    state = {"embeddings.mask_token": torch.zeros(1, 1, width), "rope_embeddings.inv_freq": torch.zeros(16)}
    for name, value in encoder.state_dict().items():
        layer, _, kind = name.partition("attn.qkv.")
        if kind:
            parts = zip("qkv", value.chunk(3), strict=True)
            state |= {f"{layer}attention.{letter}_proj.{kind}": part.clone() for letter, part in parts}
            state |= {f"{layer}attention.{letter}_proj.bias": torch.zeros(width) for letter in "qv"}
        else:
            state[name.replace("attn.proj", "attention.o_proj")] = value
    replacements = {
        "cls_token": "embeddings.cls_token",
        "reg_token": "embeddings.register_tokens",
        "patch_embed.proj": "embeddings.patch_embeddings",
        "blocks.": "layer.",
        "fc1": "up_proj",
        "fc2": "down_proj",
    }
    for ours, theirs in replacements.items():
        state = {name.replace(ours, theirs): value for name, value in state.items()}
    return {re.sub(r"gamma_([12])", r"layer_scale\1.lambda1", name): value for name, value in state.items()}


@torch.no_grad()
@pytest.mark.parametrize("prefix", ["", "model."], ids=["transformers 4", "transformers 5"])
def test_gend_on_dinov3_of_transformers(tmp_path, prefix):
    encoder = timm.create_model(DINOV3, num_classes=0, dynamic_img_size=True, global_pool="token").eval()
    for name, value in encoder.named_parameters():
        nn.init.normal_(value, mean=float("norm" in name or "gamma" in name), std=0.05)
    weight, bias = torch.randn(2, encoder.num_features), torch.randn(2)
    backbone = hugging_face_dinov3_state(encoder)
    backbone = {name.replace("layer.", f"{prefix}layer.", 1): value for name, value in backbone.items()}
    state = {f"feature_extractor.backbone.{name}": value for name, value in backbone.items()}
    state |= {"model.linear.weight": weight, "model.linear.bias": bias}
    net = load("gend", state, tmp_path / "gend.pth", backbone=DINOV3)
    assert_logits(net, two_classes(weight, bias)(F.normalize(encoder(images()))))
    state[f"feature_extractor.backbone.{prefix}layer.0.attention.q_proj.bias"] += 1
    with pytest.raises(WeightsUnavailable, match=r"gend.pth is an incomplete checkpoint of this detector"):
        load("gend", state, tmp_path / "gend.pth", backbone=DINOV3)


@torch.no_grad()
def test_effort_on_clip_of_transformers(tmp_path):
    visual = open_clip.create_model(CLIP, force_image_size=64).visual.eval()
    visual.proj, weight, bias = None, torch.randn(2, WIDTH), torch.randn(2)
    state, whole = {"head.weight": weight, "head.bias": bias}, {}
    for name, value in transformers_state(visual).items():
        if ".self_attn." in name and name.endswith("weight"):
            components = {"U": torch.randn(WIDTH, 1), "S": torch.randn(1), "V": torch.randn(1, WIDTH)}
            layer = f"backbone.{name.removesuffix('.weight')}"
            state |= {f"{layer}.weight_main": value, f"{layer}.S_r": torch.zeros(WIDTH - 1)}
            state |= {f"{layer}.{letter}_residual": component / 10 for letter, component in components.items()}
            value = value + components["U"] @ components["S"].diag() @ components["V"] / 1000
        else:
            state[f"backbone.{name}"] = value
        whole[name] = value
    visual.load_state_dict(published.clip_encoder(whole))
    net = load("effort", state, tmp_path / "effort.pth", backbone=CLIP)
    assert_logits(net, two_classes(weight, bias)(visual(images())))


@torch.no_grad()
def test_nprs_network_is_half_a_resnet50(tmp_path):
    theirs = torchvision.models.resnet50(num_classes=1)
    theirs.conv1 = nn.Conv2d(3, 64, 3, stride=2, padding=1, bias=False)
    theirs.layer3 = theirs.layer4 = nn.Identity()
    theirs.fc = nn.Linear(512, 1)
    theirs.train()(images(8))
    state = {name.replace("fc.", "fc1."): value for name, value in theirs.eval().state_dict().items()}
    half = F.interpolate(images(), scale_factor=0.5, mode="nearest", recompute_scale_factor=True)
    residuals = images() - F.interpolate(half, scale_factor=2.0, mode="nearest", recompute_scale_factor=True)
    net = load("npr", {"model": state, "total_steps": 5}, tmp_path / "npr.pth")
    assert_logits(net, theirs(residuals * 2.0 / 3.0))


@pytest.mark.parametrize(
    ("name", "key", "message"),
    [
        ("efficientnet", "backbone.efficientnet._conv_stem.weight", "differs from the one here (its layers pad"),
        ("srm", "backbone_rgb.conv1.weight", "differs from the one here (its logits are not cosines)"),
        ("ucf", "encoder_f.conv1.weight", "differs from the one here (its encoders lack an activation)"),
        ("xception", "encoder_f.conv1.weight", "is not a checkpoint of timm's legacy_xception"),
        ("npr", "conv1.weight", "is not a checkpoint of NPR's authors"),
        ("npr", "fc1.weight", "is not a checkpoint of this detector (it lacks net.conv1.weight)"),
    ],
)
def test_checkpoints_of_another_architecture_are_refused_in_one_line(name, key, message, tmp_path):
    with pytest.raises(WeightsUnavailable) as error:
        load(name, {key: torch.zeros(1, 512)}, tmp_path / "theirs.pth")
    assert str(error.value).startswith(str(tmp_path / "theirs.pth"))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "marker"),
    [
        ("vit", {"heads.head.weight": torch.zeros(1, 4)}),
        ("effort", {"backbone.encoder.layers.0.self_attn.q_proj.weight_main": torch.zeros(4, 4)}),
        ("f3net", {"backbone.block1.rep.0.conv1.weight": torch.zeros(1)}
         | {f"FAD_head.filters.{i}.learnable": torch.zeros(i + 1) for i in range(2)}),
    ],
)  # fmt: skip
def test_an_incomplete_checkpoint_is_refused_in_one_line(tmp_path, name, marker):
    with pytest.raises(WeightsUnavailable, match="incomplete checkpoint of this detector") as caught:
        load(name, marker, tmp_path / "part.pth", size=70 if name == "effort" else 64)
    assert "\n" not in str(caught.value)


class RunsCommand:
    """An object that makes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(("name", "backbone"), [("xception", None), ("gend", "test_vit"), ("gend", CLIP)])
def test_code_in_a_checkpoint_is_not_run(tmp_path, monkeypatch, name, backbone):
    """Not even by older versions of timm, whose default is to run it."""
    monkeypatch.setattr(timm.models.load_state_dict, "__defaults__", (True, "cpu", False))
    with pytest.raises(WeightsUnavailable, match=r"evil.pth is not a checkpoint of"):
        load(name, {"state_dict": RunsCommand(tmp_path / "run")}, tmp_path / "evil.pth", backbone=backbone)
    assert not (tmp_path / "run").exists()


SCALAR = torch.zeros(())


@pytest.mark.parametrize(
    ("name", "state"),
    [
        ("xception", {"a.pointwise.weight": 3}),
        ("xception", {"backbone.block1.rep.0.conv1.weight": SCALAR, "backbone.last_linear.weight": SCALAR}),
        ("f3net", {"backbone.block1.rep.0.conv1.weight": SCALAR, "FAD_head.filters.0.learnable": "text"}),
        ("vit", {"heads.head.weight": 3}),
        ("univfd", {"fc.weight": torch.zeros(1, PROJECTED), "model.visual.conv1.weight": None}),
        ("gend", {"model.linear.weight": SCALAR}),
    ],
)
def test_a_checkpoint_of_other_values_is_refused_in_one_line(tmp_path, name, state):
    with pytest.raises(WeightsUnavailable, match=r"theirs.pth is (not a|an incomplete) checkpoint of") as caught:
        load(name, state, tmp_path / "theirs.pth", size=70 if name in ("univfd", "gend") else 64)
    assert "\n" not in str(caught.value)
