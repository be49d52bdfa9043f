"""Samples of another program, from `fairface sample --from` to the report, with and without training images."""

import shutil

import numpy as np
import polars as pl
import pytest
from PIL import Image

import sql
from shards.synthetic import dataset
from shards.synthetic.dataset import Shares, SyntheticConfig
from shards.workspace import Workspace
from tests.pipeline.cli.helpers import SMALL_TRAINING, error_line, fairface
from tests.reports.fake_workspace import text_of

CENSUS = "attribute,group,share,n\ngender,female,0.5,5000\ngender,male,0.5,5000\n"


@pytest.fixture(scope="session")
def women(tmp_path_factory):
    """150 synthetic faces of other people than the packed ones, nine in ten of them women."""
    folder = tmp_path_factory.mktemp("women")
    shares = Shares(gender={"female": 0.9, "male": 0.1})
    dataset.write_dataset(folder, SyntheticConfig(count=150, size=64, seed=9, shares=shares), progress=False)
    return folder


@pytest.fixture(scope="session")
def alone(women, tmp_path_factory, quick_labeller):
    """An OUT folder with nothing but labelled samples of another program, and their report."""
    from pipeline.labelling import embedded

    out = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedded, "load_embedded", lambda *_, **__: quick_labeller)
        assert "150 samples of" in fairface("sample", "--out", out, "--from", women, "--run", "theirs")
        assert "the labeller's error rates are unknown" in fairface("label", "--out", out)
        fairface("report", "--out", out)
    return out


def page(out) -> str:
    return text_of((out / "report" / "index.html").read_text())


def test_a_classifier_cannot_be_asked_for_without_training_images(alone):
    message = error_line("label", "--out", alone, "--classifier")
    assert "--classifier is fitted to annotated images, and none are packed" in message


def test_without_training_images_the_shares_are_compared_with_equal_ones(alone):
    rows = sql.ask(sql.connect(Workspace(alone)), "reference", attribute="gender").rows_by_key(
        "group", named=True, unique=True
    )
    assert rows["female"]["baseline"] == "equal shares"
    assert (rows["female"]["verdict"], rows["male"]["verdict"]) == ("over", "under")
    text = page(alone)
    assert "Are the generated faces balanced? No, by uncorrected labels" in text
    assert "150 generated faces, labelled by synthetic-faces" in text
    assert "cannot be corrected" in text
    assert "were imported from" in text
    assert "their generator was not trained by this program" in text
    assert "Training: no images are packed." in text
    assert "not to be trusted" not in text  # the source says that the faces are synthetic


def test_without_training_images_every_question_has_an_answer(alone):
    connection = sql.connect(Workspace(alone))
    given = {"group": "female", "other": "theirs"}
    for name, question in sql.questions().items():
        sql.ask(connection, name, **{key: given[key] for key, item in question.params.items() if item.default is None})
    assert len(sql.ask(connection, "comparison", attribute="gender")) == 2
    assert sql.ask(connection, "comparison")["ratio"].null_count() == len(sql.ask(connection, "comparison"))
    faces = sql.ask(connection, "faces", group="female")
    assert len(faces) == 100
    assert faces["path"].str.ends_with(".jpg").all()
    assert "are intact" in fairface("verify", "--out", alone)


def test_a_second_time_everything_is_skipped(alone, women, embedded_labeller):
    assert "unchanged" in fairface("sample", "--out", alone, "--from", women, "--run", "theirs")
    assert "unchanged" in fairface("label", "--out", alone)
    assert "unchanged" in fairface("report", "--out", alone)


def test_a_reference_stays_until_it_is_dropped(alone, tmp_path, embedded_labeller):
    out, census = tmp_path / "out", tmp_path / "census.csv"
    shutil.copytree(alone, out)
    census.write_text(CENSUS)
    fairface("report", "--out", out, "--reference", census)
    census.unlink()
    assert "unchanged" in fairface("report", "--out", out)
    rows = sql.ask(sql.connect(Workspace(out)), "reference")
    baselines = dict(rows.select("attribute", "baseline").unique().iter_rows())
    assert (baselines["gender"], baselines["age"]) == ("census.csv", "equal shares")
    assert rows.filter(attribute="gender")["reference_n"].to_list() == [5000, 5000]
    assert "Gender, against census.csv (n = 5,000)" in page(out)
    assert "Reference census.csv, SHA-256" in page(out)
    (out / "reference.csv").write_text(CENSUS.replace("5000", "50"))
    assert "reference.csv was changed after it was written" in fairface("verify", "--out", out, code=1)
    assert "was changed" in error_line("report", "--out", out, "--force")
    fairface("report", "--out", out, "--no-reference")
    assert set(sql.ask(sql.connect(Workspace(out)), "reference")["baseline"]) == {"equal shares"}
    assert not list(out.glob("reference.*"))
    error_line("report", "--out", out, "--no-reference", "--reference", census, code=2)
    census.write_text(CENSUS)
    assert "there is no run 'mine'" in error_line("report", "--out", out, "--run", "mine", "--reference", census)
    assert not list(out.glob("reference.*"))


