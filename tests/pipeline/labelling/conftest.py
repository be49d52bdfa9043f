"""Fixtures: an OUT folder that is ready to be labelled."""

import shutil
from dataclasses import replace

import polars as pl
import pytest

from pipeline.labelling import embedded
from shards.atomic_io import file_sha256
from shards.documents import RunConfig, SamplesDocument, load_shards_json, write_document
from shards.workspace import Workspace


@pytest.fixture
def workspace(packed, tmp_path, quick_labeller, monkeypatch) -> Workspace:
    """240 training images, and a run `mine` whose samples are copies of them; not labelled yet."""
    monkeypatch.setattr(embedded, "load_embedded", lambda *_, **__: quick_labeller)
    source, workspace = Workspace(packed).shards, Workspace(tmp_path)
    run = workspace.run("mine")
    for folder in (workspace.shards.folder, run.samples):
        shutil.copytree(source.folder, folder)
    document = load_shards_json(source)
    tars = [replace(tar, sha256=file_sha256(run.samples / tar.name)) for tar in document.shards]
    write_document(run.samples_document, samples_document(run.name, tars))
    write_document(run.config, RunConfig(name=run.name, status="finished", started="now", options={}))
    pl.read_parquet(source.images).filter(status="packed").select("key").write_parquet(run.samples_table)
    return workspace


def samples_document(run, tars):
    return SamplesDocument(
        run=run,
        checkpoint="c",
        sha256="",
        seed=0,
        count=240,
        weights="ema",
        image_size=64,
        fingerprint="f",
        step=1,
        manifest="",
        command="",
        shards=tars,
    )
