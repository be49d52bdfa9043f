"""Sampling writes shards and tables, skips what exists, and names the samples by what decides them."""

import io
import os
import shutil
from dataclasses import replace
from operator import attrgetter
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from pipeline.cli.console import print_sample_summary
from pipeline.cli.main import main
from pipeline.gan import sample as sample_module
from pipeline.gan.generate import ImageGenerator, load_generator
from pipeline.gan.png import encode_png, filter_rows
from pipeline.gan.sample import SampleConfig, SampleResult, sample
from pipeline.training.checkpoint import checkpoint_path
from shards import tar
from shards.documents import RunConfig, SamplesDocument, file_hashes, read_document, write_document
from shards.errors import FairfaceError
from shards.locks import LockHeld, exclusive_lock, shared_lock
from shards.workspace import Workspace

CONFIG = SampleConfig(run="r", device="cpu", progress=False)


def test_the_shards_have_the_samples_in_order(trained, monkeypatch):
    monkeypatch.setattr(sample_module, "SHARD_IMAGES", 50)
    config, folder = replace(CONFIG, count=130, seed=3), trained.run("r")
    result = sample(trained, replace(config, force=True))
    rows = pl.read_parquet(folder.samples_table)
    assert rows["index"].to_list() == list(range(130))
    assert rows["shard"].n_unique() == 3
    assert rows.select("run", "checkpoint", "seed").unique().row(0) == ("r", "step_000000012.pt", 3)
    network, _ = load_generator(checkpoint_path(folder.checkpoints, 12), torch.device("cpu"))
    expected = list(ImageGenerator(network, torch.device("cpu"), seed=3).iterate_png(0, 130))
    for (shard,), part in rows.group_by("shard", maintain_order=True):
        files = tar.read_members(folder.samples / shard, part["key"])
        for index, data in zip(part["index"], files.values(), strict=True):
            pixels, generated = (np.asarray(Image.open(io.BytesIO(png))) for png in (data, expected[index]))
            assert np.array_equal(pixels, generated)
    assert not result.unchanged
    assert sample(trained, config).unchanged
    assert not sample(trained, replace(config, count=131)).unchanged


def test_a_png_folder_has_what_the_shards_have(trained, monkeypatch, tmp_path):
    monkeypatch.setattr(sample_module, "SHARD_IMAGES", 50)
    generate_block, blocks = ImageGenerator.generate_block, []
    monkeypatch.setattr(
        ImageGenerator, "generate_block", lambda self, number: blocks.append(number) or generate_block(self, number)
    )
    png_dir, samples = tmp_path / "png", trained.run("r").samples
    config = replace(CONFIG, count=70, seed=5, png_dir=png_dir)
    shards = sample(trained, config).document.shards
    assert sorted(blocks) == [0, 1]  # once, not for the shards and again for the folder
    files = [path.read_bytes() for path in sorted(png_dir.iterdir())]
    assert [path.name for path in sorted(png_dir.iterdir())] == [f"sample_{i:05d}.png" for i in range(70)]
    keys = [f"{i:08d}" for i in range(70)]
    assert files == [
        *tar.read_members(samples / shards[0].name, keys[:50]).values(),
        *tar.read_members(samples / shards[1].name, keys[50:]).values(),
    ]
    (png_dir / "sample_00007.png").unlink()
    assert sample(trained, config).unchanged
    assert (png_dir / "sample_00007.png").read_bytes() == files[7]
    assert len(blocks) == 2


def test_a_png_file_is_kept_until_its_successor_is_whole(trained, monkeypatch, tmp_path):
    png_dir = tmp_path / "png"
    png_dir.mkdir()
    old = png_dir / "sample_00001.png"
    old.write_bytes(b"old")
    replace_file, calls = os.replace, []

    def replace_one(source, target):
        if Path(target).parent == png_dir:
            calls.append(target)
            if len(calls) == 2:
                raise OSError(28, "No space left on device")
        replace_file(source, target)

    monkeypatch.setattr(os, "replace", replace_one)
    with pytest.raises(OSError, match="No space left"):
        sample(trained, replace(CONFIG, count=4, seed=7, png_dir=png_dir))
    assert old.read_bytes() == b"old"
    assert sorted(path.name for path in png_dir.iterdir()) == ["sample_00000.png", "sample_00001.png"]


