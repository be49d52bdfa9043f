"""Features of frozen backbones: extracted once, for every epoch, head and seed, and whatever happens meanwhile."""

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from models.detectors import FrozenFeatureDetector, registry
from models.detectors.backbones import Weights
from pipeline.data.decoder import DecoderConfig
from pipeline.data.loader import FeedConfig, streaming_feed
from pipeline.detection import features
from pipeline.detection.dataset import build_pool, iterate_labels
from pipeline.detection.network import frozen_hash
from pipeline.detection.options import DetectorOptions
from pipeline.detection.train import TrainingFaces
from pipeline.detection.trainer import DetectorTrainer
from pipeline.gan.sample import SampleConfig, sample
from pipeline.training.signals import TrainingInterrupted
from pipeline.verify import verify
from shards import locks
from shards.atomic_io import read_json, write_json
from shards.errors import FairfaceError
from shards.locks import exclusive_lock
from shards.pack import pack
from shards.plan import PackConfig
from shards.workspace import FeatureFiles, Workspace
from tests.pipeline.detection.helpers import SMALL, predictions, train, weights
from tests.ranks import finish_ranks, run_rank

FROZEN = replace(SMALL, model="univfd", image_size=70)
WIDTH = 16


class SmallBackbone(nn.Module):
    """Replaces CLIP; its weights are pretrained in that they do not depend on the seed."""

    dim = WIDTH

    def __init__(self, _weights: Weights, _image_size: int):
        super().__init__()
        self.conv = nn.Conv2d(3, WIDTH, 7, stride=7)
        for weight in self.conv.parameters():
            nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(1))

    def forward(self, images: Tensor) -> Tensor:
        return self.conv(images).relu().mean((2, 3))


class Killed(BaseException):
    """The process is killed."""


@pytest.fixture(autouse=True)
def small_backbone(monkeypatch) -> None:
    monkeypatch.setattr(registry, "ClipFeatures", SmallBackbone)


@pytest.fixture
def extracted(monkeypatch) -> list[int]:
    """The sizes of the batches whose features were extracted."""
    sizes, extract = [], features.FeatureExtractor._extract_batch

    def count(extractor: features.FeatureExtractor, images: Tensor) -> Tensor:
        sizes.append(len(images))
        return extract(extractor, images)

    monkeypatch.setattr(features.FeatureExtractor, "_extract_batch", count)
    return sizes


def places(workspace: Workspace) -> tuple[FeatureFiles, FeatureFiles]:
    return workspace.shards.features, workspace.run("mine").features


def remove_features(workspace: Workspace) -> None:
    for files in (workspace.shards.features, *(run.features for run in workspace.runs())):
        shutil.rmtree(files.folder)


def stored_rows(files: FeatureFiles) -> list[int]:
    """The images in all parts, in ascending order."""
    return sorted(row for path in files.parts() for row in load_file(path)["rows"].tolist())


def uncached_steps(workspace: Workspace, steps: int) -> DetectorTrainer:
    """Train on the images themselves."""
    faces = TrainingFaces.build(build_pool(workspace), FROZEN)
    trainer = DetectorTrainer(
        FROZEN, list(faces.pool.group_counts().values()), device=torch.device("cpu"), steps_per_epoch=100
    )
    feed = FeedConfig(70, faces.batch_size, trainer.device, decoder=DecoderConfig(pre_resize=32), progress=False)
    images = streaming_feed(faces.share.shards, faces.sampler, feed)(0)
    labels = iterate_labels(
        faces.share, faces.sampler, batch_size=faces.batch_size, first_step=0, device=trainer.device
    )
    for step, (batch, about) in enumerate(islice(zip(images, labels, strict=False), steps)):
        trainer.step(step, batch, about)
    return trainer


def test_stored_features_train_the_same_head_as_images(workspace):
    train(workspace, FROZEN, steps=30)  # more than an epoch
    head, expected = weights(workspace, "x", 30), uncached_steps(workspace, 30).net
    assert head.keys() == {"head.weight", "head.bias"}
    assert torch.allclose(head["head.weight"], expected.head.weight, rtol=0, atol=1e-5)
    assert torch.allclose(head["head.bias"], expected.head.bias, rtol=0, atol=1e-5)
    assert not torch.allclose(head["head.weight"], uncached_steps(workspace, 29).net.head.weight, rtol=0, atol=1e-5)


