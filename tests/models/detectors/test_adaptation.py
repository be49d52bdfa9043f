"""GenD and Effort: what of a backbone they train, and with which losses."""

import pytest
import torch
from torch import nn

from models.detectors import BuildConfig, Detector, Labels, Weights, build_detector_network, losses
from models.detectors.effort import ResidualComponents
from models.detectors.foundation import build_encoder, create_on_meta
from models.detectors.gend import LayerNormDetector
from shards.errors import FairfaceError

FROM_SCRATCH = Weights(from_scratch=True)
LABELS = Labels(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 1, 1]), torch.zeros(4, dtype=torch.int64))


def build(name: str, backbone: str) -> Detector:
    return build_detector_network(name, BuildConfig(FROM_SCRATCH, 64, backbone=backbone), seed=0)


def images() -> torch.Tensor:
    return torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def take_steps(net: Detector, *, steps: int = 3) -> None:
    optimizer = torch.optim.Adam([weight for weight in net.parameters() if weight.requires_grad], 1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        net.training_step(images(), LABELS)[0].backward()
        optimizer.step()


@pytest.mark.parametrize("backbone", ["test_vit", "ViT-S-32-alt", "pe-tiny"])
def test_gend_trains_the_layer_norms_and_the_head_only(backbone):
    net = build("gend", backbone)
    before = {name: value.clone() for name, value in net.named_parameters()}
    take_steps(net)
    changed = {name for name, value in net.named_parameters() if not torch.equal(value, before[name])}
    norms = [name for name, module in net.named_modules() if isinstance(module, nn.LayerNorm)]
    assert norms
    assert changed == {"head.weight", "head.bias"} | {f"{name}.{part}" for name in norms for part in ("weight", "bias")}


def test_gend_trains_a_share_of_0_03_percent_of_clip():
    net = LayerNormDetector(create_on_meta("open_clip", "ViT-L-14-quickgelu", 224), 1024).encoder
    trained = sum(weight.numel() for weight in net.parameters() if weight.requires_grad)
    assert trained == 2 * 1024 * (2 * 24 + 2)  # two norms in each of 24 blocks, one before and one after them
    assert trained / sum(weight.numel() for weight in net.parameters()) == pytest.approx(0.0003, rel=0.15)


def test_uniformity_and_alignment_are_means_over_pairs():
    features = nn.functional.normalize(torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    target = torch.tensor([0, 1, 0, 1, 1])
    pairs = [(i, j) for i in range(5) for j in range(i)]
    distances = {(i, j): (features[i] - features[j]).square().sum() for i, j in pairs}
    potentials = torch.stack([(-2 * distance).exp() for distance in distances.values()])
    assert torch.allclose(losses.uniformity(features), potentials.mean().log(), atol=1e-6)
    same = torch.stack([distance for (i, j), distance in distances.items() if target[i] == target[j]])
    assert torch.allclose(losses.alignment(features, target), same.mean(), atol=1e-6)
    assert losses.alignment(features[:2], target[:2]) == 0  # no pair has the same target


@pytest.mark.parametrize("backbone", ["test_vit", "ViT-S-32-alt"])
def test_effort_starts_from_its_backbone_and_trains_a_single_component_of_each_matrix(backbone):
    net = build("effort", backbone).eval()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder, _ = build_encoder(backbone, FROM_SCRATCH, image_size=64)
    with torch.no_grad():
        assert torch.equal(net(images()), net.head(encoder.eval()(images())).squeeze(1))
    take_steps(net)
    attentions = [module for name, module in net.named_modules() if name.endswith(".attn")]
    assert attentions
    for attention in (attentions[0], attentions[-1]):
        is_fused = isinstance(attention, nn.MultiheadAttention)
        stack = attention.parametrizations.in_proj_weight if is_fused else attention.qkv.parametrizations.weight
        output = (attention.out_proj if is_fused else attention.proj).parametrizations.weight
        for matrices, blocks in ((stack, 3), (output, 1)):
            components = matrices[0]
            change = (matrices() - matrices.original).unflatten(0, (blocks, -1))
            removed = (components.u0 * components.s0[:, None]) @ components.v0
            assert torch.linalg.matrix_rank(change + removed, rtol=1e-3).tolist() == [1] * blocks
            original = torch.linalg.svdvals(matrices.original.unflatten(0, (blocks, -1)))
            assert torch.allclose(components.s0, original[:, -1:], atol=1e-5)
    frozen = dict(encoder.named_parameters())
    for name, value in net.encoder.named_parameters():
        if not value.requires_grad:
            name = name.removesuffix(".original").replace("parametrizations.", "")
            assert torch.equal(value, frozen[name]), name


def test_effort_penalises_components_that_are_not_orthogonal_and_changes_of_the_norm():
    """Next to a computation with all singular vectors and whole matrices."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3 * 6, 6, generator=generator)
    components = ResidualComponents(weight, decompose=True)
    assert components.penalty(weight).abs().max() < 1e-5
    with torch.no_grad():
        for part in (components.u, components.s, components.v):
            part += 0.3 * torch.randn(part.shape, generator=generator)
    expected = []
    for matrix, changed, u, v in zip(
        weight.chunk(3), components(weight).chunk(3), components.u, components.v, strict=True
    ):
        left, _, right = torch.linalg.svd(matrix)
        left, right = torch.cat([left[:, :-1], u], 1), torch.cat([right[:-1], v])
        identity = torch.eye(6)
        orthogonality = (left.T @ left - identity).square().sum() + (right @ right.T - identity).square().sum()
        expected.append(orthogonality + (changed.square().sum() - matrix.square().sum()).abs())
    assert torch.allclose(components.penalty(weight), torch.stack(expected), rtol=1e-3)


@pytest.mark.parametrize(("name", "reason"), [("gend", "LayerNorms"), ("effort", "self-attention")])
def test_backbones_without_what_is_trained_are_refused(name, reason):
    with pytest.raises(FairfaceError, match=f"trains the {reason} of its backbone, but this one has none"):
        build(name, "test_resnet")
