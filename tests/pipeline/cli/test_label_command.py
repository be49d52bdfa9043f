"""`fairface label`, of runs, of plain folders and of labels made elsewhere."""

import os
import signal

import polars as pl
import pytest
from PIL import Image

from tests.pipeline.cli.helpers import error_line, fairface


def test_a_plain_folder_is_labelled_into_a_csv(tmp_path, embedded_labeller):
    folder, csv = tmp_path / "faces", tmp_path / "labels.csv"
    folder.mkdir()
    for i in range(3):
        Image.effect_noise((40, 40), 50).convert("RGB").save(folder / f"{i}.png")
    (folder / "broken.png").write_bytes(b"nothing")
    printed = fairface("label", "--input-dir", folder, "--out-csv", csv, "--clip-model", "embedded")
    assert "3 images" in printed
    assert "1 could not be decoded" in printed
    table = pl.read_csv(csv)
    assert table["Image Path"].to_list() == [str(folder / f"{i}.png") for i in range(3)]
    assert "--out-csv go together" in error_line("label", "--input-dir", folder, code=2)


def test_the_csv_is_written_through_a_pipe_and_formulas_are_escaped(tmp_path, monkeypatch, embedded_labeller):
    pipe = tmp_path / "pipe"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "=faces").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "=faces" / "a.png")
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    fairface("label", "--input-dir", "=faces", "--out-csv", pipe, "--clip-model", "embedded")
    assert os.read(reader, 10_000).decode().splitlines()[1].startswith("'=faces/a.png,")
    os.close(reader)
    assert pipe.is_fifo()


def test_labels_from_elsewhere_become_a_run(tmp_path):
    csv = tmp_path / "theirs.csv"
    csv.write_text("Image Path,gender,age,skin_tone\na.png,female,young,4\nb.png,male,,9\n")
    assert "2 labels of" in fairface("label", "--out", tmp_path, "--import", csv, "--run", "theirs")
    answer = fairface("sql", "distribution", "--out", tmp_path, "--param", "run=theirs", "--format", "csv")
    assert answer.splitlines()[1:] == ["generated,female,1,0.5", "generated,male,1,0.5"]
    assert "no such" in error_line("label", "--out", tmp_path, "--import", tmp_path / "none.csv").lower()


@pytest.mark.parametrize(
    "options",
    [
        ("--import", "theirs.csv", "--limit", "3"),
        ("--import", "theirs.csv", "--batch-size", "256"),
        ("--import", "theirs.csv", "--input-dir", "faces"),
        ("--input-dir", "faces", "--out-csv", "x.csv", "--limit", "3"),
        ("--input-dir", "faces", "--out-csv", "x.csv", "--run", "r"),
        ("--out-csv", "x.csv"),
    ],
    ids=" ".join,
)
def test_contradictory_options_are_refused(tmp_path, options):
    error_line("label", "--out", tmp_path, *options, code=2)


@pytest.mark.parametrize("option", ["--import", "--input-dir"])
def test_single_process_commands_refuse_torchrun(tmp_path, monkeypatch, option):
    monkeypatch.setenv("WORLD_SIZE", "2")
    words = (option, tmp_path) if option == "--import" else (option, tmp_path, "--out-csv", tmp_path / "x.csv")
    if option == "--import":
        words = (option, tmp_path / "theirs.csv")
    assert "without torchrun" in error_line("label", "--out", tmp_path, *words, code=2)


def test_options_of_another_labeller_than_the_embedded_are_refused(finished):
    error_line("label", "--out", finished.root, "--prompts", "original")
    error_line("label", "--out", finished.root, "--clip-model", "embedded", "--clip-pretrained", "openai")


def test_sigterm_is_not_mistaken_for_unavailable_weights(tmp_path, monkeypatch):
    """A time limit while a checkpoint is read must not lead to labels of the fallback labeller."""
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    (tmp_path / "weights.pt").write_bytes(b"1")
    monkeypatch.setattr("open_clip.create_model", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    words = ("--input-dir", tmp_path, "--out-csv", tmp_path / "l.csv", "--clip-pretrained", tmp_path / "weights.pt")
    assert "Progress is saved; rerun the same command to resume." in fairface("label", *words, code=75)
    assert not (tmp_path / "l.csv").exists()
