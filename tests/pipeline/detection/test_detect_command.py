"""`fairface detect` at the command line."""

import pytest
from click.testing import CliRunner, Result

from pipeline.cli.main import main
from pipeline.detection import train
from shards.documents import DetectorConfig, read_document
from shards.errors import WeightsUnavailable
from shards.workspace import Workspace


def detect(workspace: Workspace, *words: str) -> Result:
    return CliRunner().invoke(main, ["detect", "--out", str(workspace.root), *words])


def test_the_benchmarks_spellings_are_accepted(workspace):
    done = detect(
        workspace, "--model", "xception", "--train_batchsize", "8", "--test_batchsize", "16", "--lr", "0.0005",
        "--steps", "2", "--device", "cpu", "--feed", "resident",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    options = read_document(workspace.detector("xception").config, DetectorConfig).requested_options
    assert (options["batch_size"], options["lr"]) == (8, 0.0005)
    assert (options["image_size"], options["from_scratch"]) == (64, True)
    assert "all faces:    AUC" in done.output
    assert "skin group:   F_MEO" in done.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "resnet"], "there is no such detector"),
        (["--model", "all", "--name", "x"], "--name needs a single --model"),
        (["--epochs", "0", "--steps", "0"], "--steps and --epochs are alternatives"),
        (["--backbone", "clip"], "--backbone can only be used with --model vfm, gend, effort"),
        (["--model", "vfm", "--backbone", "dinov4"], "did you mean dinov3"),
        (["--import", "x.csv", "--lr", "1"], "can be combined only with --out, --name and --force"),
        (["--pretrained", "x", "--from-scratch"], "can't be combined"),
        (["--pretrained", ""], "--pretrained is empty"),
        (["--model", "vfm", "--backbone", ""], "--backbone is empty"),
        (["--group-by", ""], "--group-by is empty"),
        (["--data", ""], "'--datapath': the path is empty"),
        (["--steps", "0", "--hold-out", "DMs"], "can't be combined with 0 steps"),
        (["--fakes", "images"], "no real faces to train a detector with"),
    ],
)
def test_wrong_options_are_refused(sampled, words, message):
    failed = detect(sampled, *words)
    assert failed.exit_code != 0
    assert message in failed.output


def test_backbones_apply_to_the_detectors_that_take_one_and_are_in_their_names(workspace):
    words = ["--model", "vfm", "--model", "xception", "--backbone", "test_vit", "--steps", "0", "--device", "cpu"]
    done = detect(workspace, *words)
    assert done.exit_code == 0, done.output
    assert done.output.count("trained 0 steps") == 2
    assert done.output.count("was not trained: its head is random") == 2
    for name, backbone in (("vfm-test_vit", "test_vit"), ("xception", None)):
        options = read_document(workspace.detector(name).config, DetectorConfig).requested_options
        assert options["backbone"] == backbone


@pytest.mark.parametrize(("words", "steps"), [([], 1), (["--epochs", "1"], 2)], ids=["default", "epochs requested"])
def test_a_sketch_is_short_unless_epochs_are_requested(workspace, monkeypatch, words, steps):
    monkeypatch.setattr(train, "SKETCH_STEPS", 1)
    done = detect(workspace, "--device", "cpu", "--train-batchsize", "100", *words)
    assert done.exit_code == 0, done.output
    assert f"trained {steps} steps" in done.output


def test_unavailable_weights_of_one_detector_do_not_stop_the_others(workspace, monkeypatch):
    train_detector = train.train_detector

    def without_univfd(workspace, config):
        if config.options.model == "univfd":
            raise WeightsUnavailable("the weights are not here")
        return train_detector(workspace, config)

    monkeypatch.setattr(train, "train_detector", without_univfd)
    done = detect(workspace, "--device", "cpu", "--steps", "1", "--model", "univfd", "--model", "dag_fdd")
    assert done.exit_code == 1
    assert "univfd: the weights are not here" in done.output
    assert "univfd could not be trained" in done.output
    assert workspace.detector("dag_fdd").predictions.exists()