def test_other_files_next_to_the_tars_are_kept(trained):
    before = sample(trained, replace(CONFIG, count=4, seed=9)).document
    precious = trained.run("r").samples / "precious.png"
    precious.write_text("precious")
    with pytest.raises(FairfaceError, match=r"precious\.png is no file of samples.*: move it away"):
        sample(trained, replace(CONFIG, count=4, seed=10, force=True))
    assert precious.read_text() == "precious"
    assert read_document(trained.run("r").samples_document, SamplesDocument) == before
    precious.unlink()


def test_damaged_tars_are_not_copied_to_a_png_folder(trained, tmp_path):
    samples = sample(trained, replace(CONFIG, count=4, seed=8)).document
    path = trained.run("r").samples / samples.shards[0].name
    content = bytearray(path.read_bytes())
    content[700] ^= 1
    path.write_bytes(content)
    with pytest.raises(FairfaceError, match="was changed after it was written: sample again"):
        sample(trained, replace(CONFIG, count=4, seed=8, png_dir=tmp_path / "png"))
    assert not (tmp_path / "png").exists()


def test_another_truncation_gives_other_samples(trained):
    folder = trained.run("r")

    def sample_with(truncation: float | None = None) -> tuple[SampleResult, bytes]:
        result = sample(trained, replace(CONFIG, count=20, truncation=truncation))
        return result, (folder.samples / result.document.shards[0].name).read_bytes()

    (plain, plain_tar), (truncated, truncated_tar) = sample_with(), sample_with(0.5)
    assert plain.document.truncation is None
    written = read_document(folder.samples_document, SamplesDocument)
    assert truncated.document.truncation == written.truncation == 0.5
    assert not truncated.unchanged
    assert truncated_tar != plain_tar
    assert sample_with(0.5)[0].unchanged
    assert not sample_with(0.4)[0].unchanged
    again, again_tar = sample_with()
    assert not again.unchanged
    assert again_tar == plain_tar
    assert again.document.fingerprint == plain.document.fingerprint
    rows = pl.read_parquet(folder.samples_table)
    assert rows.columns == ["key", "run", "checkpoint", "seed", "index", "shard", "requested", "path"]


def test_the_command_truncates_and_refuses_what_is_not_a_bound(trained):
    def fairface(*words: object):
        line = ["sample", "--out", trained.root, "--run", "r", "--num-samples", 5, "--device", "cpu", *words]
        return CliRunner().invoke(main, [str(word) for word in line])

    result = fairface("--truncation", 0.7)
    assert result.exit_code == 0, result.output
    assert read_document(trained.run("r").samples_document, SamplesDocument).truncation == 0.7
    assert "unchanged" in fairface("--truncation", 0.7).output
    assert "unchanged" not in fairface().output
    for wrong in ("0", "-1", "nan", "inf", "much"):
        result = fairface("--truncation", wrong)
        assert result.exit_code == 2
        lines = [line for line in result.output.splitlines() if line.startswith("Error:")]
        assert len(lines) == 1
        assert "--truncation" in lines[0]


def test_a_checkpoint_of_the_workspace_is_sampled_into_its_run(trained):
    path = checkpoint_path(trained.run("r").checkpoints, 12)
    result = sample(trained, replace(CONFIG, run=None, checkpoint=path, count=5))
    assert result.folder == trained.run("r")
    assert result.document.run == "r"


def test_a_checkpoint_from_elsewhere_gets_a_run_of_its_own(trained, tmp_path):
    elsewhere: Path = checkpoint_path(trained.run("r").checkpoints, 12)
    other = Workspace(tmp_path)
    result = sample(other, replace(CONFIG, run=None, checkpoint=elsewhere, count=5))
    assert result.folder == other.run("r-step_000000012")
    config = result.folder.config.read_bytes()
    assert sample(other, replace(CONFIG, run="r-step_000000012", count=5)).unchanged
    assert sample(other, replace(CONFIG, run=None, checkpoint=elsewhere, count=5)).unchanged
    assert result.folder.config.read_bytes() == config


@pytest.mark.parametrize("name", ["samples.parquet", "samples/samples-000000.idx", "samples/samples-000000.tar"])
def test_missing_samples_are_generated_again(trained, name):
    config = replace(CONFIG, count=6)
    sample(trained, config)
    path = trained.run("r").folder / name
    path.unlink()
    assert not sample(trained, config).unchanged
    assert path.exists()