def test_a_reference_is_shown_next_to_the_training_images(women, tmp_path, embedded_labeller):
    out, census, faces = tmp_path / "out", tmp_path / "census.csv", tmp_path / "faces"
    # enough to measure the error rates of each age
    dataset.write_dataset(faces, SyntheticConfig(count=1000, size=64, seed=3), progress=False)
    fairface("shards", "--out", out, "--data", faces)
    census.write_text(CENSUS.replace(",n", "").replace(",5000", ""))
    fairface("sample", "--out", out, "--from", women, "--run", "theirs")
    fairface("label", "--out", out)
    fairface("report", "--out", out, "--reference", census)
    connection = sql.connect(Workspace(out))
    compared = sql.ask(connection, "comparison", attribute="gender").rows_by_key("group", named=True, unique=True)
    given = sql.ask(connection, "reference").rows_by_key("group", named=True, unique=True)
    assert compared["female"]["verdict"] == "amplified"
    assert given["female"]["verdict"] == "over"
    assert given.keys() == {"female", "male"}
    text = page(out)
    assert "No: " in text
    assert "This page refers to the packed images as training images" in text
    assert "How do the samples compare with another reference?" in text
    assert "Compared with census.csv, 2 of 2 groups are over- or under-represented." in text
    fairface("report", "--out", out, "--reference", census, "--reference-only")
    text = page(out)
    assert "Are the generated faces balanced? No: 2 of 2 groups are over- or under-represented compared with" in text
    assert "The samples are not compared with the training images" in text
    assert "Is each group preserved, amplified or reduced?" not in text
    census.unlink()
    assert "unchanged" in fairface("report", "--out", out)
    assert sql.ask(sql.connect(Workspace(out)), "comparison", attribute="gender")["verdict"].null_count() == 0
    error_line("report", "--out", out, "--reference-only", code=2)


def test_imported_and_trained_runs_are_compared(finished, women, tmp_path, embedded_labeller):
    out = tmp_path / "out"
    shutil.copytree(finished.root, out)
    (trained,) = Workspace(out).runs()
    fairface("sample", "--out", out, "--from", women, "--run", "theirs")
    fairface("label", "--out", out, "--run", "theirs")
    fairface("report", "--out", out, "--run", "theirs", "--run", trained.name)
    rows = sql.ask(sql.connect(Workspace(out)), "difference", run="theirs", other=trained.name, attribute="gender")
    assert len(rows) == 2
    printed = error_line("train", "--out", out, "--run", "theirs", *SMALL_TRAINING)
    assert "holds samples imported from" in printed
    assert "theirs" in page(out)


def test_ten_samples_are_too_few_for_a_verdict(women, tmp_path, embedded_labeller):
    out = tmp_path / "out"
    fairface("sample", "--out", out, "--from", women, "--run", "few", "--num-samples", 10)
    fairface("label", "--out", out)
    fairface("report", "--out", out)
    assert "groups are too rare for a verdict" in page(out)
    verdicts = sql.ask(sql.connect(Workspace(out)), "reference", attribute="age")["verdict"]
    assert (verdicts == "inconclusive").sum() >= 3


def test_labels_made_elsewhere_serve_without_training_images(women, tmp_path):
    out, csv = tmp_path / "out", tmp_path / "labels.csv"
    fairface("sample", "--out", out, "--from", women, "--run", "theirs", "--num-samples", 60)
    names = [f"sample_{index:05d}.png" for index in range(60)]
    pl.DataFrame({"Image Path": names, "gender": ["female"] * 45 + ["male"] * 15}).write_csv(csv)
    fairface("label", "--out", out, "--import", csv, "--run", "theirs")
    fairface("report", "--out", out)
    rows = sql.ask(sql.connect(Workspace(out)), "reference").rows_by_key("group", named=True, unique=True)
    assert rows["female"]["share"] == 0.75
    assert rows["female"]["verdict"] == "over"
    assert "replace them with --force" in error_line("sample", "--out", out, "--from", women, "--run", "theirs")


@pytest.mark.parametrize("prefix", ["", "absolute"])
def test_labels_made_elsewhere_may_name_the_imported_files(prefix, women, tmp_path):
    out, csv = tmp_path / "out", tmp_path / "labels.csv"
    fairface("sample", "--out", out, "--from", women, "--run", "theirs", "--num-samples", 40)
    table = pl.read_parquet(out / "runs" / "theirs" / "samples.parquet")
    paths = [str(women / path) if prefix else path for path in table["path"]]
    genders = ["female"] * 30 + ["male"] * 10
    pl.DataFrame({"Image Path": paths[::-1], "gender": genders[::-1]}).write_csv(csv)
    fairface("label", "--out", out, "--import", csv, "--run", "theirs")
    labels = pl.read_parquet(out / "runs" / "theirs" / "labels.parquet").sort("key")
    assert labels["key"].to_list() == table["key"].to_list()
    assert labels["gender"].to_list() == genders


def test_rejected_images_are_printed_and_shown(tmp_path, embedded_labeller):
    folder, out = tmp_path / "faces", tmp_path / "out"
    folder.mkdir()
    for number in range(30):
        noise = np.random.default_rng(number).integers(0, 256, (40, 40, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
    (folder / "broken.png").write_bytes((folder / "0.png").read_bytes()[:1000])
    assert "rejected: 1 images (1 truncated)" in fairface("sample", "--out", out, "--from", folder)
    fairface("label", "--out", out, "--clip-model", "embedded")
    fairface("report", "--out", out)
    text = page(out)
    assert "1 of the imported images could not be used: 1 truncated" in text
    assert "not valid for real faces" in text  # nothing says that they are synthetic
