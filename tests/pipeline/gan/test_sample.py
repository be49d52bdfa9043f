"""Sampling writes shards and tables, skips what exists, and names the samples by what decides them."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from pipeline.cli.main import main
from pipeline.gan import sample as sample_module
from pipeline.gan.generate import ImageGenerator, load_generator
from pipeline.gan.sample import SampleConfig, SampleResult, sample
from pipeline.training.checkpoint import checkpoint_path
from shards import tar
from shards.documents import SamplesDocument, read_document
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
    assert rows.columns == ["key", "run", "checkpoint", "seed", "index", "shard", "requested"]


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
