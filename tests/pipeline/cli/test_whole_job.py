"""The five commands of the whole job, one after the other, again, and out of order."""

import re

import polars as pl

from shards.atomic_io import read_json
from tests.pipeline.cli.helpers import SMALL_TRAINING, error_line, fairface


def test_the_whole_job_writes_what_the_contract_names(finished):
    (run,) = finished.runs()
    labels = run.label_files
    expected = [run.config, run.steps, run.samples_table, labels.labels, labels.embeddings, run.grids]
    assert not [path for path in expected if not path.exists()]
    assert len(list((finished.root / "png").glob("sample_*.png"))) == 70
    page = finished.report.page.read_text()
    assert "synthetic" in page.lower()
    assert not re.search(r'(src|href)="https?://', page)


def test_both_sides_are_labelled_alike(finished):
    (run,) = finished.runs()
    train, generated = (pl.read_parquet(side.label_files.labels) for side in (finished.shards, run))
    assert [len(train), len(generated)] == [200, 70]
    assert train.columns == generated.columns
    assert train["labeller"].unique().to_list() == generated["labeller"].unique().to_list()
    sums = generated["p_gender"].list.sum()
    assert sums.is_between(0.999, 1.001).all()
    assert pl.read_parquet(run.label_files.embeddings).schema["embedding"].inner == pl.Float16


def test_a_second_time_finished_stages_are_skipped(finished, embedded_labeller):
    out = finished.root
    files = {path: path.stat().st_mtime_ns for path in out.rglob("*.tar")}
    assert "unchanged" in fairface("shards", "--out", out, "--data", finished.synthetic, "--shard-images", 64)
    assert "already trained" in fairface("train", "--out", out, *SMALL_TRAINING)
    assert "unchanged" in fairface("sample", "--out", out, "--num-samples", 70)
    assert fairface("label", "--out", out).count("unchanged") == 2
    assert "unchanged" in fairface("report", "--out", out)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.tar")} == files


def test_missing_outputs_are_written_again(finished, embedded_labeller):
    (run,) = finished.runs()
    finished.report.table("estimates").unlink()
    assert "unchanged" not in fairface("report", "--out", finished.root)
    next(run.samples.glob("*.tar")).unlink()
    assert "unchanged" not in fairface("sample", "--out", finished.root, "--num-samples", 70)
    assert fairface("label", "--out", finished.root).count("unchanged") == 1
    fairface("report", "--out", finished.root)


def test_the_packed_annotations_have_the_requested_shares(finished):
    answer = fairface("sql", "--out", finished.root, "--format", "json", "-c",
                      "select count(*) filter (gender = 'female') / count(*) as share from images")  # fmt: skip
    assert 0.65 < float(re.search(r"0\.\d+", answer)[0]) < 0.85


def test_the_original_options_work_under_their_names(synthetic_root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # `sample` uses the default of --out
    fairface(
        "train", "--data-root", synthetic_root, "--out-dir", tmp_path, "--image-size", 32, "--latent-dim", 8,
        "--batch-size", 64, "--num-epochs", 1, "--lr", 2e-4, "--beta1", 0.5, "--beta2", 0.999, "--num-workers", 1,
        "--device", "cpu", "--sample-every", 2, "--save-every-epoch", 1, "--width-g", 8, "--width-d", 8,
    )  # fmt: skip
    (run,) = (tmp_path / "runs").iterdir()
    (checkpoint,) = (run / "checkpoints").iterdir()
    assert read_json(run / "config.json")["steps"] == 240 // 64
    fairface("sample", "--checkpoint", checkpoint, "--num-samples", 5, "--batch-size", 2, "--out-dir", tmp_path / "png")
    assert sorted(path.name for path in (tmp_path / "png").iterdir()) == [f"sample_{i:05d}.png" for i in range(5)]


def test_a_stage_before_its_predecessor_names_the_command_to_run(tmp_path, packed):
    assert "fairface shards" in error_line("train", "--out", tmp_path)
    assert "fairface train" in error_line("sample", "--out", tmp_path)
    assert "fairface train" in error_line("label", "--out", tmp_path)
    assert "fairface train" in error_line("report", "--out", tmp_path)
    assert "fairface shards" in error_line("sql", "runs", "--out", tmp_path / "nowhere")
    (tmp_path / "shards").symlink_to(packed / "shards")
    fairface("train", "--out", tmp_path, *SMALL_TRAINING)
    assert "fairface sample" in error_line("label", "--out", tmp_path)
    fairface("sample", "--out", tmp_path, "--num-samples", 4)
    printed = fairface("report", "--out", tmp_path)  # a page of what is available, although shards/ is a link
    assert "fairface label" in printed
    assert (tmp_path / "report" / "index.html").is_file()


def test_names_with_special_characters(synthetic_root, tmp_path):
    out = tmp_path / "o[8]*{steps}"
    fairface("shards", "--out", out, "--data", synthetic_root)
    same_folder = synthetic_root.parent / "." / synthetic_root.name / ".." / synthetic_root.name
    assert "unchanged" in fairface("shards", "--out", out, "--data", same_folder)
    assert "240" in fairface("sql", "--out", out, "-c", "select count(*) as n from images")
