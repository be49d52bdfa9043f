"""Whatever happens to a file below OUT, `fairface verify` names it and the command that mends it."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from pipeline.verify import verify
from shards.atomic_io import file_sha256, read_json, write_json, write_parquet
from shards.documents import PredictionsDocument, file_hashes, write_document
from shards.locks import exclusive_lock
from shards.workspace import Workspace
from tests.pipeline.cli.helpers import error_line, fairface

UNCHECKED = ("png", "tensorboard", "grids")  # folders of pictures and logs that nothing is computed from


@pytest.fixture
def workspace(finished, tmp_path) -> Workspace:
    """The whole job's files, which the test may damage."""
    shutil.copytree(finished.root, tmp_path / "out")
    return Workspace(tmp_path / "out")


def find_faults(workspace: Workspace) -> list[str]:
    return [line for lines in verify(workspace, workers=2, progress=False).faults.values() for line in lines]


def written_files(root: Path) -> Iterator[Path]:
    """Every file that is checked; of the synthetic faces and the grids a few."""
    for path in sorted(root.rglob("*")):
        parts = path.relative_to(root).parts
        if path.is_file() and not any(part.startswith(".") or part in UNCHECKED for part in parts):
            yield path


def is_document(path: Path) -> bool:
    return path.suffix in (".json", ".sha256") or path.name == "images.parquet"


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)


def test_a_whole_workspace_has_no_fault(workspace):
    result = verify(workspace, workers=2, progress=False)
    assert result.faults == {}
    assert (result.images, result.files > 210) == (200, True)
    printed = fairface("verify", "--out", workspace.root)
    assert "all 200 images are intact" in printed
    assert "other files are intact" in printed


@pytest.mark.parametrize("damage", [flip, Path.unlink])
def test_every_damaged_file_is_named_at_once_with_a_remedy(workspace, damage):
    damaged = [path for path in written_files(workspace.root) if not is_document(path)]
    assert {path.suffix for path in damaged} >= {
        ".tar",
        ".idx",
        ".parquet",
        ".pt",
        ".jpg",
        ".csv",
        ".safetensors",
        ".html",
    }
    for path in damaged:
        damage(path)
    lines = find_faults(workspace)
    for path in damaged:
        about = [line for line in lines if line.startswith(str(path)) or (path.suffix == ".idx" and path.name in line)]
        about += [line for line in lines if path.suffix == ".idx" and str(path.with_suffix(".tar")) in line]
        assert about, path
        assert all("fairface" in line or "remove it" in line or "its folder" in line for line in about)


def test_every_damaged_document_is_named(workspace):
    documents = [path for path in written_files(workspace.root) if is_document(path)]
    assert len(documents) >= 10
    for path in documents:
        kept = path.read_bytes()
        path.write_bytes(kept[: len(kept) // 2])
        assert any(path.name in line or str(path) in line for line in find_faults(workspace)), path
        path.write_bytes(kept)
    assert find_faults(workspace) == []


def test_labels_of_other_samples_are_named(workspace):
    run = workspace.runs()[0]
    samples = read_json(run.samples_document)
    write_json(run.samples_document, samples | {"fingerprint": "other"})
    (line,) = [line for line in find_faults(workspace) if str(run.label_files.labels) in line]
    assert "other samples" in line
    assert "`fairface label --force`" in line


def test_a_folder_that_is_being_written_is_one_line_and_the_rest_is_checked(workspace):
    run = workspace.runs()[0]
    flip(workspace.shards.label_files.labels)
    with exclusive_lock(run.samples_lock, "sampling"):
        lines = find_faults(workspace)
    assert len(lines) == 2
    assert [f"another process is using {run.folder}" in line for line in lines] == [False, True]


def test_faults_are_counted_in_one_error_line(workspace):
    flip(workspace.runs()[0].samples_table)
    flip(workspace.shards.tars()[0])
    assert "2 faults in" in error_line("verify", "--out", workspace.root)
    assert "fairface shards" in error_line("verify", "--out", workspace.root / "none")


def test_the_predictions_of_a_detector_are_checked(tmp_path):
    detector = Workspace(tmp_path).detector("d")
    write_parquet(detector.predictions, pl.DataFrame({"a": [1]}))
    cached = detector.cached("f", file_sha256(detector.predictions))
    cached.parent.mkdir()
    shutil.copy(detector.predictions, cached)
    files = file_hashes(detector.predictions)
    document = PredictionsDocument(images=1, real=1, fake=0, created="", command="", files=files)
    write_document(detector.predictions_document, document)
    assert find_faults(Workspace(tmp_path)) == []
    for path in (detector.predictions, cached):
        flip(path)
    lines = find_faults(Workspace(tmp_path))
    assert [str(path) in line for path, line in zip((detector.predictions, cached), lines, strict=True)] == [True] * 2
