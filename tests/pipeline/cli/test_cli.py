"""The command line: the whole path in five commands, and one clear line for whatever a person gets wrong."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner
from PIL import Image

from pipeline.cli.main import main
from pipeline.labelling import embedded, label
from shards.atomic_io import read_json


def fairface(*words: object, code: int = 0) -> str:
    """Runs the command in this process; returns all it printed."""
    result = CliRunner().invoke(main, [str(word) for word in words])
    printed = result.output
    assert result.exit_code == code, printed
    assert "Traceback" not in printed
    assert result.exception is None or isinstance(result.exception, SystemExit), printed
    return printed


def refused(*words: object, code: int = 1) -> str:
    """The one line that a wrong command prints."""
    printed = fairface(*words, code=code)
    line = [line for line in printed.splitlines() if line.startswith("Error:")]
    assert len(line) == 1, printed
    return line[0]


TRAIN = ["--image-size", "32", "--width-g", "8", "--width-d", "8", "--batch-size", "16", "--steps", "30"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, quick_labeller) -> Path:
    """An OUT folder on which the five commands ran, with the labeller that was fitted for tests."""
    out = tmp_path_factory.mktemp("whole")
    fairface("synth", "--out", out, "--count", 200, "--size", 64, "--gender", "female=3,male=1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedded, "load_embedded", lambda *_, **__: quick_labeller)
        fairface("shards", "--out", out, "--data", out / "synthetic", "--shard-images", 64)
        fairface("train", "--out", out, *TRAIN)
        fairface("sample", "--out", out, "--num-samples", 70, "--png-dir", out / "png")
        fairface("label", "--out", out)
        fairface("report", "--out", out)
    return out


def test_the_five_commands_leave_what_the_contract_names(whole):
    (run,) = (whole / "runs").iterdir()
    expected = ["config.json", "steps.parquet", "samples.parquet", "labels.parquet", "embeddings.parquet", "grids"]
    assert not [name for name in expected if not (run / name).exists()]
    assert len(list((whole / "png").glob("sample_*.png"))) == 70
    page = (whole / "report" / "index.html").read_text()
    assert "drawn" in page.lower()
    assert not re.search(r'(src|href)="https?://', page)
    labels = [pl.read_parquet(folder / "labels.parquet") for folder in (whole / "shards", run)]
    assert [len(frame) for frame in labels] == [200, 70]
    assert labels[0].columns == labels[1].columns
    assert labels[0]["labeller"].unique().to_list() == labels[1]["labeller"].unique().to_list()
    sums = labels[1].select(pl.sum_horizontal("p_female", "p_male")).to_series()
    assert sums.is_between(0.999, 1.001).all()
    assert pl.read_parquet(run / "embeddings.parquet").schema["embedding"].inner == pl.Float16


def test_a_second_time_nothing_is_done_twice(whole, quick_labeller, monkeypatch):
    monkeypatch.setattr(embedded, "load_embedded", lambda *_, **__: quick_labeller)
    files = {path: path.stat().st_mtime_ns for path in whole.rglob("*.tar")}
    assert "unchanged" in fairface("shards", "--out", whole, "--data", whole / "synthetic", "--shard-images", 64)
    assert "already trained" in fairface("train", "--out", whole, *TRAIN)
    assert "unchanged" in fairface("sample", "--out", whole, "--num-samples", 70)
    assert fairface("label", "--out", whole).count("unchanged") == 2
    assert "unchanged" in fairface("report", "--out", whole)
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*.tar")} == files


def test_the_reference_knows_the_skew_that_was_drawn(whole):
    answer = fairface("sql", "--out", whole, "--format", "json", "-c",
                      "select count(*) filter (gender = 'female') / count(*) as share from images")  # fmt: skip
    assert 0.65 < float(re.search(r"0\.\d+", answer)[0]) < 0.85


def test_questions_are_listed_and_answered_in_every_format(whole, tmp_path):
    assert "comparison" in fairface("sql")
    for form in ("table", "csv", "json", "parquet", "markdown"):
        fairface("sql", "comparison", "--out", whole, "--format", form, "-o", tmp_path / form)
    assert (tmp_path / "csv").read_text().startswith("run,attribute,group")
    assert pl.read_parquet(tmp_path / "parquet")["ratio"].equals(pl.read_csv(tmp_path / "csv")["ratio"])
    assert "-o" in refused("sql", "comparison", "--out", whole, "--format", "parquet", code=2)
    assert "no parameter" in refused("sql", "comparison", "--out", whole, "--param", "nonsense=1")


def test_a_plain_folder_is_labelled_into_a_csv(whole, tmp_path, quick_labeller, monkeypatch):
    monkeypatch.setattr(embedded, "load_embedded", lambda *_, **__: quick_labeller)
    folder = tmp_path / "faces"
    folder.mkdir()
    for i in range(3):
        Image.effect_noise((40, 40), 50).convert("RGB").save(folder / f"{i}.png")
    (folder / "broken.png").write_bytes(b"nothing")
    printed = fairface("label", "--input-dir", folder, "--out-csv", tmp_path / "labels.csv", "--clip-model", "embedded")
    assert "3 images" in printed
    assert "1 could not be decoded" in printed
    table = pl.read_csv(tmp_path / "labels.csv")
    assert table["Image Path"].to_list() == [str(folder / f"{i}.png") for i in range(3)]
    assert "--out-csv go together" in refused("label", "--input-dir", folder, code=2)


def test_real_faces_without_weights_warn_and_fall_back(whole, quick_labeller, monkeypatch, capsys):
    def offline(*_):
        raise label.click.ClickException("the weights are not here")

    monkeypatch.setattr(label.clip, "load", offline)
    monkeypatch.setattr(embedded, "load_embedded", lambda *_, **__: quick_labeller)
    assert label.choose_labeller(False, None, None, None, "cpu", False) is quick_labeller
    assert "do not believe" in capsys.readouterr().err
    with pytest.raises(label.click.ClickException):
        label.choose_labeller(False, "ViT-B-32", None, None, "cpu", False)


def test_the_original_options_work_under_their_names(drawn, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # `sample` takes OUT's default
    fairface(
        "train", "--data-root", drawn, "--out-dir", tmp_path, "--image-size", 32, "--latent-dim", 8, "--batch-size", 64,
        "--num-epochs", 1, "--lr", 2e-4, "--beta1", 0.5, "--beta2", 0.999, "--num-workers", 1, "--device", "cpu",
        "--sample-every", 2, "--save-every-epoch", 1, "--width-g", 8, "--width-d", 8,
    )  # fmt: skip
    (run,) = (tmp_path / "runs").iterdir()
    (checkpoint,) = (run / "checkpoints").iterdir()
    assert read_json(run / "config.json")["steps"] == 240 // 64
    fairface("sample", "--checkpoint", checkpoint, "--num-samples", 5, "--batch-size", 2, "--out-dir", tmp_path / "png")
    assert sorted(path.name for path in (tmp_path / "png").iterdir()) == [f"sample_{i:05d}.png" for i in range(5)]


def test_every_stage_before_its_predecessor_names_it(tmp_path, packed):
    assert "fairface shards" in refused("train", "--out", tmp_path)
    assert "fairface train" in refused("sample", "--out", tmp_path)
    assert "fairface train" in refused("label", "--out", tmp_path)
    assert "fairface train" in refused("report", "--out", tmp_path)
    assert "fairface shards" in refused("sql", "runs", "--out", tmp_path / "nowhere")
    (tmp_path / "shards").symlink_to(packed / "shards")
    fairface("train", "--out", tmp_path, *TRAIN)
    assert "fairface sample" in refused("label", "--out", tmp_path)
    fairface("sample", "--out", tmp_path, "--num-samples", 4)
    done = fairface("report", "--out", tmp_path)  # a page of what is there, although the shards lie elsewhere
    assert "fairface label" in done
    assert (tmp_path / "report" / "index.html").is_file()


def test_what_a_person_gets_wrong_is_said_in_one_line(tmp_path, packed):
    empty, wrong = tmp_path / "empty", tmp_path / "wrong"
    empty.mkdir()
    wrong.mkdir()
    Image.new("RGB", (64, 64)).save(wrong / "a.png")
    (wrong / "train.csv").write_text("a,b\n1,2\n")
    assert "no folder" in refused("shards", "--out", tmp_path, "--data", tmp_path / "missing")
    assert "no images" in refused("shards", "--out", tmp_path, "--data", empty)
    assert "Image Path" in refused("shards", "--out", tmp_path, "--data", wrong)
    fairface("shards", "--out", tmp_path / "other", "--data", wrong, "--no-annotations")
    assert "cpu, cuda" in refused("train", "--out", packed, "--device", "tpu")
    assert "women" in refused("synth", "--out", tmp_path, "--gender", "women=1", code=2)
    assert "48" in refused("train", "--out", packed, "--image-size", "48", code=2)
    assert "--no-such-option" in refused("train", "--out", packed, "--no-such-option", code=2)
    assert "nonsense" in refused("bench", "nonsense")
    assert not list(tmp_path.glob("shards/*"))


def test_the_closing_summary_accounts_for_every_image(drawn, tmp_path):
    root, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(drawn / "GANs", root / "GANs")
    (root / "GANs" / "Drawn" / "000" / "000007.jpg").write_bytes(b"")
    lines = (drawn / "train.csv").read_text().splitlines()
    wrong = lines[1].rsplit(",", 1)[0] + (",0" if lines[1].endswith("5") else ",5")  # an Intersection of others
    (root / "train.csv").write_text("\n".join([lines[0], wrong, *lines[2:-9], lines[5], "GANs/None/1.jpg,0,0,1,1,0,0"]))
    printed = fairface("shards", "--data", root, "--out", out)
    assert re.search(r"239 images packed, \d\.\d MB in 1 shards, \d+\.\d s \([\d,]+ images/s\)", printed)
    assert "rejected:  1 (1 empty; `fairface sql rejects`)" in printed
    assert "annotated: 231 of 240 images (96.2%) match one of 233 rows in 1 table" in printed
    assert "unmatched: 1 missing rows, 9 missing images (`fairface sql unmatched`" in printed
    assert "Warning: 1 rows name an image that an earlier row names" in printed
    assert "Warning: 1 rows state an Intersection that is not gender x skin tone" in printed
    counted = fairface("sql", "unmatched", "--out", out, "--format", "csv").splitlines()
    assert counted[1] == "image,missing,GANs,Drawn,9,GANs/Drawn/000/000231.jpg"
    assert counted[2] == "row,missing,GANs,None,1,GANs/None/1.jpg"
    chosen = fairface("shards", "--data", root, "--out", tmp_path / "few", "--where", "gender = 'male'", "--limit", 20)
    assert "chosen:    20 of 240 images found" in chosen


def test_verify_says_that_all_is_well_or_what_is_not(drawn, tmp_path):
    fairface("shards", "--data", drawn, "--out", tmp_path, "--shard-bytes", "0.2MB")
    assert "240 images are as they were packed" in fairface("verify", "--out", tmp_path)
    path = tmp_path / "shards" / "shard-000001.tar"
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    data[-1] = 1
    path.write_bytes(data)
    line = refused("verify", "--out", tmp_path)
    assert re.search(r"2 faults in .*, the first in shard-000001\.tar at byte 0, key \d{8}: has other bytes", line)
    assert "shard-000001.tar at byte 0" in refused("train", "--out", tmp_path, *TRAIN)
    assert "fairface shards" in refused("verify", "--out", tmp_path / "none")


def test_options_of_packing_that_contradict_each_other_are_refused(drawn, tmp_path):
    pack = ("shards", "--data", drawn, "--out", tmp_path)
    for options in (
        ("--quality", 80),
        ("--size", 32, "--no-check"),
        ("--shard-images", 10, "--shard-bytes", "1MB"),
        ("--shard-bytes", "much"),
        ("--shard-bytes", "10"),
        ("--alias", "a"),
        ("--alias", "=b"),
        ("--annotations", drawn / "train.csv", "--no-annotations"),
    ):
        refused(*pack, *options, code=2)
    assert "none.csv" in refused(*pack, "--annotations", drawn / "none.csv")
    assert "there is Drawn, GANs" in refused(*pack, "--subset", "FFHQ")
    assert not (tmp_path / "shards" / "shards.json").exists()


def test_resume_needs_no_options_and_takes_no_others(tmp_path, packed):
    (tmp_path / "shards").symlink_to(packed / "shards")
    assert "fairface train" in refused("train", "--out", tmp_path, "--resume")
    fairface("train", "--out", tmp_path, *TRAIN, "--balance", "uniform", "--run", "one")
    assert "already trained that far" in fairface("train", "--out", tmp_path, "--resume")
    assert "trained 40 steps" in fairface("train", "--out", tmp_path, "--resume", "--steps", 40)
    assert "another lr" in refused("train", "--out", tmp_path, "--resume", "--lr", 1, "--steps", 50)
    assert "no run two" in refused("train", "--out", tmp_path, "--resume", "--run", "two")
    refused("train", "--out", tmp_path, "--resume", "--force", code=2)
    refused("train", "--out", tmp_path, "--balance-by", "age", code=2)
    assert "neither natural" in refused("train", "--out", tmp_path, "--balance", "evenly", code=2)
    assert "uniform" in fairface("sql", "-c", "select balance, balance_by, conditional from runs", "--out", tmp_path)


def test_faces_that_were_drawn_before_are_the_ones_packed(tmp_path):
    fairface("synth", "--out", tmp_path, "--count", 30, "--size", 32, "--gender", "female=1")
    assert "30 images" in fairface("shards", "--out", tmp_path)
    assert set(pl.read_parquet(tmp_path / "shards" / "images.parquet")["gender"]) == {"female"}


def test_options_that_would_do_nothing_are_refused(whole):
    refused("label", "--out", whole, "--prompts", "original")
    refused("label", "--out", whole, "--clip-model", "embedded", "--clip-pretrained", "openai")
    refused("label", "--input-dir", whole, "--out-csv", whole / "x.csv", "--limit", 3, code=2)
    refused("train", "--out", whole, "--steps", 3, "--epochs", 3, code=2)
    refused("sample", "--out", whole, "--run", "r", "--checkpoint", "c.pt", code=2)


def test_a_checkpoint_from_elsewhere_becomes_a_run_of_its_own(whole, tmp_path, packed):
    (checkpoint,) = whole.glob("runs/*/checkpoints/*.pt")
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()}
    (tmp_path / "shards").symlink_to(packed / "shards")
    fairface("sample", "--out", tmp_path, "--checkpoint", checkpoint, "--num-samples", 5)
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()} == before
    (run,) = (tmp_path / "runs").iterdir()
    assert pl.read_parquet(run / "samples.parquet")["run"].unique().to_list() == [run.name]
    assert run.name in fairface("sql", "runs", "--out", tmp_path)
    assert "unchanged" in fairface("sample", "--out", tmp_path, "--num-samples", 5)
    assert "not trained here" in refused("train", "--out", tmp_path, "--run", run.name, *TRAIN)
    next(run.glob("samples/*.idx")).unlink()
    assert "unchanged" not in fairface("sample", "--out", tmp_path, "--num-samples", 5)


def test_hostile_folders(drawn, tmp_path):
    out = tmp_path / "o[8]*{steps}"
    fairface("shards", "--out", out, "--data", drawn)
    assert "unchanged" in fairface(
        "shards", "--out", out, "--data", drawn.parent / "." / drawn.name / ".." / drawn.name
    )
    assert "240" in fairface("sql", "--out", out, "-c", "select count(*) as n from images")


def test_labels_from_elsewhere_become_a_run(whole, tmp_path):
    csv = tmp_path / "theirs.csv"
    csv.write_text("Image Path,gender,age,skin_tone\na.png,female,young,4\nb.png,male,,9\n")
    assert "2 labels of" in fairface("label", "--out", tmp_path, "--import", csv, "--run", "theirs")
    answer = fairface("sql", "distribution", "--out", tmp_path, "--param", "run=theirs", "--format", "csv")
    assert answer.splitlines()[1:] == ["generated,female,1,0.5", "generated,male,1,0.5"]
    refused("label", "--out", tmp_path, "--import", csv, "--limit", 3, code=2)
    assert "no such" in refused("label", "--out", tmp_path, "--import", tmp_path / "none.csv").lower()


def test_missing_outputs_are_made_again(whole, quick_labeller, monkeypatch):
    monkeypatch.setattr(embedded, "load_embedded", lambda *_, **__: quick_labeller)
    (whole / "report" / "estimates.parquet").unlink()
    assert "unchanged" not in fairface("report", "--out", whole)
    next(whole.glob("runs/*/samples/*.tar")).unlink()
    assert "unchanged" not in fairface("sample", "--out", whole, "--num-samples", 70)
    assert fairface("label", "--out", whole).count("unchanged") == 1
    fairface("report", "--out", whole)


def test_a_checkpoint_that_is_none_is_named(tmp_path):
    (tmp_path / "foreign.pt").write_bytes(b"PK no checkpoint")
    assert "foreign.pt" in refused("sample", "--out", tmp_path, "--checkpoint", tmp_path / "foreign.pt")
    assert "missing.pt" in refused("sample", "--out", tmp_path, "--checkpoint", tmp_path / "missing.pt")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_is_said_and_leaves_nothing_half_written(drawn, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        command = [
            sys.executable,
            "-m",
            "pipeline.cli",
            "shards",
            "--data",
            drawn,
            "--out",
            disk,
            "--shard-images",
            "40",
        ]
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
        assert done.returncode == 1
        assert "the disk is full" in done.stderr
        assert "Traceback" not in done.stderr
        assert not list((disk / "shards").glob("*.partial")) + list((disk / "shards").glob(".*.partial"))
    finally:
        subprocess.run(["umount", disk], check=True)


def test_sigterm_is_not_taken_for_a_librarys_failure(tmp_path, monkeypatch):
    """A checkpoint that is being read when the time limit comes must not become another labeller."""
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    (tmp_path / "weights.pt").write_bytes(b"1")
    monkeypatch.setattr("open_clip.create_model", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    words = ("--input-dir", tmp_path, "--out-csv", tmp_path / "l.csv", "--clip-pretrained", tmp_path / "weights.pt")
    assert "the same command goes on" in fairface("label", *words, code=75)
    assert not (tmp_path / "l.csv").exists()


def test_help_names_every_command():
    printed = fairface("--help")
    for name in ("synth", "shards", "verify", "train", "sample", "label", "labeller", "sql", "report", "bench"):
        assert re.search(rf"^  {name} ", printed, re.M)
        assert "--" in fairface(name, "--help")
