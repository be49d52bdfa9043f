"""Backbones by name: what is found in timm and open_clip, which features they give, and where their weights are."""

import open_clip
import pytest
import timm
import torch

from models.detectors import BuildConfig, Weights, backbones, build_detector_network, resolve_spec
from models.detectors.foundation import SHORT_NAMES, build_encoder, create_on_meta, feature_width, find_backbone
from shards.errors import FairfaceError, WeightsUnavailable

FROM_SCRATCH = Weights(from_scratch=True)
SMALL_CLIP = "ViT-S-32-alt"


@pytest.mark.parametrize(
    ("name", "size", "multiple", "first_mean"),
    [
        ("dinov3", 256, 16, 0.485),
        ("pe", 336, 14, 0.5),
        ("clip", 224, 14, 0.48145466),
        ("siglip2", 256, 16, 0.5),
        ("metaclip2", 224, 14, 0.48145466),
        ("dinov3-small", 256, 16, 0.485),
        ("pe-tiny", 384, 16, 0.5),
        ("PE-Core-T-16-384", 384, 16, 0.5),
        ("convnext_tiny.dinov3_lvd1689m", 224, 1, 0.485),
        ("xcit_nano_12_p16_224.fb_in1k", 224, 16, 0.485),
    ],
)
def test_size_and_normalisation_are_the_backbones_own(name, size, multiple, first_mean):
    backbone = find_backbone(name)
    assert (backbone.image_size, backbone.size_multiple) == (size, multiple)
    assert backbone.normalisation[0][0] == first_mean
    spec = resolve_spec("vfm", name)
    assert (spec.image_size, spec.normalisation) == (size, backbone.normalisation)
    assert spec.title == f"VFM ({name})"


def test_short_names_have_pretrained_weights():
    for name in SHORT_NAMES:
        backbone = find_backbone(name)
        tags = open_clip.list_pretrained_tags_by_model(backbone.architecture)
        assert backbone.tag in (tags if backbone.library == "open_clip" else timm.list_pretrained()), name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dinov4", "neither timm nor open_clip has such an image encoder; did you mean dinov3"),
        ("qqqqqq", "choose one of dinov3, pe, clip"),
        ("vit_small_patch16_dinov3.imagenet", "has these weights: vit_small_patch16_dinov3.lvd1689m"),
        ("ViT-B-32/mine", "open_clip's ViT-B-32 has these weights: openai"),
    ],
)
def test_unknown_backbones_are_one_line_with_near_matches(name, message):
    with pytest.raises(FairfaceError, match=message) as error:
        find_backbone(name)
    assert "\n" not in str(error.value)


def test_features_precede_the_projection_to_texts():
    assert feature_width("clip", 224) == 1024  # 768 after the projection
    assert feature_width("PE-Core-T-16-384", 64) == feature_width("pe-tiny", 64) == 192  # 512 after it
    assert create_on_meta("timm", "vit_small_patch16_dinov3", 64).global_pool == "token"  # not the mean of the patches
    encoder, width = build_encoder(SMALL_CLIP, FROM_SCRATCH, image_size=64)
    images = torch.randn(2, 3, 64, 64)
    projected = open_clip.create_model(SMALL_CLIP, force_image_size=64).visual
    projected.load_state_dict(encoder.state_dict() | {"proj": torch.eye(width, 256)})
    assert torch.allclose(encoder(images)[:, :256], projected.eval()(images), atol=1e-5)


def test_sizes_that_a_backbone_does_not_take_are_refused():
    with pytest.raises(FairfaceError, match=r"VFM \(test_vit\) takes 64 pixels or more, in multiples of 16"):
        build_detector_network("vfm", BuildConfig(FROM_SCRATCH, 100, backbone="test_vit"), seed=0)
    with pytest.raises(FairfaceError, match=r"--backbone test_maxvit can't encode images of 112 pixels \(height"):
        build_encoder("test_maxvit", FROM_SCRATCH, image_size=112)


def test_weights_from_a_file_fit_other_image_sizes(tmp_path):
    path = tmp_path / "backbone.pth"
    state = timm.create_model("test_vit").state_dict()
    torch.save(state, path)
    net, _ = build_encoder("test_vit", Weights(str(path)), image_size=64)
    assert torch.equal(net.blocks[0].attn.qkv.weight, state["blocks.0.attn.qkv.weight"])
    assert net.pos_embed.shape[1] == 1 + (64 // 16) ** 2
    with pytest.raises(WeightsUnavailable, match=r"backbone.pth is not a checkpoint of timm's test_vit2"):
        build_encoder("test_vit2", Weights(str(path)), image_size=64)
    with pytest.raises(WeightsUnavailable, match=rf"backbone.pth is not a checkpoint of {SMALL_CLIP}"):
        build_encoder(SMALL_CLIP, Weights(str(path)), image_size=64)


def test_unavailable_weights_are_an_error_that_says_what_to_do(monkeypatch):
    def unreachable(url: str) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(backbones.hub, "check_server", unreachable)
    monkeypatch.setattr(backbones.hub.huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    with pytest.raises(WeightsUnavailable, match=r"hf download timm/vit_pe_core_tiny_patch16_384.fb .* --from-scratch"):
        build_encoder("pe-tiny", Weights(), image_size=64)
    with pytest.raises(
        WeightsUnavailable, match=r"ViT-B-32/openai are not .* --pretrained /path\S+; or train with --from-scratch"
    ):
        build_encoder("ViT-B-32/openai", Weights(), image_size=64)
    with pytest.raises(WeightsUnavailable, match=rf"open_clip has no weights of {SMALL_CLIP}: pass --pretrained FILE"):
        build_encoder(SMALL_CLIP, Weights(), image_size=64)
    with pytest.raises(WeightsUnavailable, match="timm has no weights of test_vit4: pass"):
        build_encoder("test_vit4", Weights(), image_size=64)


def test_only_detectors_on_foundation_models_take_a_backbone():
    with pytest.raises(FairfaceError, match="--backbone clip: the backbone of Xception can't be chosen"):
        resolve_spec("xception", "clip")
