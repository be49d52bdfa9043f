"""What a trained detector says of images at hand."""

import csv
import io
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from models.detectors import registry
from pipeline.cli.main import main
from pipeline.detection import judge
from pipeline.detection.import_predictions import import_predictions
from pipeline.detection.judge import JudgeConfig, find_judged, load_judge
from pipeline.gan.sample import write_png_folder
from shards.documents import DetectorConfig, SamplesDocument, load_shards_json, read_document, write_document
from shards.locks import exclusive_lock
from shards.pack import pack
from shards.plan import PackConfig
from shards.workspace import Workspace
from tests.pipeline.detection.helpers import predictions, train
from tests.pipeline.detection.test_features import FROZEN, SmallBackbone


def run(workspace: Workspace, *words: str) -> Result:
    return CliRunner().invoke(main, ["detect", "--out", str(workspace.root), "--device", "cpu", *map(str, words)])


def judgements(workspace: Workspace, *images, **config) -> dict[str, judge.Judgement]:
    """The judgements by path, of the only detector."""
    judging = load_judge(workspace, JudgeConfig(device="cpu", **config))
    return {one.path: one for batch in judging.judge(find_judged(workspace, images)) for one in batch}


@pytest.fixture
def trained(annotated, tmp_path) -> Workspace:
    """A detector `x` of annotated images."""
    shutil.copytree(annotated.root, tmp_path / "out")
    workspace = Workspace(tmp_path / "out")
    train(workspace, steps=2)
    return workspace


def packed_logits(workspace: Workspace) -> dict[str, float]:
    """The logits in predictions.parquet by the path of the packed image."""
    images = pl.read_parquet(workspace.shards.images).select("key", "path")
    table = predictions(workspace).filter(part="test", perturbation="none", source="images").join(images, on="key")
    return dict(table.select("path", "logit").iter_rows())


def data_folder(workspace: Workspace) -> Path:
    """The folder of the packed images."""
    return Path(load_shards_json(workspace.shards).root)


def test_a_packed_image_gets_the_logit_of_its_prediction(trained):
    expected = packed_logits(trained)
    root = data_folder(trained)
    judged = judgements(trained, root, batch_size=7)
    assert list(judged) == sorted(judged)
    assert len(judged) == 150
    tolerance = 1e-4 * np.std(list(expected.values()))
    for path, logit in expected.items():
        one = judged[str(root / path)]
        assert one.logit == pytest.approx(logit, abs=tolerance)
        assert one.decision == ("fake" if 1 / (1 + np.exp(-logit)) >= 0.5 else "real")
        assert one.probability == pytest.approx(1 / (1 + np.exp(-one.logit)))


def test_an_image_of_a_pack_of_resized_images_is_encoded_like_them(annotated, tmp_path):
    workspace = Workspace(tmp_path / "out")
    pack(data_folder(annotated), workspace.shards, PackConfig(size=48, quality=60), progress=False)
    train(workspace, steps=2)
    expected = packed_logits(workspace)
    path, logit = next(iter(expected.items()))
    image = data_folder(workspace) / path
    tolerance = 1e-4 * np.std(list(expected.values()))
    assert judgements(workspace, image)[str(image)].logit == pytest.approx(logit, abs=tolerance)
    shutil.rmtree(workspace.shards.folder)  # config.json knows how they were encoded
    assert judgements(workspace, image)[str(image)].logit == pytest.approx(logit, abs=tolerance)


def test_faces_of_a_detector_of_samples_are_reduced_to_their_size(workspace, synthetic_root, tmp_path):
    """A packed image and a sample get the logits of their predictions, whether or not the size was recorded."""
    train(workspace, steps=2)
    expected = packed_logits(workspace)
    path, logit = next(iter(expected.items()))
    run_folder = workspace.run("early")
    samples = read_document(run_folder.samples_document, SamplesDocument)
    write_png_folder(tmp_path / "png", run_folder, samples.shards)
    of_samples = predictions(workspace).filter(run="early")["logit"]
    tolerance = 1e-3 * np.std(list(expected.values()))
    images = sorted((tmp_path / "png").iterdir())
    document = read_document(workspace.detector("x").config, DetectorConfig)
    assert document.data.view.pre_resize == 32
    for view in (document.data.view, None):
        write_document(workspace.detector("x").config, replace(document, data=replace(document.data, view=view)))
        judged = judgements(workspace, tmp_path / "png", synthetic_root / path)
        assert judged[str(synthetic_root / path)].logit == pytest.approx(logit, abs=tolerance)
        assert [judged[str(image)].logit for image in images] == pytest.approx(of_samples.to_list(), abs=tolerance)
    shutil.rmtree(workspace.run("mine").folder)
    failed = run(workspace, "--judge", images[0])
    assert failed.exit_code == 1
    assert "whose size is no longer known" in failed.output


