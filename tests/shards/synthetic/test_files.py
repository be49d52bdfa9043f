"""Synthetic faces are replaced without a loss of the user's files, and after a kill at any moment."""

import os
import subprocess
from itertools import count
from pathlib import Path

import pytest

from shards import locks
from shards.errors import FairfaceError
from shards.synthetic import dataset, files
from shards.synthetic.dataset import SyntheticConfig, write_dataset


def write(root: Path, number: int, seed: int = 0):
    return write_dataset(root, SyntheticConfig(count=number, seed=seed, size=32), workers=1, progress=False)


def content(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture
def faces(tmp_path) -> Path:
    write(tmp_path / "faces", 5)
    return tmp_path / "faces"


def test_the_users_files_stay_wherever_they_are(faces, tmp_path):
    mine = ["a.txt", "own.csv", "GANs/StyleGAN/1.jpg", "GANs/Synthetic/000/mine.jpg", "GANs/Synthetic/000/000009.png"]
    for name in mine:
        (faces / name).parent.mkdir(exist_ok=True)
        (faces / name).write_bytes(b"mine")
    write(faces, 3, seed=1)
    write(tmp_path / "new", 3, seed=1)
    assert content(faces) == content(tmp_path / "new") | dict.fromkeys(mine, b"mine")


def test_the_list_can_be_checked_by_sha256sum(faces):
    done = subprocess.run(["sha256sum", "-c", "synthetic.sha256"], cwd=faces, capture_output=True, text=True)
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 7)


@pytest.mark.parametrize("name", ["train.csv", "synthetic.json", "GANs/Synthetic/000/000004.jpg"])
@pytest.mark.parametrize("change", ["edited", "link"])
def test_a_changed_file_is_refused_before_anything_is_removed(faces, tmp_path, name, change):
    if change == "edited":
        (faces / name).write_bytes(b"{}")
    else:
        (faces / name).rename(tmp_path / "moved")
        (faces / name).symlink_to(tmp_path / "moved")
    before = content(faces)
    with pytest.raises(FairfaceError, match=f"{name} was not rendered by fairface, or was changed"):
        write(faces, 2)
    assert content(faces) == before


def test_a_file_in_the_place_of_a_new_face_is_refused(faces):
    (faces / "GANs/Synthetic/000/000007.jpg").write_bytes(b"mine")
    before = content(faces)
    with pytest.raises(FairfaceError, match=r"000007\.jpg was not rendered"):
        write(faces, 8)
    assert content(faces) == before


@pytest.mark.parametrize("folder", ["GANs", "GANs/Synthetic", "GANs/Synthetic/000"])
def test_nothing_is_written_or_removed_behind_a_link(faces, tmp_path, folder):
    (faces / folder).rename(tmp_path / "elsewhere")
    (faces / folder).symlink_to(tmp_path / "elsewhere")
    before = content(tmp_path / "elsewhere")
    with pytest.raises(FairfaceError, match="is a link"):
        write(faces, 2)
    assert content(tmp_path / "elsewhere") == before


def test_a_file_that_changes_while_faces_are_rendered_is_kept(faces, monkeypatch):
    render_all, changed = dataset.render_all, faces / "GANs/Synthetic/000/000003.jpg"

    def rendering_and_changing(*arguments: object, **options: object) -> None:
        render_all(*arguments, **options)
        changed.write_bytes(b"mine")

    monkeypatch.setattr(dataset, "render_all", rendering_and_changing)
    before = content(faces)
    with pytest.raises(FairfaceError, match=r"000003\.jpg was not rendered"):
        write(faces, 2)
    assert content(faces) == before | {"GANs/Synthetic/000/000003.jpg": b"mine"}


def test_faces_are_not_rendered_where_a_link_leads(faces, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (faces / ".rendering").mkdir()
    (faces / ".rendering/GANs").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FairfaceError, match="not rendered by fairface: move it away"):
        write(faces, 2)
    assert not [*(tmp_path / "elsewhere").iterdir()]


@pytest.mark.parametrize("line", ["../../precious.jpg", "GANs/Synthetic/000/../../../precious.jpg", "/etc/passwd", ""])
def test_a_list_that_names_other_places_is_damaged(faces, line):
    with (faces / "synthetic.sha256").open("a") as file:
        file.write(f"{'0' * 64}  {line}\n")
    with pytest.raises(FairfaceError, match="is damaged"):
        write(faces, 2)


def test_faces_without_a_list_are_refused(faces):
    (faces / "synthetic.sha256").unlink()
    with pytest.raises(FairfaceError, match="has no list"):
        write(faces, 2)


def test_missing_faces_are_rendered_again(faces):
    before = content(faces)
    (faces / "GANs/Synthetic/000/000002.jpg").unlink()
    assert not write(faces, 5).unchanged
    assert content(faces) == before


def test_only_one_command_at_a_time_renders_into_a_folder(faces):
    with locks.shared_lock(faces / ".lock", "packing"), pytest.raises(FairfaceError, match="another process is using"):
        write(faces, 2)


class Killed(BaseException):
    """A kill just before a change to the file system."""


@pytest.mark.parametrize("name", ["replace", "unlink", "rmdir"])
def test_a_kill_at_any_moment_loses_nothing(tmp_path, monkeypatch, name):
    write(tmp_path / "new", 3, seed=2)
    expected = content(tmp_path / "new") | {"GANs/mine.jpg": b"mine"}
    moments, change = 0, getattr(os, name)
    for moment in count():
        root = tmp_path / str(moment)
        write(root, 5)
        (root / "GANs/mine.jpg").write_bytes(b"mine")
        remaining = iter(range(moment))

        def dying(*arguments: object, remaining=remaining, **options: object) -> None:
            if next(remaining, None) is None:
                raise Killed
            change(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(files.os, name, dying)
            for module in (dataset, files):  # a killed process does not clean up
                patch.setattr(module, "discard_rendering", lambda rendering: None)
            try:
                write(root, 3, seed=1)
            except Killed:
                moments += 1
            else:
                break
        write(root, 3, seed=2)
        assert content(root) == expected
        assert not [path for path in root.rglob("*") if path.is_dir() and not any(path.iterdir())]
    assert moments > {"replace": 5, "unlink": 2, "rmdir": -1}[name]
