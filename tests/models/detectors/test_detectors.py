"""Each detector: it trains, compiles as one graph, and resumes to the bit from a checkpoint."""

from pathlib import Path

import pytest
import torch

from models.detectors import DETECTORS, BuildConfig, Labels, Weights, backbones, build_detector_network, resolve_spec
from models.detectors.base import FrozenFeatureDetector
from models.detectors.core import random_views
from models.detectors.encoders import adaptive_instance_norm
from pipeline.data.decoder import decode_all
from pipeline.data.shard_set import ShardSet
from pipeline.detection.options import DetectorOptions
from pipeline.detection.trainer import DetectorTrainer
from pipeline.gan.options import PRESETS
from pipeline.gan.trainer import GanTrainer
from pipeline.training import checkpoint
from shards.workspace import Workspace

CPU = torch.device("cpu")
IMAGE_SIZES = dict.fromkeys(DETECTORS, 64) | {"univfd": 70}
BACKBONES = {"vfm": "test_vit", "gend": "test_vit", "effort": "test_vit"}  # a small one
LEARNING_RATES = dict.fromkeys(DETECTORS, 1e-2) | {
    "efficientnet": 3e-4,
    "vit": 1e-3,
    "univfd": 1e-1,
    "srm": 3e-3,
    "ucf": 5e-2,
    "pg_fdd": 5e-2,
    "npr": 1e-3,
}
SMALLER = {  # networks of the same kind as the three largest backbones, by the name of the backbone
    "VIT": "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
    "EFFICIENTNET": "efficientnet_b0.ra_in1k",
    "CLIP": "ViT-S-32-alt",
}
OTHER_LOSSES = ("spsl", "daw_fdd", "dag_fdd")  # Xceptions that only the loss or the input tells apart
STEPS, RESUMED_AT = 4, 3
FROM_SCRATCH = Weights(from_scratch=True)


@pytest.fixture(autouse=True)
def smaller_backbones(request, monkeypatch) -> None:
    """Replace the largest backbones by smaller ones, except in tests with the fixture `full_backbones`."""
    if "full_backbones" not in request.fixturenames:
        for name, smaller in SMALLER.items():
            monkeypatch.setattr(backbones, name, smaller)


@pytest.fixture
def full_backbones() -> None:
    """Build the backbones of the benchmark."""


@pytest.fixture(scope="module")
def faces(packed):
    """Four synthetic faces, then four of an untrained DCGAN: uint8 [8, 64, 64, 3]; and their labels."""
    real = next(decode_all(ShardSet.open(Workspace(packed).shards), 64, device=CPU, batch_size=4)).clone()
    fake = GanTrainer(PRESETS["sketch"], CPU).grid()[:4]
    fake = (fake * 255).to(torch.uint8).permute(0, 2, 3, 1)
    labels = Labels(
        torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]),
        torch.tensor([0, 0, 0, 0, 2, 2, 1, -1]),
        torch.tensor([0, 5, 2, -1, 0, 1, 1, 3]),
    )
    return torch.cat([real, fake]), labels


def build_trainer(name: str, *, resuming: bool = False) -> DetectorTrainer:
    options = DetectorOptions(
        name,
        IMAGE_SIZES[name],
        4 if DETECTORS[name].paired_batches else 8,
        lr=LEARNING_RATES[name],
        backbone=BACKBONES.get(name),
        from_scratch=True,
        precision="fp32",
        compile=False,
        feed="resident",
    )
    return DetectorTrainer(options, [9, 1, 2, 3, 4, 5], device=CPU, steps_per_epoch=10, resuming=resuming)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.attack] if name in OTHER_LOSSES else []) for name in DETECTORS]
)
def test_training_lowers_the_loss_and_resumes_to_the_bit(name, faces, tmp_path):
    check_training(name, faces, tmp_path)


@pytest.mark.attack
@pytest.mark.parametrize("name", ["vit", "efficientnet", "univfd"])
def test_the_largest_backbones_train_and_resume_too(name, faces, tmp_path, full_backbones):
    check_training(name, faces, tmp_path)


