"""Packing: what lands in tars, index and table, for good and for broken images."""

import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from shards import pack, tar
from shards.check import inspect
from shards.files import read_json


def picture(kind: str = "JPEG", mode: str = "RGB", size: tuple[int, int] = (40, 30), **options) -> bytes:
    file = io.BytesIO()
    noise = Image.effect_noise(size, 80)
    noise = Image.fromarray(np.asarray(noise).astype(np.uint16) * 257) if mode == "I;16" else noise.convert(mode)
    noise.save(file, kind, **options)
    return file.getvalue()


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted([*folder.glob("*.tar"), *folder.glob("*.idx")])}


def packed_into(root: Path, out: Path, workers: int = 1, force: bool = False, **options) -> dict:
    return pack.pack(pack.make_plan(root, pack.Options(**options)), out, workers, force, progress=False)


GOOD = {
    "jpg": picture(),
    "jpg ": picture(progressive=True),
    "jpg  ": picture(mode="L"),
    "jpg   ": picture(mode="CMYK"),
    "png": picture("PNG", "RGBA"),
    "png ": picture("PNG", "P"),
    "png  ": picture("PNG", "I;16"),
    "webp": picture("WEBP"),
    "bmp": picture("BMP"),
    "tif": picture("TIFF"),
}
BAD = {
    "empty": b"",
    "not_an_image": b"<html>no image</html>",
    "truncated": picture(size=(300, 300))[:5000],
    "unsupported": picture("GIF", "P"),
}


@pytest.mark.parametrize("name", GOOD)
def test_good_images_pass_with_their_real_type(name):
    assert inspect(GOOD[name]) == (None, name.strip(), 40, 30)


@pytest.mark.parametrize("reason", BAD)
def test_bad_images_are_rejected_with_a_reason(reason):
    assert inspect(BAD[reason]).reason == reason


def test_a_bomb_is_rejected_before_it_is_decoded():
    assert inspect(picture("PNG", "1", (3000, 3000)), max_pixels=10**6) == ("too_large", "", 3000, 3000)


def test_kinds_that_dali_cannot_decode_and_ribbons_are_rejected():
    assert inspect(picture("TIFF", "F")).reason == "unsupported"
    assert inspect(picture("TIFF", compression="lzma")).reason == "unsupported"
    assert inspect(picture("PNG", size=(2, 600))).reason == "too_narrow"


@given(st.sampled_from(sorted(GOOD)), st.integers(0, 10**6), st.binary(min_size=1, max_size=40))
def test_any_damage_is_a_verdict_never_a_traceback(name, place, patch):
    data = bytearray(GOOD[name])
    place %= len(data)
    data[place : place + len(patch)] = patch
    verdict = inspect(bytes(data))
    assert (verdict.reason is None) == bool(verdict.extension)


def test_a_pipe_is_not_waited_for(tmp_path):
    (tmp_path / "data").mkdir()
    os.mkfifo(tmp_path / "data" / "pipe.jpg")
    (tmp_path / "data" / "good.jpg").write_bytes(picture())
    assert packed_into(tmp_path / "data", tmp_path / "shards")["rejected"] == {"unreadable": 1}


def test_a_flipped_bit_in_a_png_is_corrupt_not_truncated():
    data = bytearray(picture("PNG"))
    data[len(data) // 2] ^= 0xFF
    assert inspect(bytes(data)).reason == "corrupt"


@pytest.fixture
def mixed(tmp_path) -> Path:
    """Good and broken images under hostile names."""
    root = tmp_path / "mixed"
    (root / "GANs" / "A B'\"\n").mkdir(parents=True)
    for i, data in enumerate([*GOOD.values(), *BAD.values()]):
        (root / "GANs" / "A B'\"\n" / f"ü {i}.jpg").write_bytes(data)
    (root / "GANs" / "gone.jpg").symlink_to(root / "nowhere.jpg")
    return root


def test_every_image_has_a_row_and_only_good_ones_a_place(mixed, tmp_path):
    summary = packed_into(mixed, tmp_path / "shards", shard_images=4)
    images = pl.read_parquet(tmp_path / "shards" / "images.parquet")
    assert len(images) == len(GOOD) + len(BAD) + 1
    assert summary["images"] == len(GOOD)
    assert summary["rejected"] == dict.fromkeys([*BAD, "unreadable"], 1)
    assert dict(images.schema) == pack.SCHEMA
    assert images.filter(status="rejected")["shard"].null_count() == len(BAD) + 1
    assert images["target"].unique().to_list() == ["fake"]  # what GANs make


def test_tar_webdataset_and_the_index_agree_on_keys_and_bytes(mixed, tmp_path):
    packed_into(mixed, tmp_path / "shards", shard_images=4)
    for path in sorted((tmp_path / "shards").glob("*.tar")):
        keys = list(tar.index(path))
        ours = tar.read(path.parent, path.name, keys)
        with tarfile.open(path) as file:
            theirs = {member.name.split(".")[0]: file.extractfile(member).read() for member in file}
        samples = webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False)
        loaded = {s["__key__"]: next(v for k, v in s.items() if not k.startswith("__")) for s in samples}
        assert ours == theirs == loaded


