"""Every image is found once, whatever lies in the folder; families and methods come from the folders' names."""

import os
from pathlib import Path

import polars as pl
import pytest

from shards import discover
from shards.discover import describe, find_images


def write_files(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"12")


def test_images_are_found_sorted_and_other_files_ignored(tmp_path):
    write_files(tmp_path, "b/x.JPG", "a/ü 'q\".png", "a/.hidden.jpg", "a/note.txt", ".git/y.jpg", "a/line\nbreak.jpeg")
    tree = find_images(tmp_path)
    assert tree.files["path"].to_list() == ["a/line\nbreak.jpeg", "a/ü 'q\".png", "b/x.JPG"]
    assert tree.files["size"].to_list() == [2, 2, 2]
    assert tree.unreadable == []


def test_links_are_followed_once_and_real_names_come_first(tmp_path):
    write_files(tmp_path, "z/1.jpg", "z/deep/2.jpg")
    (tmp_path / "a").symlink_to(tmp_path / "z")
    (tmp_path / "z" / "loop").symlink_to(tmp_path)
    (tmp_path / "self.jpg").symlink_to("self.jpg")
    (tmp_path / "gone.jpg").symlink_to("nowhere.jpg")
    files = find_images(tmp_path).files
    assert files["path"].to_list() == ["gone.jpg", "self.jpg", "z/1.jpg", "z/deep/2.jpg"]
    assert files["size"].to_list() == [None, None, 2, 2]


def test_a_link_out_of_the_folder_is_followed(tmp_path):
    write_files(tmp_path / "elsewhere", "GANs/1.jpg")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "elsewhere")
    assert find_images(tmp_path / "root").files["path"].to_list() == ["link/GANs/1.jpg"]


def test_a_slow_disk_gives_the_same_files(tmp_path, monkeypatch):
    write_files(tmp_path, *(f"{i % 3}/{i}/{j}.jpg" for i in range(150) for j in range(2)))
    fast = find_images(tmp_path)
    monkeypatch.setattr(discover, "SLOW_SECONDS_PER_FILE", 0.0)
    assert find_images(tmp_path).files.equals(fast.files)
    assert len(fast.files) == 300


def test_names_that_are_not_unicode_are_listed(tmp_path):
    write_files(tmp_path, "a.jpg")
    with open(os.fsencode(tmp_path) + b"/\xff.jpg", "wb"):
        pass
    tree = find_images(tmp_path)
    assert (tree.files["path"].to_list(), tree.unreadable) == (["a.jpg"], ["\\udcff.jpg"])


def test_a_folder_without_permission_is_listed(tmp_path):
    write_files(tmp_path, "a.jpg", "closed/b.jpg")
    for folder in (tmp_path, *tmp_path.parents[:-1]):
        if folder.owner() == Path.home().owner():
            folder.chmod(folder.stat().st_mode | 0o055)
    (tmp_path / "closed").chmod(0)
    if root := os.geteuid() == 0:  # who may read everything
        os.seteuid(65534)
    try:
        if not os.access(tmp_path, os.R_OK, effective_ids=True):
            pytest.skip("the temporary folder is closed to others")
        tree = find_images(tmp_path)
    finally:
        if root:
            os.seteuid(0)
        (tmp_path / "closed").chmod(0o755)
    assert (tree.files["path"].to_list(), tree.unreadable) == (["a.jpg"], ["closed/"])


def test_family_and_subset_come_from_the_folders(tmp_path):
    paths = ["GANs/AttGAN/1.jpg", "DMs/DCFACe/7/1.jpg", "plain/1.jpg", "1.jpg", "deepfakes/FF++/real/7/1.jpg"]
    assert describe(pl.Series("path", paths), tmp_path / "AI" / "set").rows() == [
        ("GANs/AttGAN/1.jpg", "GANs", "AttGAN", 1),
        ("DMs/DCFACe/7/1.jpg", "DMs", "DCFACe", 2),
        ("plain/1.jpg", None, "plain", 1),
        ("1.jpg", None, "set", 1),
        ("deepfakes/FF++/real/7/1.jpg", "deepfakes", "FF++", 3),
    ]
    inside = describe(pl.Series("path", ["1.jpg"]), tmp_path / "real" / "FFHQ")
    assert inside.row(0) == ("1.jpg", "Real", "FFHQ", 1)
