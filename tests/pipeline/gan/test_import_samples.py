"""Images and generators of other programs become a run's samples, checked and shuffled, and are imported once."""

import io
import os
import shutil
import tarfile
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image

from pipeline.gan import import_samples as import_module
from pipeline.gan import sample as sample_module
from pipeline.gan.import_samples import ImportConfig, import_samples
from pipeline.gan.sample import SampleConfig, sample
from pipeline.verify import verify
from shards import tar
from shards.documents import LabelsDocument, RunConfig, SamplesDocument, read_document, write_document
from shards.errors import FairfaceError
from shards.locks import LockHeld, exclusive_lock
from shards.workspace import Workspace
from tests.pipeline.gan.helpers import train_run
from tests.pipeline.gan.test_external_generator import Net
from tests.shards.sample_images import encoded_image

GENERATOR = """
import torch

def generate(count, seed):
    return torch.rand(count, 3, 40, 40, generator=torch.Generator().manual_seed(seed)) * 2 - 1

def broken(count, seed):
    raise RuntimeError("no weights here")
"""


@pytest.fixture
def faces(synthetic_root, tmp_path) -> Path:
    """40 images in two folders, without tables."""
    folder = tmp_path / "faces"
    for number, path in enumerate(sorted(synthetic_root.rglob("*.jpg"))[:40]):
        target = folder / str(number % 2) / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return folder


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    return Workspace(tmp_path / "out")


def config_of(source: Path | str, **options) -> ImportConfig:
    return ImportConfig(str(source), device="cpu", progress=False, **{"run": "ext", **options})


def read_samples(workspace: Workspace, run: str = "ext") -> np.ndarray:
    """The samples in order, uint8 [N, S, S, 3]."""
    folder, images = workspace.run(run), []
    for (shard,), rows in pl.read_parquet(folder.samples_table).group_by("shard", maintain_order=True):
        members = tar.read_members(folder.samples / str(shard), rows["key"])
        images += [np.asarray(Image.open(io.BytesIO(data))) for data in members.values()]
    return np.stack(images)


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if not path.name.startswith("."))


def test_a_folder_becomes_a_run_whose_samples_know_their_files(faces, workspace, monkeypatch):
    monkeypatch.setattr(sample_module, "SHARD_IMAGES", 15)
    result = import_samples(workspace, config_of(faces))
    table, document = pl.read_parquet(workspace.run("ext").samples_table), result.document
    assert not result.unchanged
    assert table["index"].to_list() == list(range(40))
    assert table["shard"].n_unique() == 3
    assert table["path"].sort().to_list() == sorted(f"{path.parent.name}/{path.name}" for path in faces.rglob("*.jpg"))
    assert table["path"].to_list() != table["path"].sort().to_list()  # shuffled
    assert (document.count, document.image_size, document.checkpoint) == (40, 64, "faces")
    assert document.source
    assert (document.source.kind, document.source.path) == ("folder", str(faces))
    for image, path in zip(read_samples(workspace), table["path"], strict=True):
        expected = np.asarray(Image.open(faces / path))  # 64 pixels already
        assert np.abs(image.astype(int) - expected).max() <= 3  # another JPEG decoder
    config = read_document(workspace.run("ext").config, RunConfig)
    assert config
    assert (config.status, config.source) == ("imported", str(faces))
    assert not verify(workspace, progress=False).faults
    assert not workspace.run("ext").import_workspace.root.exists()


def test_the_same_images_are_imported_once(faces, workspace):
    config = config_of(faces)
    first = import_samples(workspace, config).document
    files = {path: path.stat().st_mtime_ns for path in workspace.run("ext").folder.rglob("*") if path.is_file()}
    assert import_samples(workspace, config).unchanged
    assert files == {path: path.stat().st_mtime_ns for path in files}
    os.utime(next(faces.rglob("*.jpg")))  # another time, the same content: the labels stay valid
    touched = import_samples(workspace, config)
    assert touched.unchanged
    assert touched.document.fingerprint == first.fingerprint
    assert not import_samples(workspace, replace(config, seed=1)).unchanged
    assert not import_samples(workspace, replace(config, seed=1, force=True)).unchanged
    next(faces.rglob("*.jpg")).unlink()
    assert import_samples(workspace, config).document.count == 39
    next(workspace.run("ext").samples.glob("*.tar")).unlink()
    assert not import_samples(workspace, config).unchanged
    assert not verify(workspace, progress=False).faults