def check_training(name: str, faces: tuple[torch.Tensor, Labels], folder: Path) -> None:
    """Train a detector for a few steps, and resume it from a checkpoint."""
    images, labels = faces
    trainer = build_trainer(name)
    metrics = [trainer.step(step, images, labels) for step in range(RESUMED_AT)]
    checkpoint.save(folder, RESUMED_AT, {"networks": trainer.state()}, keep=1)
    metrics += [trainer.step(step, images, labels) for step in range(RESUMED_AT, STEPS)]
    assert torch.stack(metrics[-2:]).mean(0)[0] < 0.9 * metrics[0][0], [round(m[0].item(), 3) for m in metrics]
    final, resumed = trainer.state(), build_trainer(name, resuming=True)
    resumed.load(checkpoint.load(checkpoint.checkpoint_path(folder, RESUMED_AT), CPU)["networks"])
    again = [resumed.step(step, images, labels) for step in range(RESUMED_AT, STEPS)]
    assert torch.equal(torch.stack(again), torch.stack(metrics[RESUMED_AT:]))
    for key, value in resumed.state()["net"].items():
        assert torch.equal(value, final["net"][key]), key
    net = resumed.net.eval()
    assert isinstance(net, FrozenFeatureDetector) == trainer.options.spec.frozen_features
    with torch.inference_mode():
        inputs = trainer.options.spec.normalise(images, IMAGE_SIZES[name])
        logits = net(inputs)
        assert logits.shape == (8,)
        assert torch.allclose(net(inputs[2:5]), logits[2:5], atol=1e-3)  # a logit does not depend on the other faces


@pytest.mark.parametrize("name", ["core", "srm", "pg_fdd", "vfm", "gend", "effort", "npr"])
def test_a_training_step_is_one_graph(name, faces):
    """torch.compile requires it: whatever depended on the data would break the graph."""
    images, labels = faces
    config = BuildConfig(FROM_SCRATCH, IMAGE_SIZES[name], backbone=BACKBONES.get(name))
    net = build_detector_network(name, config, seed=0)
    inputs = resolve_spec(name, config.backbone).normalise(images, IMAGE_SIZES[name])
    torch.manual_seed(0)
    eager = net.training_step(inputs, labels)[0]
    torch.manual_seed(0)
    compiled = torch.compile(net.training_step, fullgraph=True, backend="eager")(inputs, labels)[0]
    assert torch.allclose(eager, compiled, rtol=0.2), "BatchNorm's statistics have moved once between the two"


def test_random_weights_are_a_function_of_the_seed():
    first, same, other = (
        build_detector_network("dag_fdd", BuildConfig(FROM_SCRATCH, 64), seed=seed).state_dict() for seed in (0, 0, 1)
    )
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert not torch.equal(first["net.fc.weight"], other["net.fc.weight"])


def test_frozen_features_are_not_trained_and_not_saved(faces):
    images, labels = faces
    trainer = build_trainer("univfd")
    before = trainer.net.features.visual.proj.clone()
    trainer.step(0, images, labels)
    assert torch.equal(before, trainer.net.features.visual.proj)
    assert set(trainer.state()["net"]) == {"head.weight", "head.bias"}
    assert not trainer.net.features.visual.training


def test_a_frozen_backbone_trains_the_same_on_stored_features(faces):
    images, labels = faces
    trainer = build_trainer("univfd")
    inputs = trainer.options.spec.normalise(images, trainer.options.image_size)
    features = trainer.net.extract_features(inputs)
    assert (features.dtype, features.shape) == (torch.float16, (8, trainer.net.head.in_features))
    assert not features.requires_grad
    loss, logits = trainer.net.training_step_from_features(features, labels)
    expected_loss, expected_logits = trainer.net.training_step(inputs, labels)
    assert torch.equal(loss, expected_loss)
    assert torch.equal(logits, expected_logits)
    assert torch.equal(trainer.net.eval()(inputs), trainer.net.logits_from_features(features))


def test_random_views_of_an_image_differ_and_stay_images():
    torch.manual_seed(0)
    images = torch.rand(16, 3, 64, 64)
    first, second = random_views(images), random_views(images)
    assert first.shape == images.shape
    assert not torch.equal(first, second)
    assert first.min() >= 0
    assert first.max() <= 1
    assert 1 < ((first == 0).all(1).flatten(1).any(1)).sum() < 16  # some have a rectangle erased


def test_adaptive_instance_norm_takes_means_and_deviations_from_the_style():
    content, style = torch.randn(2, 5, 8, 8), 3 * torch.randn(2, 5, 8, 8) + 1
    result = adaptive_instance_norm(content, style)
    assert torch.allclose(result.mean((2, 3)), style.mean((2, 3)), atol=1e-4)
    assert torch.allclose(result.std((2, 3)), style.std((2, 3)), rtol=1e-3)
    assert torch.corrcoef(torch.stack([result[0, 0].flatten(), content[0, 0].flatten()]))[0, 1] > 0.999
