"""Where the backbones' weights come from, and the errors where they are unavailable."""

import pytest
import torch
from safetensors.torch import save_file

from models.detectors import BuildConfig, Weights, backbones, build_detector_network, srm
from shards.errors import FairfaceError, WeightsUnavailable


def build(name: str, weights: Weights, image_size: int = 64) -> torch.nn.Module:
    return build_detector_network(name, BuildConfig(weights, image_size), seed=0)


def test_weights_from_a_file_are_adapted_to_other_inputs_and_heads(tmp_path):
    """A checkpoint of timm's, and one as the benchmark distributes it, with flat pointwise layers."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        state = backbones.timm.create_model("legacy_xception").state_dict()
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "timm.safetensors")
    flat = {key: value[:, :, 0, 0] if "pointwise" in key else value for key, value in state.items()}
    torch.save(flat, tmp_path / "xception.pth")
    for file in ("timm.safetensors", "xception.pth"):
        weights = Weights(str(tmp_path / file))
        net = build("xception", weights).net
        assert torch.equal(net.block7.rep[1].pointwise.weight, state["block7.rep.1.pointwise.weight"])
        assert net.fc.out_features == 1
        with_phase = build("spsl", weights).net
        assert with_phase.conv1.weight.shape[1] == 4
        assert torch.allclose(with_phase.conv1.weight[:, 0], state["conv1.weight"][:, 0] * 3 / 4)
        two_streams = build("srm", weights)
        assert torch.equal(two_streams.noise.conv4.pointwise.weight, state["conv4.pointwise.weight"])


def test_unavailable_weights_are_an_error_that_says_what_to_do(tmp_path, monkeypatch):
    def unreachable(url: str) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(backbones.hub, "check_server", unreachable)
    with pytest.raises(
        WeightsUnavailable,
        match=r"legacy_xception.tf_in1k are not on this machine .* pass --pretrained .* --from-scratch",
    ):
        build("xception", Weights())
    monkeypatch.setattr(backbones.hub.huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    with pytest.raises(FairfaceError, match=r"hf download timm/efficientnet_b4.ra2_in1k model.safetensors"):
        build("efficientnet", Weights())
    with pytest.raises(FairfaceError, match=r"ViT-L-14-quickgelu/openai are not .* --pretrained /path"):
        build("univfd", Weights(), 70)
    with pytest.raises(FairfaceError, match=r"'gone.pth' is neither a file nor a tag of timm's legacy_xception"):
        build("core", Weights("gone.pth"))


def test_files_that_are_not_a_checkpoint_of_the_backbone_are_refused(tmp_path):
    path = tmp_path / "x.pth"
    path.write_bytes(b"nothing")
    with pytest.raises(FairfaceError, match=r"x.pth is not a checkpoint of timm's legacy_xception"):
        build("core", Weights(str(path)))
    torch.save({"a": torch.zeros(1)}, path)
    with pytest.raises(FairfaceError, match=r"x.pth is not a checkpoint of timm's vit_base_patch16_224"):
        build("vit", Weights(str(path)))


def test_xceptions_middle_flow_has_the_side_that_attention_is_built_for():
    net = backbones.xception(Weights(from_scratch=True))
    for size in (64, 96, 101, 256):
        features = torch.zeros(1, 3, size, size)
        for layer in ("conv1", "conv2", "block1", "block2", "block3"):
            features = getattr(net, layer)(features)
        assert features.shape[-1] == srm.middle_flow_side(size), size