def test_labels_of_replaced_samples_are_removed(faces, workspace):
    import_samples(workspace, config_of(faces))
    labels = workspace.run("ext").label_files
    labels.labels.write_bytes(b"")
    import_samples(workspace, config_of(faces, count=10))
    assert not labels.labels.exists()


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip", "npz"])
def test_archives_give_the_images_of_their_folder(kind, faces, workspace, tmp_path):
    paths, archive = sorted(faces.rglob("*.jpg")), tmp_path / f"faces.{kind}"
    if kind == "npz":
        np.savez(archive, np.stack([np.asarray(Image.open(path)) for path in paths]))
    elif kind == "zip":
        with zipfile.ZipFile(archive, "w") as file:
            for path in paths:
                file.write(path, path.name)
    else:
        with tarfile.open(archive, "w:gz" if kind == "tar.gz" else "w") as file:
            for path in paths:
                file.add(path, path.name)
    result = import_samples(workspace, config_of(archive, run=None))
    assert result.folder.name == "faces"
    table = pl.read_parquet(result.folder.samples_table)
    for image, name in zip(read_samples(workspace, "faces"), table["path"], strict=True):
        index = int(name[6:-1]) if kind == "npz" else [path.name for path in paths].index(name)
        assert np.abs(image.astype(int) - np.asarray(Image.open(paths[index]))).max() <= 3
    assert import_samples(workspace, config_of(archive, run=None)).unchanged
    assert visible(result.folder.folder) == [
        "config.json", "samples", "samples-000000.idx", "samples-000000.tar", "samples.json", "samples.parquet",
    ]  # fmt: skip