def test_dali_decodes_all_that_the_check_lets_through(mixed, tmp_path):
    import torch

    from pipeline.feed import Shards, load

    packed_into(mixed, tmp_path / "shards", shard_images=4)
    images = load(Shards.open(tmp_path / "shards"), 32, torch.device("cpu"), progress=False)
    assert images.shape == (len(GOOD), 32, 32, 3)
    assert images.float().flatten(1).std(1).min() > 5


def test_tars_do_not_depend_on_the_workers_but_on_the_seed(drawn, tmp_path):
    for name, workers, seed in (("one", 1, 0), ("two", 2, 0), ("other", 1, 1)):
        packed_into(drawn, tmp_path / name, workers, shard_images=50, seed=seed)
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two")
    assert bytes_of(tmp_path / "one") != bytes_of(tmp_path / "other")
    order = pl.read_parquet(tmp_path / "one" / "images.parquet")["path"].to_list()
    assert order != sorted(order)


def test_annotations_reach_the_table(drawn, tmp_path):
    summary = packed_into(drawn, tmp_path / "shards")
    images = pl.read_parquet(tmp_path / "shards" / "images.parquet")
    assert (summary["drawn"], summary["matched"], summary["annotated"], summary["rows"]) == (True, 240, 240, 240)
    assert images.null_count().select("gender", "age", "skin_tone", "skin_group", "target").row(0) == (0,) * 5


def test_the_same_pack_again_does_nothing_and_a_changed_one_does(drawn, tmp_path):
    assert not packed_into(drawn, tmp_path / "shards")["unchanged"]
    before = (tmp_path / "shards" / "shard-000000.tar").stat().st_mtime_ns
    assert packed_into(drawn, tmp_path / "shards")["unchanged"]
    assert (tmp_path / "shards" / "shard-000000.tar").stat().st_mtime_ns == before
    assert not packed_into(drawn, tmp_path / "shards", limit=100)["unchanged"]  # drawn faces are easily packed again
    assert read_json(tmp_path / "shards" / "shards.json")["images"] == 100


def test_real_images_are_not_replaced_without_force(mixed, drawn, tmp_path):
    packed_into(mixed, tmp_path / "shards")
    kept = bytes_of(tmp_path / "shards")
    with pytest.raises(ValueError, match="--force"):
        packed_into(drawn, tmp_path / "shards")
    assert bytes_of(tmp_path / "shards") == kept
    packed_into(drawn, tmp_path / "shards", force=True)
    assert read_json(tmp_path / "shards" / "shards.json")["drawn"]


def test_a_killed_pack_is_finished_by_the_next_and_ends_the_same(drawn, tmp_path):
    packed_into(drawn, tmp_path / "whole", shard_images=20)
    command = [
        sys.executable,
        "-m",
        "pipeline.cli",
        "shards",
        "--data",
        drawn,
        "--out",
        tmp_path,
        "--shard-images",
        "20",
    ]
    for finished in (1, 4):
        process = subprocess.Popen([str(c) for c in command], start_new_session=True)
        while process.poll() is None and len(list((tmp_path / "shards").glob("*.tar"))) < finished:
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    packed_into(drawn, tmp_path / "shards", shard_images=20)
    assert bytes_of(tmp_path / "shards") == bytes_of(tmp_path / "whole")
    assert not list((tmp_path / "shards").glob(".*"))


def test_a_full_disk_ends_the_pack_and_keeps_the_finished_shards(drawn, tmp_path, monkeypatch):
    plan = pack.make_plan(drawn, pack.Options(shard_images=60))
    real, written = pack.write_parquet, []

    def third_fails(path, frame):
        written.append(path)
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        real(path, frame)

    monkeypatch.setattr(pack, "write_parquet", third_fails)
    with pytest.raises(OSError, match="No space"):
        pack.pack(plan, tmp_path / "shards", 1, progress=False)
    monkeypatch.undo()
    finished = [tmp_path / "shards" / path.stem for path in written[:2]]
    times = [path.stat().st_mtime_ns for path in finished]
    assert not (tmp_path / "shards" / "shards.json").exists()
    pack.pack(plan, tmp_path / "shards", progress=False)
    assert [path.stat().st_mtime_ns for path in finished] == times
    assert not list((tmp_path / "shards").glob(".*"))


def test_only_broken_images_is_an_error_that_counts_them(tmp_path):
    (tmp_path / "data").mkdir()
    for i in range(3):
        (tmp_path / "data" / f"{i}.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match="3 empty"):
        packed_into(tmp_path / "data", tmp_path / "shards")
    assert not list((tmp_path / "shards").glob("*"))


def test_without_the_check_images_keep_their_names_type(drawn, tmp_path):
    summary = packed_into(drawn, tmp_path / "shards", check=False)
    assert (summary["images"], summary["rejected"]) == (240, {})


def test_a_missing_tar_is_packed_again(drawn, tmp_path):
    packed_into(drawn, tmp_path / "shards", shard_images=100)
    whole = bytes_of(tmp_path / "shards")
    (tmp_path / "shards" / "shard-000001.tar").unlink()
    assert not packed_into(drawn, tmp_path / "shards", shard_images=100)["unchanged"]
    assert bytes_of(tmp_path / "shards") == whole


def test_moving_the_images_is_noticed(drawn, tmp_path):
    shutil.copytree(drawn, tmp_path / "copy")
    packed_into(drawn, tmp_path / "shards")
    assert not packed_into(tmp_path / "copy", tmp_path / "shards")["unchanged"]