def test_only_faces_that_are_needed_are_extracted_and_none_twice(workspace, extracted):
    steps_per_epoch = train(workspace, FROZEN, steps=2).config.steps_per_epoch
    counts = build_pool(workspace).counts()
    other_samples = 40  # of the run `early`
    tested = counts["test_real"] + counts["test_fake"] + other_samples
    assert sum(extracted) == 2 * FROZEN.batch_size + tested
    epochs = replace(FROZEN, lr=1e-3)
    train(workspace, epochs, name="epochs", steps=10 * steps_per_epoch)
    assert sum(extracted) == counts["train_real"] + counts["train_fake"] + tested
    before = len(extracted)
    train(workspace, replace(FROZEN, seed=5, batch_size=4), name="seed", steps=9)
    assert len(extracted) == before
    rows = stored_rows(workspace.shards.features)
    assert len(rows) == len(set(rows)) == counts["train_real"] + counts["test_real"]
    assert verify(workspace, progress=False).faults == {}


def test_another_view_has_features_of_its_own(workspace, extracted):
    train(workspace, FROZEN, steps=1)
    before = sum(extracted)
    train(workspace, replace(FROZEN, image_size=84), name="y", steps=1)
    assert sum(extracted) == 2 * before
    assert len(workspace.shards.features.documents()) == 2


@pytest.mark.parametrize("kill", [False, True], ids=["SIGTERM", "kill"])
def test_an_interrupted_extraction_continues_and_changes_nothing(workspace, monkeypatch, extracted, kill):
    train(workspace, FROZEN, name="uninterrupted", steps=20)
    expected, total = predictions(workspace, "uninterrupted"), sum(extracted)
    remove_features(workspace)
    extract = features.FeatureExtractor._extract_batch

    def interrupt(extractor: features.FeatureExtractor, images: Tensor) -> Tensor:
        if len(extracted) == 2:
            if kill:
                raise Killed
            os.kill(os.getpid(), signal.SIGTERM)
        return extract(extractor, images)

    extracted.clear()
    with monkeypatch.context() as patch:
        patch.setattr(features.FeatureExtractor, "_extract_batch", interrupt)
        patch.setattr(features, "SAVE_EVERY_SECONDS", 0)
        with pytest.raises((TrainingInterrupted, Killed)) as raised:
            train(workspace, FROZEN, name="resumed", steps=20)
    if not kill:
        assert raised.value.exit_code == 75
    assert not workspace.detector("resumed").config.exists()
    train(workspace, FROZEN, name="resumed", steps=10)
    train(workspace, FROZEN, name="resumed", steps=20)
    assert sum(extracted) == total
    one, other = weights(workspace, "uninterrupted", 20), weights(workspace, "resumed", 20)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert predictions(workspace, "resumed").drop("detector").equals(expected.drop("detector"))


def test_damaged_features_are_named_and_extracted_again(workspace, extracted, capsys):
    train(workspace, FROZEN, steps=2)
    first, damaged = weights(workspace, "x", 2), workspace.shards.features.parts()[0]
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    (line,) = faults(workspace)
    assert str(damaged) in line
    assert "`fairface detect` extracts these features again" in line
    extracted.clear()
    train(workspace, FROZEN, steps=2, force=True)
    assert f"{damaged} is damaged" in capsys.readouterr().out
    assert 0 < sum(extracted) <= len(stored_rows(workspace.shards.features))
    assert torch.equal(first["head.weight"], weights(workspace, "x", 2)["head.weight"])


def test_features_are_removed_with_their_images(workspace, synthetic_root):
    train(workspace, FROZEN, steps=1)
    shards, samples = places(workspace)
    assert all(files.all() for files in (shards, samples))
    sample(workspace, SampleConfig(run="mine", count=60, device="cpu", progress=False))
    assert samples.all() == []
    assert shards.all()
    pack(synthetic_root, workspace.shards, PackConfig(shard_images=50, limit=100), force=True, progress=False)
    assert shards.all() == []


def test_a_users_files_next_to_features_are_kept(workspace, synthetic_root):
    train(workspace, FROZEN, steps=1)
    folder = workspace.shards.features.folder
    own = [folder / name for name in ("notes.json", "my-model.safetensors", "0123456789abcdef.json.bak")]
    for path in own:
        path.write_text("mine")
    train(workspace, replace(FROZEN, image_size=84), name="y", steps=1)
    assert verify(workspace, progress=False).faults == {}
    pack(synthetic_root, workspace.shards, PackConfig(shard_images=50, limit=100), force=True, progress=False)
    assert {path.read_text() for path in own} == {"mine"}
    assert workspace.shards.features.all() == []


