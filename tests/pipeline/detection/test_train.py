"""Training detectors: interruptions, what may be resumed, and several processes."""

import json
import shutil
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from models.detectors import DETECTORS, registry
from pipeline.detection.evaluate import EvaluationConfig
from pipeline.detection.import_predictions import import_predictions
from pipeline.detection.network import build_detector
from pipeline.detection.options import DetectorOptions
from pipeline.detection.perturbations import PERTURBATIONS
from pipeline.detection.train import DetectResult
from shards.documents import DetectorConfig, LabelsDocument, file_hashes, read_document, write_document
from shards.errors import FairfaceError, WeightsUnavailable
from shards.workspace import Workspace
from tests.pipeline.detection.helpers import SMALL, predictions, small_xception, train, weights
from tests.ranks import finish_ranks, run_rank
from tests.reports.fake_workspace import replace_table

GEND = replace(SMALL, model="gend", backbone="test_vit")


def assert_same_weights(workspace: Workspace, first: str, second: str, *, step: int) -> None:
    one, other = weights(workspace, first, step), weights(workspace, second, step)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_an_interruption_changes_nothing(workspace):
    uninterrupted = train(workspace, name="uninterrupted", steps=4)
    train(workspace, name="resumed", steps=2)
    resumed = train(workspace, name="resumed", steps=4)
    assert_same_weights(workspace, "uninterrupted", "resumed", step=4)
    assert uninterrupted.steps == resumed.steps == 4
    names = ("uninterrupted", "resumed")
    losses = [pl.read_parquet(workspace.detector(name).steps)["loss"].to_list() for name in names]
    assert losses[0] == losses[1]
    logits = [predictions(workspace, name)["logit"] for name in names]
    assert logits[0].equals(logits[1])


def test_both_feeds_train_the_same_weights(workspace):
    train(workspace, name="resident", steps=3)
    streamed = train(workspace, replace(SMALL, feed="streaming"), name="streamed", steps=3)
    assert streamed.config.options["feed"] == "streaming"
    assert_same_weights(workspace, "resident", "streamed", step=3)


def test_other_options_and_other_faces_are_refused(workspace):
    train(workspace, steps=2)
    with pytest.raises(FairfaceError, match="trained with another lr, seed: choose another --name"):
        train(workspace, replace(SMALL, lr=0.1, seed=3), steps=2)
    with pytest.raises(FairfaceError, match="was trained on other faces"):
        train(workspace, steps=2, run="early")
    assert train(workspace, replace(SMALL, seed=3), steps=2, force=True).config.options["seed"] == 3
    with pytest.raises(FairfaceError, match="fewer training faces than a batch of 1024"):
        train(workspace, replace(SMALL, batch_size=1024), name="y")
    with pytest.raises(FairfaceError, match="name of a single folder"):
        train(workspace, name="../x")
    assert not workspace.detector("y").folder.exists()


def run_small_rank(arguments: list[str]) -> None:
    """Run a command with a small network in the place of Xception."""
    registry.xception = small_xception
    run_rank(arguments)


def test_two_processes_share_training_and_evaluation(workspace, torch_server, tmp_path):
    def command(name: str, steps: int) -> list[str]:
        words = ["detect", "--out", str(workspace.root), "--model", "daw_fdd", "--name", name, "--device", "cpu"]
        return [*words, "--steps", str(steps), "--train-batchsize", "4"]

    def train_again(**config) -> DetectResult:
        document = read_document(workspace.detector("uninterrupted").config, DetectorConfig)
        options = DetectorOptions(**document.requested_options)
        return train(workspace, options, name="uninterrupted", steps=3, **config)

    for name, steps in (("uninterrupted", 3), ("resumed", 1), ("resumed", 3)):
        printed = finish_ranks(command(name, steps), tmp_path / f"{name}-{steps}.log", run=run_small_rank)
        assert printed.count(f"trained {steps} step") == 1  # one process prints
    assert_same_weights(workspace, "uninterrupted", "resumed", step=3)
    by_two = predictions(workspace, "uninterrupted")
    assert by_two.drop("detector").equals(predictions(workspace, "resumed").drop("detector"))
    folder = workspace.detector("uninterrupted")
    single = train_again(evaluation=EvaluationConfig(8))
    assert single.unchanged  # one process finds the predictions of two
    shutil.rmtree(folder.cached_predictions)
    folder.predictions.unlink()
    train_again()
    by_one = predictions(workspace, "uninterrupted")
    assert by_one.drop("logit").equals(by_two.drop("logit"))
    assert np.allclose(by_one["logit"], by_two["logit"], atol=1e-3)


def test_imports_and_trainings_do_not_overwrite_each_other(workspace):
    csv = workspace.root / "x.csv"
    csv.write_text("gender,skin_group,age,target,logit\nfemale,dark,adult,1,2.5\nmale,light,adult,0,-1\n")
    train(workspace, steps=1)
    with pytest.raises(FairfaceError, match="was trained here"):
        import_predictions(workspace, csv, name="x")
    import_predictions(workspace, csv, name="x", force=True)
    with pytest.raises(FairfaceError, match="predictions that were imported"):
        train(workspace, steps=1)
    assert predictions(workspace)["logit"].to_list() == [2.5, -1]
    assert train(workspace, steps=1, force=True).config.status == "finished"