@pytest.mark.parametrize("lock", ["samples_lock", "label_files.lock"])
def test_sampling_is_refused_while_the_samples_are_read_or_labelled(trained, lock):
    sample(trained, replace(CONFIG, count=4))
    run = trained.run("r")
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    with (
        shared_lock(attrgetter(lock)(run), "a test"),
        pytest.raises(LockHeld, match=r"another process is using .*before sampling"),
    ):
        sample(trained, replace(CONFIG, count=4, seed=2))
    assert {path: path.read_bytes() for path in before} == before


def test_a_run_is_sampled_while_it_is_trained(trained):
    with exclusive_lock(trained.run("r").lock, "training"):
        assert sample(trained, replace(CONFIG, count=4, force=True)).document.count == 4
        path = checkpoint_path(trained.run("r").checkpoints, 12)
        assert sample(trained, replace(CONFIG, run=None, checkpoint=path, count=4)).unchanged


def test_a_run_of_an_external_checkpoint_is_locked_while_it_is_created(trained, tmp_path):
    other, path = Workspace(tmp_path), checkpoint_path(trained.run("r").checkpoints, 12)
    run = other.run("r-step_000000012")
    with exclusive_lock(run.lock, "a test"), pytest.raises(LockHeld):
        sample(other, replace(CONFIG, run=None, checkpoint=path, count=4))
    assert not run.config.exists()


def test_a_checkpoint_does_not_take_over_a_run_that_was_trained_here(trained, tmp_path):
    path = tmp_path / "x.pt"
    path.write_bytes(checkpoint_path(trained.run("r").checkpoints, 12).read_bytes())
    run = Workspace(tmp_path).run("r-x")
    config = read_document(trained.run("r").config, RunConfig)
    write_document(run.config, config)
    with pytest.raises(FairfaceError, match="there is already another run r-x: rename the file"):
        sample(Workspace(tmp_path), replace(CONFIG, run=None, checkpoint=path, count=4))
    assert read_document(run.config, RunConfig) == config


def test_a_checkpoint_whose_name_is_not_a_valid_run_name_is_refused(trained, tmp_path):
    path = tmp_path / "weird [name].pt"
    path.write_bytes(checkpoint_path(trained.run("r").checkpoints, 12).read_bytes())
    with pytest.raises(FairfaceError, match=r"--checkpoint 'weird \[name\].pt': .*rename the file"):
        sample(Workspace(tmp_path / "out"), replace(CONFIG, run=None, checkpoint=path, count=4))
    assert not (tmp_path / "out").exists()


def test_the_document_describes_the_table(trained):
    result = sample(trained, replace(CONFIG, count=4, force=True))
    run = trained.run("r")
    assert result.document.files == file_hashes(run.samples_table)
    content = bytearray(run.samples_table.read_bytes())
    content[100] ^= 1
    run.samples_table.write_bytes(content)
    assert not sample(trained, replace(CONFIG, count=4)).unchanged


@pytest.mark.parametrize("name", ["samples", ".samples", "labels.parquet", "samples.parquet"])
def test_links_and_folders_are_refused_before_anything_is_removed(trained, tmp_path, name):
    run = Workspace(tmp_path / "out").run("r")
    shutil.copytree(trained.run("r").folder, run.folder)
    config = replace(CONFIG, count=4)
    sample(Workspace(tmp_path / "out"), config)
    elsewhere, path = tmp_path / "elsewhere", run.folder / name
    elsewhere.mkdir()
    (elsewhere / "precious").write_bytes(b"precious")
    if name.endswith("parquet"):
        path.unlink(missing_ok=True)
        path.mkdir()
    else:
        shutil.rmtree(path, ignore_errors=True)
        path.symlink_to(elsewhere)
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    with pytest.raises(FairfaceError, match=f"{name} is a (link|folder)"):
        sample(Workspace(tmp_path / "out"), replace(config, seed=2))
    assert {path: path.read_bytes() for path in before} == before
    assert [path.name for path in elsewhere.iterdir()] == ["precious"]