def test_an_image_gets_the_logit_that_stored_features_gave(annotated, tmp_path, monkeypatch):
    """The frozen weights, which no checkpoint has, are loaded again; the features are rounded as the stored ones."""
    monkeypatch.setattr(registry, "ClipFeatures", SmallBackbone)
    shutil.copytree(annotated.root, tmp_path / "out")
    workspace = Workspace(tmp_path / "out")
    train(workspace, FROZEN, steps=2)
    expected = packed_logits(workspace)
    root = data_folder(workspace)
    judged = judgements(workspace, root)
    tolerance = 1e-3 * np.std(list(expected.values()))
    for path, logit in expected.items():
        assert judged[str(root / path)].logit == pytest.approx(logit, abs=tolerance)


@pytest.fixture
def odd_images(tmp_path):
    """Images of several kinds, readable ones and others, below a folder; the reason of each."""
    folder = tmp_path / "=odd"
    (folder / "below").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "good.jpg")
    Image.fromarray(pixels).save(folder / "below" / "good.bmp")
    Image.fromarray(pixels).convert("RGBA").save(folder / "good.webp")
    Image.fromarray(pixels.astype(np.int32)[:, :, 0].astype(np.uint16) << 8).save(folder / "sixteen.png")
    data = (folder / "good.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(data[: len(data) // 2])
    (folder / "text.png").write_bytes(b"hello")
    (folder / "empty.jpg").write_bytes(b"")
    Image.fromarray(pixels).save(folder / "moving.gif")
    (folder / "lost.jpg").symlink_to(folder / "nowhere.jpg")
    (folder / "notes.txt").write_text("not an image, and no name of one")
    os.mkfifo(folder / "pipe.png")
    reasons = {
        "cut.jpg": "truncated", "text.png": "not_an_image", "empty.jpg": "empty", "moving.gif": "unsupported",
        "lost.jpg": "unreadable", "pipe.png": "unreadable", "good.jpg": None, "good.webp": None, "sixteen.png": None,
        "below/good.bmp": None,
    }  # fmt: skip
    return folder, {str(folder / name): reason for name, reason in reasons.items()}


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_images_that_cannot_be_read_are_rows_with_a_reason(trained, odd_images, batch_size):
    folder, reasons = odd_images
    judged = judgements(trained, folder, batch_size=batch_size)
    assert {path: one.reason for path, one in judged.items()} == reasons
    assert all((one.logit is None) == (one.reason is not None) for one in judged.values())


def test_a_csv_holds_every_image_and_replaces_an_earlier_one(trained, odd_images, tmp_path):
    folder, reasons = odd_images
    output = trained.root / "answers.csv"
    output.write_text("old")
    done = run(trained, "--judge", folder, "--judge", folder / "good.jpg", "--csv", output)
    assert done.exit_code == 0, done.output
    assert f"{output}: 4 images judged by x: " in done.output
    assert "Warning: 6 could not be read: 2 unreadable, 1 " in done.output
    table = pl.read_csv(output)
    assert table.columns == ["path", "logit", "probability", "decision", "reason"]
    assert dict(table.select("path", "reason").iter_rows()) == reasons
    assert table["path"].to_list() == sorted(reasons)
    assert not list(trained.root.glob(".*.partial"))
    written = run(trained, "--judge", folder, "--csv", "-")
    assert list(csv.reader(io.StringIO(written.stdout))) == list(csv.reader(output.read_text().splitlines()))


def test_a_table_is_printed_in_order(trained, odd_images):
    folder, _ = odd_images
    done = run(trained, "--judge", folder / "good.webp", "--judge", folder / "cut.jpg", "--name", "x")
    assert done.exit_code == 0, done.output
    title, first, second, counts, *_ = done.stdout.splitlines()
    assert title.split() == ["image", "logit", "probability", "decision"]
    assert first.endswith("truncated")
    one = judgements(trained, folder / "good.webp")[str(folder / "good.webp")]
    assert second.split()[1:] == [f"{one.logit:.3f}", f"{one.probability:.3f}", one.decision]
    assert counts.startswith("1 images judged by x: ")


def test_it_fails_if_no_image_can_be_read(trained, odd_images, tmp_path):
    folder, _ = odd_images
    failed = run(trained, "--judge", folder / "cut.jpg", "--judge", folder / "pipe.png", "--csv", tmp_path / "a.csv")
    assert failed.exit_code == 1
    assert "none of the 2 images could be read: 1 truncated, 1 unreadable" in failed.output
    assert pl.read_csv(tmp_path / "a.csv")["reason"].to_list() == ["truncated", "unreadable"]


def test_what_cannot_be_judged_is_refused_in_one_line(trained, odd_images, tmp_path):
    image = odd_images[0] / "good.jpg"
    table = tmp_path / "theirs.csv"
    table.write_text("target,logit,gender\nfake,1,male\nreal,0,female\n")
    import_predictions(trained, table)
    (tmp_path / "nothing").mkdir()
    for words, message in [
        (["--judge", image, "--name", "theirs"], "its predictions were imported: the trained detectors are: x"),
        (["--judge", image, "--name", "z"], "there is no detector 'z'"),
        (["--judge", tmp_path / "none.jpg"], "there is no such file or folder"),
        (["--judge", tmp_path / "nothing"], "no images (looked for .jpg"),
        (["--judge", image, "--csv", image], "would replace an image or a result"),
        (["--judge", image, "--csv", trained.detector("x").predictions], "would replace an image or a result"),
        (["--judge", image, "--csv", trained.shards.tars()[0]], "would replace an image or a result"),
        (["--judge", ""], "Invalid value for '--judge': the path is empty"),
        (["--judge", image, "--csv", ""], "Invalid value for '--csv': the path is empty"),
        (["--judge", image, "--lr", "1"], "--judge can be combined only with --out"),
        (["--judge", image, "--import", table], "--import can be combined only with"),
        (["--csv", tmp_path / "a.csv"], "--csv needs --judge"),
    ]:
        failed = run(trained, *words)
        assert failed.exit_code != 0
        assert message in failed.output
        assert "Traceback" not in failed.output
    with exclusive_lock(trained.detector("x").lock, "training"):
        failed = run(trained, "--judge", image)
    assert failed.exit_code == 1
    assert "another process is using" in failed.output
    train(trained, name="y", steps=1)
    assert "with --name: the trained detectors are: x, y" in run(trained, "--judge", image).output
    document = read_document(trained.detector("y").config, DetectorConfig)
    write_document(trained.detector("y").config, replace(document, status="stopped"))
    unfinished = run(trained, "--judge", image, "--name", "y")
    assert unfinished.exit_code == 0
    assert "the training of y is not finished: these are the logits after step 1" in unfinished.output


def test_only_a_few_images_are_read_ahead(trained, odd_images, monkeypatch):
    """A folder of any size is judged in the memory of some batches."""
    read = []
    read_regular_file = judge.read_regular_file
    monkeypatch.setattr(judge, "read_regular_file", lambda path: (read.append(path), read_regular_file(path))[1])
    image = odd_images[0] / "good.jpg"
    for number in range(40):
        shutil.copy(image, odd_images[0] / f"copy-{number}.jpg")
    config = JudgeConfig(device="cpu", batch_size=2)
    config = replace(config, decoder=replace(config.decoder, workers=2))
    batches = load_judge(trained, config).judge(find_judged(trained, [odd_images[0]]))
    next(batches)
    assert len(read) <= 12
    batches.close()


def test_a_network_without_finite_logits_is_reported(trained, odd_images, monkeypatch):
    monkeypatch.setattr(judge, "detector_logits", lambda net, images, **_: images.float().mean((1, 2, 3)) * np.nan)
    failed = run(trained, "--judge", odd_images[0] / "good.jpg")
    assert failed.exit_code == 1
    assert "logits are not finite" in failed.output
