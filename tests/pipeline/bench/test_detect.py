"""The evaluation that is measured has metrics: predictions that the views leave out would be fast."""

import polars as pl
import pytest

import sql
from pipeline.bench import detect
from shards.workspace import Workspace


def test_the_measured_evaluation_has_metrics_of_all_groups(packed, tmp_path, monkeypatch):
    workspace = Workspace(tmp_path)
    workspace.shards.folder.symlink_to(Workspace(packed).shards.folder)
    images = pl.read_parquet(workspace.shards.images).filter(status="packed")
    numbers = pl.int_range(pl.len())
    columns = {"run": pl.lit(None, pl.String), "fake": numbers % 2 == 1, "logit": numbers.cast(pl.Float64) - 10}
    faces = images.select("key", source=pl.lit("images"), **columns)
    detect.ask_metrics(workspace, faces)
    utility = sql.ask(sql.connect(workspace), "utility", detector=detect.DETECTOR)
    assert {"all", "gender", "age", "intersection"} <= set(utility["attribute"])
    monkeypatch.setattr(detect, "training_images_hash", lambda _: "of other images")
    with pytest.raises(RuntimeError, match="has no metrics"):
        detect.ask_metrics(workspace, faces)
