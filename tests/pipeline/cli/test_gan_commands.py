"""`fairface train` and `sample`."""

import os

import polars as pl
import pytest

from models.gan_losses import LOSSES
from pipeline.cli import gan
from pipeline.gan.options import PRESETS, REGULARIZERS
from tests.pipeline.cli.helpers import SMALL_TRAINING, error_line, fairface


@pytest.fixture
def out(tmp_path, packed):
    """An OUT folder with shards only."""
    (tmp_path / "shards").symlink_to(packed / "shards")
    return tmp_path


def test_resume_needs_no_options_and_accepts_a_new_length(out):
    assert "fairface train" in error_line("train", "--out", out, "--resume")
    fairface("train", "--out", out, *SMALL_TRAINING, "--balance", "uniform", "--run", "one")
    assert "already trained" in fairface("train", "--out", out, "--resume")
    assert "trained 40 steps" in fairface("train", "--out", out, "--resume", "--steps", 40)
    assert "another lr" in error_line("train", "--out", out, "--resume", "--lr", 1, "--steps", 50)
    assert "no run two" in error_line("train", "--out", out, "--resume", "--run", "two")
    assert "uniform" in fairface("sql", "-c", "select balance, balance_by, conditional from runs", "--out", out)


@pytest.mark.parametrize(
    "options",
    [
        ("--resume", "--force"),
        ("--resume", "--preset", "sketch"),
        ("--balance-by", "age"),
        ("--steps", "3", "--epochs", "3"),
        ("--other-data", "--steps", "3"),
        ("--other-data", "--run", "one", "--epochs", "3"),
        ("--balance", "evenly"),
        ("--ema", "0.9", "--ema-half-life", "100"),
        ("--lr", "1e-3", "--lr-g", "1e-3", "--lr-d", "1e-3"),
    ],
    ids=" ".join,
)
def test_contradictory_training_options_are_refused(out, options):
    error_line("train", "--out", out, *options, code=2)
    assert not (out / "runs").exists()


def test_options_of_a_penalty_need_one(out):
    words = error_line("train", "--out", out, *SMALL_TRAINING, "--regularizer", "spectral", "--gamma", 2)
    assert "--gamma and --penalty-every need --regularizer r1 or r1r2" in words


def test_the_choices_are_those_of_the_options():
    choices = {option.name: option.type.choices for option in gan.train.params if hasattr(option.type, "choices")}
    assert (*choices["loss"],) == (*LOSSES,)
    assert (*choices["regularizer"],) == REGULARIZERS
    assert {*choices["preset"]} == {"auto", *PRESETS}


def test_an_unknown_balance_is_explained(out):
    assert "neither natural" in error_line("train", "--out", out, "--balance", "evenly", code=2)


@pytest.mark.parametrize(
    "options",
    [
        ("--truncation", "inf"),
        ("--size", "32"),
        ("--as-is",),
        ("--from", "faces", "--size", "32", "--as-is"),
        ("--from", "faces", "--checkpoint", "c.pt"),
        ("--from", "faces", "--weights", "g"),
        ("--from", "faces", "--group", "female"),
        ("--from", "faces", "--ema-half-life", "100"),
        ("--from", "faces", "--threads", "2"),
        ("--weights", "g", "--ema-half-life", "100"),
    ],
    ids=" ".join,
)
def test_contradictory_sampling_options_are_refused(out, options):
    error_line("sample", "--out", out, *options, code=2)


def test_a_checkpoint_from_elsewhere_becomes_a_run_of_its_own(finished, out):
    (checkpoint,) = finished.root.glob("runs/*/checkpoints/*.pt")
    before = {path: path.stat().st_mtime_ns for path in finished.root.rglob("*") if path.is_file()}
    fairface("sample", "--out", out, "--checkpoint", checkpoint, "--num-samples", 5)
    assert {path: path.stat().st_mtime_ns for path in finished.root.rglob("*") if path.is_file()} == before
    (run,) = (out / "runs").iterdir()
    assert pl.read_parquet(run / "samples.parquet")["run"].unique().to_list() == [run.name]
    assert run.name in fairface("sql", "runs", "--out", out)
    assert "unchanged" in fairface("sample", "--out", out, "--num-samples", 5)
    fairface(
        "sample", "--out", out, "--checkpoint", checkpoint, "--num-samples", 5, "--run", "named", "--truncation", 1
    )
    assert set(pl.read_parquet(out / "runs" / "named" / "samples.parquet")["run"]) == {"named"}
    assert (out / "runs" / "named" / "samples.parquet").read_bytes() != (run / "samples.parquet").read_bytes()
    assert "not trained here" in error_line("train", "--out", out, "--run", run.name, *SMALL_TRAINING)
    next(run.glob("samples/*.idx")).unlink()
    assert "unchanged" not in fairface("sample", "--out", out, "--num-samples", 5)


def test_a_file_that_is_no_checkpoint_is_named(tmp_path):
    (tmp_path / "foreign.pt").write_bytes(b"PK no checkpoint")
    assert "foreign.pt" in error_line("sample", "--out", tmp_path, "--checkpoint", tmp_path / "foreign.pt")
    assert "missing.pt" in error_line("sample", "--out", tmp_path, "--checkpoint", tmp_path / "missing.pt")
    os.mkfifo(tmp_path / "pipe.pt")
    for path in (tmp_path / "pipe.pt", "/dev/zero"):  # neither blocks nor fills the memory
        assert "is not a regular file" in error_line("sample", "--out", tmp_path, "--checkpoint", path)
    assert not (tmp_path / "runs").exists()