def test_an_extraction_waits_for_another_one_and_says_so(workspace, monkeypatch, capsys):
    files, held = workspace.shards.features, ExitStack()
    held.enter_context(exclusive_lock(files.lock, "extracting features"))
    monkeypatch.setattr(locks.time, "sleep", lambda _: held.close())  # the other process ends
    train(workspace, FROZEN, steps=1)
    message = f"another process is using {files.folder}: waiting for it before extracting features"
    assert capsys.readouterr().out.count(message) == 1


def test_features_of_other_images_are_neither_used_nor_kept(workspace, extracted):
    train(workspace, FROZEN, steps=1)
    (document,) = workspace.shards.features.documents()
    write_json(document, read_json(document) | {"images_hash": "other"})
    stale = workspace.shards.features.all()
    assert [str(path) in line for path, line in zip(stale, faults(workspace), strict=True)] == [True] * len(stale)
    train(workspace, replace(FROZEN, image_size=84), name="y", steps=1)
    assert not any(path.exists() for path in stale)


def faults(workspace: Workspace) -> Iterator[str]:
    return (line for lines in verify(workspace, progress=False).faults.values() for line in lines)


def test_a_full_disk_is_reported_before_anything_is_extracted(workspace, monkeypatch, extracted):
    usage = shutil.disk_usage(workspace.root)
    monkeypatch.setattr(features.shutil, "disk_usage", lambda _: usage._replace(free=100))
    with pytest.raises(FairfaceError, match=r"the features of 7 faces need 0.0 MB, and the disk .* 0.0 MB left"):
        train(workspace, FROZEN, steps=1)
    assert extracted == []
    assert not workspace.detector("x").folder.exists()


def test_a_detector_of_an_older_version_is_trained_on(workspace):
    train(workspace, FROZEN, steps=2)
    folder = workspace.detector("x")
    config = read_json(folder.config)
    for options in (config["requested_options"], config["options"]):
        del options["backbone"]
    write_json(folder.config, config)
    remove_features(workspace)
    train(workspace, FROZEN, steps=4)
    train(workspace, FROZEN, name="y", steps=4)
    assert torch.equal(weights(workspace, "x", 4)["head.weight"], weights(workspace, "y", 4)["head.weight"])


def run_small_rank(arguments: list[str]) -> None:
    """Run a command with a small backbone in the place of CLIP."""
    registry.ClipFeatures = SmallBackbone
    run_rank(arguments)


def test_two_processes_share_the_extraction(workspace, torch_server, tmp_path, extracted):
    words = ["detect", "--out", str(workspace.root), "--model", "univfd", "--device", "cpu", "--image-size", "70"]
    words += ["--steps", "20", "--train-batchsize", "8", "--from-scratch"]
    finish_ranks([*words, "--name", "two"], tmp_path / "two.log", run=run_small_rank)
    rows = stored_rows(workspace.shards.features)
    assert len(rows) == len(set(rows)) > 0
    folder, by_two = workspace.detector("two"), predictions(workspace, "two")
    shutil.rmtree(folder.cached_predictions)
    folder.predictions.unlink()
    options = DetectorOptions(**read_json(folder.config)["requested_options"])
    train(workspace, options, name="two", steps=20)
    assert extracted == []  # one process has the features of two
    assert predictions(workspace, "two").equals(by_two)


def test_a_backbone_with_other_weights_extracts_features_of_its_own(workspace, extracted, monkeypatch):
    train(workspace, FROZEN, name="first", steps=1)
    before = len(extracted)

    class OtherBackbone(SmallBackbone):
        def __init__(self, weights: Weights, image_size: int):
            super().__init__(weights, image_size)
            with torch.no_grad():
                self.conv.weight.neg_()

    monkeypatch.setattr(registry, "ClipFeatures", OtherBackbone)
    train(workspace, FROZEN, name="second", steps=1)
    assert len(extracted) == 2 * before


def test_statistics_of_a_frozen_backbone_belong_to_its_weights():
    """Two backbones with the same weights and other BatchNorm statistics have other features."""
    backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    net = FrozenFeatureDetector(backbone, 4)
    before = frozen_hash(net)
    assert frozen_hash(net) == before
    backbone[1].running_mean += 1
    assert frozen_hash(net) != before