def test_a_detector_resumes_with_the_samples_that_it_began_with(workspace):
    train(workspace, steps=2, run="early")
    resumed = train(workspace, replace(SMALL, feed="streaming"), steps=3)  # though another run is the newest
    assert (resumed.config.data.run, resumed.config.options["feed"], resumed.steps) == ("early", "streaming", 3)
    shutil.copytree(workspace.run("mine").folder, workspace.run("twin").folder)
    assert train(workspace, steps=1).steps == 3  # no fewer than were trained
    samples = predictions(workspace).filter(part="samples")
    assert dict(samples["run"].value_counts().iter_rows()) == {"mine": 90, "twin": 90}


def test_pretrained_weights_are_needed_only_at_the_start(workspace, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "x.pth"
    torch.save(build_detector(replace(SMALL, seed=9), []).net.state_dict(), path)
    options = replace(SMALL, from_scratch=False, pretrained=str(path))
    train(workspace, options, steps=1)
    path.unlink()
    assert train(workspace, options, steps=2, evaluation=EvaluationConfig(perturbations=("rotation",))).steps == 2


def test_a_published_detector_is_evaluated_without_training_and_trains_on(workspace, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "gend.pth"
    encoder = build_detector(GEND, []).encoder
    state = {f"feature_extractor.backbone.{name}": value for name, value in encoder.state_dict().items()}
    torch.save(state | {"model.linear.weight": torch.randn(2, 64), "model.linear.bias": torch.randn(2)}, path)
    options = replace(GEND, from_scratch=False, pretrained=str(path))
    evaluated = train(workspace, options, steps=0)
    assert (evaluated.config.status, evaluated.steps, evaluated.unchanged) == ("finished", 0, False)
    assert train(workspace, options, steps=0).unchanged
    assert train(workspace, replace(options, batch_size=1024), steps=0, name="y").steps == 0  # no batch is needed
    net = build_detector(options, []).eval()
    assert predictions(workspace)["logit"].n_unique() > 10
    for name, value in weights(workspace, "x", 0).items():
        assert torch.equal(value, net.state_dict()[name]), name
    assert train(workspace, options, steps=2).steps == 2
    train(workspace, options, name="direct", steps=2)
    assert_same_weights(workspace, "x", "direct", step=2)
    assert pl.read_parquet(workspace.detector("x").steps)["step"].to_list() == [1, 2]
    path.unlink()  # the frozen weights are in no checkpoint
    with pytest.raises(WeightsUnavailable, match="is neither a file nor a tag"):
        train(workspace, options, steps=3)


def test_a_detector_from_before_backbones_could_be_chosen_resumes(workspace):
    train(workspace, steps=1)
    path = workspace.detector("x").config
    document = json.loads(path.read_text())
    for options in (document["options"], document["requested_options"]):
        del options["backbone"]
    path.write_text(json.dumps(document))
    assert train(workspace, steps=2).steps == 2


def test_another_backbone_is_refused(workspace):
    train(workspace, GEND, steps=1)
    with pytest.raises(FairfaceError, match="trained with another backbone: choose another --name"):
        train(workspace, replace(GEND, backbone="test_vit2"), steps=1)


def test_losses_by_group_require_the_groups_that_training_began_with(workspace):
    options = replace(SMALL, model="daw_fdd")
    train(workspace, options, steps=1)
    for path in workspace.root.rglob("labels.parquet"):
        replace_table(path, pl.read_parquet(path).with_columns(gender=pl.lit("male")))
        document = read_document(path.with_suffix(".json"), LabelsDocument)
        write_document(path.with_suffix(".json"), replace(document, files=file_hashes(path)))
    with pytest.raises(FairfaceError, match="other labels"):
        train(workspace, options, steps=2)
    train(workspace, steps=1, name="y")  # cross entropy does not depend on groups
    for path in workspace.root.rglob("labels.parquet"):
        path.unlink()
    with pytest.raises(FairfaceError, match=r"DAW-FDD .* groups, and no face has one"):
        train(workspace, options, name="z")
    assert train(workspace, steps=2, name="y").steps == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("model", DETECTORS)
def test_training_and_evaluation_on_a_gpu_compiled_in_bf16(workspace, model, full_xception):
    size = 70 if model == "univfd" else 64
    backbone = "pe-tiny" if DETECTORS[model].backbone else None
    options = replace(
        SMALL, model=model, backbone=backbone, image_size=size, batch_size=4, lr=1e-4, precision="bf16", compile=True
    )
    result = train(workspace, options, name=model, evaluation=EvaluationConfig(perturbations=tuple(PERTURBATIONS)))
    assert result.config.device == torch.cuda.get_device_name()
    predicted = predictions(workspace, model)
    assert predicted["perturbation"].n_unique() == 1 + len(PERTURBATIONS)
    assert predicted["logit"].is_finite().all()