@pytest.mark.parametrize("kind", ["link", "folder", "fifo"])
def test_anything_but_a_file_in_a_png_folder_is_refused_first(trained, tmp_path, kind):
    png_dir, precious = tmp_path / "png", tmp_path / "precious"
    png_dir.mkdir()
    precious.write_bytes(b"precious")
    path = png_dir / "sample_00003.png"
    make = {"link": lambda: path.symlink_to(precious), "folder": path.mkdir, "fifo": lambda: os.mkfifo(path)}
    make[kind]()
    with pytest.raises(FairfaceError, match=r"sample_00003\.png is not a regular file"):
        sample(trained, replace(CONFIG, count=4, png_dir=png_dir))
    assert [one.name for one in png_dir.iterdir()] == ["sample_00003.png"]
    assert precious.read_bytes() == b"precious"


def test_more_samples_than_the_disk_holds_are_refused_before_the_first(trained, tmp_path, monkeypatch):
    run = trained.run("r")
    before = sample(trained, replace(CONFIG, count=4)).document
    usage, free = shutil.disk_usage(tmp_path), 10**11
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=free))
    with pytest.raises(FairfaceError, match=r"100,000,000 samples need about [0-9,.]+ GB, and .* has [0-9,.]+ GB of"):
        sample(trained, replace(CONFIG, count=10**8))
    assert not run.new_samples.exists()
    assert read_document(run.samples_document, SamplesDocument) == before
    free = 200_000  # bytes: enough for the tars alone
    assert not sample(trained, replace(CONFIG, count=64, seed=3)).unchanged
    with pytest.raises(FairfaceError, match="64 samples need about"):
        sample(trained, replace(CONFIG, count=64, seed=4, png_dir=run.folder / "png"))


def test_the_estimated_size_is_at_least_the_size(trained, monkeypatch):
    means = []
    monkeypatch.setattr(sample_module, "check_free_space", lambda mean, **_: means.append(mean))
    result = sample(trained, replace(CONFIG, count=1000, force=True))
    run = trained.run("r")
    files = [run.samples_table, run.samples_document, *run.samples.iterdir()]
    size = sum(path.stat().st_size for path in files)
    assert size < result.document.count * (means[0] + sample_module.SAMPLE_OVERHEAD) < 2 * size


def test_sampling_that_takes_hours_is_announced_once(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(sample_module, "monotonic", lambda: now[0])
    time = sample_module.RemainingTime(10**6)
    for index in range(100):
        now[0] += 1
        time.update(index)
    assert capsys.readouterr().err == "1,000,000 samples will take about 277.8 hours\n"


@pytest.mark.parametrize(
    ("images", "constant"),
    [
        (["noise", "noise"], True),
        (["noise", "other"], False),
        (["noise"], False),
        (["red", "blue"], True),
        (["red", "noise"], False),
        (["red"], True),
    ],
)
def test_constant_samples_are_noticed(images, constant):
    pixels = {"noise": torch.arange(768).reshape(16, 16, 3) % 255, "other": torch.arange(768).reshape(16, 16, 3) % 7}
    pixels |= {"red": torch.tensor([255, 0, 0]).expand(16, 16, 3), "blue": torch.tensor([0, 0, 255]).expand(16, 16, 3)}
    constancy = sample_module.Constancy()
    for name in images:
        constancy.add(encode_png(filter_rows(pixels[name].to(torch.uint8)[None])[0]))
    assert constancy.is_constant is constant


def test_a_generator_of_one_image_is_warned_about(trained, tmp_path, capsys):
    state = torch.load(checkpoint_path(trained.run("r").checkpoints, 12), weights_only=True)
    for name, tensor in state["networks"]["ema"].items():
        if name.endswith(("weight", "bias")):
            tensor.zero_()
    path = tmp_path / "x.pt"
    torch.save(state, path)
    result = sample(Workspace(tmp_path), replace(CONFIG, run=None, checkpoint=path, count=4))
    assert result.document.is_constant
    print_sample_summary(result)
    assert "Warning: all samples are the same image" in capsys.readouterr().err
    assert not sample(trained, replace(CONFIG, count=4, force=True)).document.is_constant


def test_weights_that_are_not_numbers_are_refused(trained, tmp_path):
    state = torch.load(checkpoint_path(trained.run("r").checkpoints, 12), weights_only=True)
    next(iter(state["networks"]["ema"].values()))[0] = torch.nan
    path = tmp_path / "x.pt"
    torch.save(state, path)
    with pytest.raises(FairfaceError, match=r"x\.pt is not a complete checkpoint .*NaN"):
        sample(Workspace(tmp_path), replace(CONFIG, run=None, checkpoint=path, count=4))