def test_odd_images_are_converted_and_bad_ones_counted(workspace, tmp_path):
    folder = tmp_path / "odd"
    folder.mkdir()
    good = encoded_image(size=(40, 40))
    images = {
        "grey.png": encoded_image("PNG", "L", size=(40, 40)),
        "deep.png": encoded_image("PNG", "I;16", size=(40, 40)),
        "clear.png": encoded_image("PNG", "RGBA", size=(40, 40)),
        "wide.jpg": encoded_image(size=(80, 40)),
        "tiny.png": encoded_image("PNG", size=(4, 4)),
        "broken.jpg": good[: len(good) // 2],
        "text.jpg": b"no image",
        "empty.png": b"",
    }
    for name, data in images.items():
        (folder / name).write_bytes(data)
    document = import_samples(workspace, config_of(folder)).document
    assert document.source
    assert document.count == 4
    assert document.source.rejected == {"empty": 1, "not_an_image": 1, "truncated": 1, "too_small": 1}
    samples = read_samples(workspace)
    assert samples.shape == (4, 64, 64, 3)
    names = pl.read_parquet(workspace.run("ext").samples_table)["path"].to_list()
    grey, deep = (samples[names.index(name)] for name in ("grey.png", "deep.png"))
    assert (grey == grey[..., :1]).all()
    assert (deep == deep[..., :1]).all()
    assert deep.std() > 10


def test_images_are_cropped_and_resized_to_the_chosen_size(workspace, tmp_path):
    image = Image.new("RGB", (120, 60), (255, 0, 0))
    image.paste((0, 0, 255), (30, 0, 90, 60))
    (tmp_path / "wide").mkdir()
    image.save(tmp_path / "wide" / "1.png")
    assert import_samples(workspace, config_of(tmp_path / "wide", size=32)).document.image_size == 32
    assert (read_samples(workspace)[:, :, 1:-1] == (0, 0, 255)).all()  # the centre; the filter mixes in the edge


def test_images_stay_as_they_are_if_all_have_one_size(faces, workspace, tmp_path):
    assert import_samples(workspace, config_of(faces, as_is=True)).document.image_size == 64
    Image.new("RGB", (65, 65)).save(faces / "other.png")
    with pytest.raises(FairfaceError, match=r"--as-is needs square images .* have 64 x 64 and 65 x 65 pixels"):
        import_samples(workspace, config_of(faces, as_is=True))
    assert read_samples(workspace).shape == (40, 64, 64, 3)  # nothing is lost


def test_the_size_is_that_of_the_labelled_training_images(faces, workspace):
    about = {"source": "train", "run": None, "labeller": "l", "images": 1, "fingerprint": "", "files": {}}
    write_document(workspace.shards.label_files.document, LabelsDocument(size=48, **about))
    assert import_samples(workspace, config_of(faces)).document.image_size == 48
    write_document(workspace.shards.label_files.document, LabelsDocument(size=32, **about))
    assert import_samples(workspace, config_of(faces)).unchanged


def test_a_count_takes_a_seeded_sample(faces, workspace):
    import_samples(workspace, config_of(faces, count=10))
    first = pl.read_parquet(workspace.run("ext").samples_table)["path"].to_list()
    import_samples(workspace, config_of(faces, count=10, seed=1))
    assert len(first) == 10
    assert set(first) != set(pl.read_parquet(workspace.run("ext").samples_table)["path"])


def test_a_png_folder_has_what_the_shards_have(faces, workspace, tmp_path):
    import_samples(workspace, config_of(faces, png_dir=tmp_path / "png"))
    read = [np.asarray(Image.open(path)) for path in sorted((tmp_path / "png").iterdir())]
    assert np.array_equal(read, read_samples(workspace))
    shutil.rmtree(tmp_path / "png")
    assert import_samples(workspace, config_of(faces, png_dir=tmp_path / "png")).unchanged
    assert len(list((tmp_path / "png").iterdir())) == 40


@pytest.fixture
def module(tmp_path, monkeypatch) -> str:
    """The name of a module with generators in the working folder."""
    name = f"gan_{tmp_path.name}".replace("-", "_").replace("[", "_").replace("]", "_")
    (tmp_path / f"{name}.py").write_text(GENERATOR)
    monkeypatch.chdir(tmp_path)
    return name


def test_a_function_is_called_in_batches(module, workspace):
    config = config_of(f"{module}:generate", count=100, seed=3)
    result = import_samples(workspace, config)
    images, table = read_samples(workspace), pl.read_parquet(result.folder.samples_table)
    assert images.shape == (100, 64, 64, 3)
    assert table.select("checkpoint", "seed", "path").unique().row(0) == (f"{module}:generate", 3, None)
    assert import_samples(workspace, config).unchanged
    import_samples(workspace, replace(config, count=70))
    assert np.array_equal(read_samples(workspace), images[:70])
    import_samples(workspace, replace(config, as_is=True))
    assert read_samples(workspace).shape == (100, 40, 40, 3)
    assert import_samples(workspace, replace(config, run=None)).folder.name == f"{module}-generate"


def test_a_torchscript_file_is_sampled(workspace, tmp_path):
    with warnings.catch_warnings(action="ignore"):
        torch.jit.script(Net()).save(tmp_path / "net.ts")
    config = config_of(tmp_path / "net.ts", run=None, count=20, size=32)
    result = import_samples(workspace, config)
    assert (result.folder.name, result.document.count) == ("net", 20)
    assert result.document.source
    assert result.document.source.kind == "torchscript"
    assert read_samples(workspace, "net").shape == (20, 32, 32, 3)
    assert import_samples(workspace, config).unchanged
    assert not import_samples(workspace, replace(config, batch_size=16)).unchanged  # which gives other images


def test_a_failing_function_leaves_the_samples_as_they_are(module, workspace, faces):
    import_samples(workspace, config_of(faces))
    before = read_samples(workspace)
    with pytest.raises(FairfaceError, match="failed: RuntimeError: no weights here"):
        import_samples(workspace, config_of(f"{module}:broken", force=True))
    assert np.array_equal(read_samples(workspace), before)
    assert not verify(workspace, progress=False).faults
    with pytest.raises(FairfaceError, match="no weights here"):
        import_samples(workspace, config_of(f"{module}:broken", run="new"))
    assert not workspace.run("new").folder.exists()


def test_a_run_with_a_checkpoint_is_never_overwritten(faces, trained):
    before = visible(trained.run("r").folder)
    for force in (False, True):
        with pytest.raises(FairfaceError, match="is a run with a checkpoint"):
            import_samples(trained, config_of(faces, run="r", force=force))
    assert visible(trained.run("r").folder) == before


def test_samples_of_another_source_are_replaced_only_on_request(faces, workspace, tmp_path):
    import_samples(workspace, config_of(faces))
    shutil.copytree(faces, tmp_path / "others")
    others = config_of(tmp_path / "others", count=5)
    with pytest.raises(FairfaceError, match=r"holds samples of .*faces: choose another --run"):
        import_samples(workspace, others)
    assert len(read_samples(workspace)) == 40
    import_samples(workspace, replace(others, force=True))
    assert len(read_samples(workspace)) == 5


def test_a_folder_with_other_files_is_refused(faces, workspace):
    folder = workspace.run("ext").folder
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(FairfaceError, match="files that don't belong to a run"):
        import_samples(workspace, config_of(faces))
    assert visible(folder) == ["notes.txt"]


def test_an_imported_run_can_be_neither_sampled_nor_trained(faces, workspace, packed):
    (workspace.root).mkdir()
    (workspace.root / "shards").symlink_to(packed / "shards")
    import_samples(workspace, config_of(faces))
    with pytest.raises(FairfaceError, match=r"has no checkpoint: its samples are from .*faces"):
        sample(workspace, SampleConfig(run="ext", device="cpu", progress=False))
    with pytest.raises(FairfaceError, match="holds samples imported from"):
        train_run(workspace, 5, run="ext")
    with pytest.raises(FairfaceError, match="has imported samples and no generator"):
        sample(workspace, SampleConfig(device="cpu", progress=False))
    assert len(read_samples(workspace)) == 40


def test_an_interrupted_import_is_repeated(faces, workspace, monkeypatch):
    def stop(*_args, **_options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(import_module, "write_samples", stop)
        with pytest.raises(KeyboardInterrupt):
            import_samples(workspace, config_of(faces))
    assert visible(workspace.run("ext").folder) == []
    scratch = workspace.run("ext").import_workspace
    scratch.unpacked.mkdir(parents=True)  # as a kill leaves it
    (scratch.unpacked / "junk.jpg").write_bytes(b"")
    assert import_samples(workspace, config_of(faces)).document.count == 40


def test_other_processes_are_kept_out(faces, workspace):
    with exclusive_lock(workspace.run("ext").samples_lock, "labelling"), pytest.raises(LockHeld):
        import_samples(workspace, config_of(faces))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "there is no such folder or file"),
        ("empty", "no images below .*empty"),
        ("text.txt", "neither a folder, a tar, a zip, an .npz nor TorchScript"),
        ("text.npz", "text.npz is damaged"),
        ("text.pt", "text.pt is not TorchScript"),
        ("bad", "none of the 2 images below .*bad can be used: 2 not_an_image"),
        ("bad.zip", "none of the 1 images below .*bad.zip can be used: 1 not_an_image"),
        ("tiny", "none of the images of .*tiny is at least 16 pixels high and wide"),
        (".", "contains the output folder"),
        ("no_such_module_:generate", "ModuleNotFoundError"),
    ],
)
def test_an_invalid_source_leaves_nothing_behind(name, message, workspace, tmp_path):
    for folder in ("empty", "bad", "tiny"):
        (tmp_path / folder).mkdir()
    for file in ("text.txt", "text.npz", "text.pt", "bad/1.jpg", "bad/2.png"):
        (tmp_path / file).write_text("no image")
    (tmp_path / "tiny" / "1.png").write_bytes(encoded_image("PNG", size=(15, 40)))
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as file:
        file.writestr("1.png", b"no image")
    with pytest.raises(FairfaceError, match=message) as error:
        import_samples(workspace, config_of(name if ":" in name else tmp_path / name))
    assert "\n" not in str(error.value)
    assert ".import" not in str(error.value)
    assert not (workspace.root / "runs" / "ext").exists()


def test_an_empty_name_is_not_the_working_folder(faces, workspace, monkeypatch):
    monkeypatch.chdir(faces)
    with pytest.raises(FairfaceError, match="there is no such folder or file"):
        import_samples(workspace, config_of(""))
    assert import_samples(workspace, config_of(".")).document.count == 40


@pytest.mark.parametrize("name", ["a/b", ".hidden", "newest", "x" * 300])
def test_an_illegal_name_is_refused(name, faces, workspace):
    with pytest.raises(FairfaceError, match="give the name of a single folder"):
        import_samples(workspace, config_of(faces, run=name))
    assert not workspace.root.exists()


def test_a_source_whose_name_is_illegal_needs_another(faces, workspace):
    hidden = faces.rename(faces.with_name("-faces"))
    with pytest.raises(FairfaceError, match="'-faces' can't be the name of a run: choose one with --run"):
        import_samples(workspace, config_of(hidden, run=None))
    assert import_samples(workspace, config_of(hidden)).document.count == 40
    assert read_document(workspace.run("ext").samples_document, SamplesDocument)
