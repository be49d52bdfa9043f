"""Fixtures: an OUT folder that is ready to be labelled."""

import os
import shutil
from dataclasses import replace

import polars as pl
import pytest

from pipeline.labelling import embedded
from shards.atomic_io import file_sha256
from shards.documents import RunConfig, SamplesDocument, file_hashes, load_shards_json, write_document
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
    write_document(run.config, RunConfig(name=run.name, status="finished", started="now", options={}))
    pl.read_parquet(source.images).filter(status="packed").select("key").write_parquet(run.samples_table)
    write_samples_document(run, tars)
    return workspace


def write_samples_document(run, tars):
    document = SamplesDocument(
        run=run.name,
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
        files=file_hashes(run.samples_table),
    )
    write_document(run.samples_document, document)


def stop_after(monkeypatch, steps):
    """Raise KeyboardInterrupt instead of the first rename or removal of a file after `steps` others."""
    calls = []

    def stopped(call):
        def run(path, *rest, **options):
            if str(path).endswith((".partial", ".lock")) and call is os.unlink:
                return call(path, *rest, **options)
            calls.append(path)
            if len(calls) > steps:
                raise KeyboardInterrupt
            return call(path, *rest, **options)

        return run

    for name in ("replace", "unlink"):
        monkeypatch.setattr(os, name, stopped(getattr(os, name)))
