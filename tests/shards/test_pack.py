"""Packing: what lands in tars, index and tables, for good and for broken images."""

import os
import shutil
from pathlib import Path

import polars as pl
import pytest
import torch

from pipeline.data.loader import load_resident
from pipeline.data.shard_set import ShardSet
from shards import pack
from shards.attributes import built_in_attributes
from shards.errors import FairfaceError
from shards.images_table import image_schema, with_crosses
from shards.locks import exclusive_lock
from shards.verify import verify
from shards.workspace import ShardsFolder
from tests.shards.packing import pack_into, pack_result, tars_and_indices
from tests.shards.sample_images import BAD, GOOD, encoded_image, rotated_image

CPU = torch.device("cpu")


def decoded(folder: Path, size: int) -> torch.Tensor:
    """The images of a pack as training sees them."""
    return load_resident(ShardSet.open(ShardsFolder(folder)), size, device=CPU, progress=False)


def test_a_pipe_does_not_block_the_pack(tmp_path):
    (tmp_path / "data").mkdir()
    os.mkfifo(tmp_path / "data" / "pipe.jpg")
    (tmp_path / "data" / "good.jpg").write_bytes(encoded_image())
    assert pack_into(tmp_path / "data", tmp_path / "shards").rejected == {"unreadable": 1}


def test_every_image_has_a_row_and_only_good_ones_are_in_a_shard(mixed, tmp_path):
    document = pack_into(mixed, tmp_path / "shards", shard_images=4)
    images = pl.read_parquet(tmp_path / "shards" / "images.parquet")
    assert len(images) == len(GOOD) + len(BAD) + 1
    assert document.images == len(GOOD)
    assert document.rejected == dict.fromkeys([*BAD, "unreadable"], 1)
    assert dict(images.schema) == image_schema(built_in_attributes())
    assert images.filter(status="rejected")["shard"].null_count() == len(BAD) + 1
    assert images["target"].unique().to_list() == ["fake"]  # what GANs generate


def test_dali_decodes_all_that_the_check_lets_through(mixed, tmp_path):
    pack_into(mixed, tmp_path / "shards", shard_images=4)
    images = decoded(tmp_path / "shards", 32)
    assert images.shape == (len(GOOD), 32, 32, 3)
    assert images.float().flatten(1).std(1).min() > 5


def test_tars_depend_on_the_seed_and_not_on_the_number_of_workers(synthetic_root, tmp_path):
    for name, workers, seed in (("one", 1, 0), ("two", 2, 0), ("four", 4, 0), ("other", 1, 1)):
        pack_into(synthetic_root, tmp_path / name, workers=workers, shard_images=50, seed=seed)
    one, two, four, other = (tars_and_indices(tmp_path / name) for name in ("one", "two", "four", "other"))
    assert one == two == four
    assert one != other
    order = pl.read_parquet(tmp_path / "one" / "images.parquet")["path"].to_list()
    assert order != sorted(order)


def test_annotations_reach_the_table(synthetic_root, tmp_path):
    document = pack_into(synthetic_root, tmp_path / "shards")
    images = pl.read_parquet(tmp_path / "shards" / "images.parquet")
    assert (document.synthetic, document.matched, document.annotated, document.rows) == (True, 240, 240, 240)
    assert images.null_count().select("gender", "age", "skin_tone", "skin_group", "target").row(0) == (0,) * 5


def test_the_same_pack_again_changes_nothing_and_another_one_needs_force(synthetic_root, tmp_path):
    folder = tmp_path / "shards"
    assert not pack_result(synthetic_root, folder).unchanged
    before = (folder / "shard-000000.tar").stat().st_mtime_ns
    assert pack_result(synthetic_root, folder).unchanged
    assert (folder / "shard-000000.tar").stat().st_mtime_ns == before
    with pytest.raises(FairfaceError, match="--force"):
        pack_into(synthetic_root, folder, limit=100)
    assert (folder / "shard-000000.tar").stat().st_mtime_ns == before
    assert pack_into(synthetic_root, folder, force=True, limit=100).images == 100


def test_real_images_are_not_replaced_without_force(mixed, synthetic_root, tmp_path):
    pack_into(mixed, tmp_path / "shards")
    before = tars_and_indices(tmp_path / "shards")
    with pytest.raises(FairfaceError, match="--force"):
        pack_into(synthetic_root, tmp_path / "shards")
    assert tars_and_indices(tmp_path / "shards") == before
    assert pack_into(synthetic_root, tmp_path / "shards", force=True).synthetic


def test_a_file_that_vanishes_after_it_was_listed_is_unreadable(synthetic_root, tmp_path, monkeypatch):
    shutil.copytree(synthetic_root, tmp_path / "data")
    real = pack.make_plan
    vanishing = sorted((tmp_path / "data").rglob("000003.jpg"))[0]

    def make_plan(survey):
        vanishing.unlink()
        return real(survey)

    monkeypatch.setattr(pack, "make_plan", make_plan)
    assert pack_into(tmp_path / "data", tmp_path / "shards").rejected == {"unreadable": 1}


def test_shards_of_rejected_images_only_leave_no_file(tmp_path):
    (tmp_path / "data").mkdir()
    for i in range(6):
        (tmp_path / "data" / f"{i}.jpg").write_bytes(encoded_image() if i else b"")
    folder = tmp_path / "out" / "shards"
    document = pack_into(tmp_path / "data", folder, shard_images=1)
    assert (document.images, len(document.shards), len(list(folder.glob("*.tar")))) == (5, 5, 5)
    assert verify(ShardsFolder(folder), progress=False) == ([], 5)
    assert pack_result(tmp_path / "data", folder, shard_images=1).unchanged


def test_output_below_the_data_is_not_packed(synthetic_root, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(synthetic_root, root)
    assert pack_into(root, root / "out" / "shards").images == 240
    (root / "out" / "grids").mkdir()
    (root / "out" / "grids" / "1.png").write_bytes(encoded_image("PNG"))
    assert pack_result(root, root / "out" / "shards").unchanged
    with pytest.raises(FairfaceError, match="both --data and --out"):
        pack_into(root, root / "shards")


def test_two_packs_at_a_time_in_one_folder_are_refused(synthetic_root, tmp_path):
    with (
        exclusive_lock(tmp_path / "shards" / ".lock", "packing into"),
        pytest.raises(FairfaceError, match="another process is using"),
    ):
        pack_into(synthetic_root, tmp_path / "shards")
    assert pack_into(synthetic_root, tmp_path / "shards").images == 240


def test_only_broken_images_is_an_error_that_counts_them(tmp_path):
    (tmp_path / "data").mkdir()
    for i in range(3):
        (tmp_path / "data" / f"{i}.jpg").write_bytes(b"")
    with pytest.raises(FairfaceError, match="3 empty"):
        pack_into(tmp_path / "data", tmp_path / "shards")
    assert not list((tmp_path / "shards").glob("*"))


def test_without_the_check_broken_images_are_packed_and_verify_finds_them(mixed, tmp_path):
    document = pack_into(mixed, tmp_path / "shards", check=False)
    reasons = ("empty", "not_an_image", "unsupported", "unreadable")
    assert document.rejected == dict.fromkeys(reasons, 1)
    faults, images = verify(ShardsFolder(tmp_path / "shards"), progress=False)
    assert (len(faults), images) == (len(BAD) - 3, len(GOOD) + len(BAD) - 3)
    assert {fault.what.split("(")[1].split(")")[0] for fault in faults} == set(BAD) - set(reasons)


def test_moved_images_are_noticed(synthetic_root, tmp_path):
    shutil.copytree(synthetic_root, tmp_path / "copy")
    pack_into(synthetic_root, tmp_path / "shards")
    with pytest.raises(FairfaceError, match="--force"):
        pack_into(tmp_path / "copy", tmp_path / "shards")


def test_tars_of_about_as_many_bytes(synthetic_root, tmp_path):
    document = pack_into(synthetic_root, tmp_path / "shards", shard_bytes=100_000)
    sizes = [shard.bytes for shard in document.shards]
    assert len(sizes) > 3
    assert all(90_000 < size < 110_000 for size in sizes[:-1])
    assert sum(shard.images for shard in document.shards) == 240


def test_images_are_re_encoded_at_a_size(mixed, tmp_path):
    document = pack_into(mixed, tmp_path / "shards", size=16, quality=80)
    images = pl.read_parquet(tmp_path / "shards" / "images.parquet").filter(status="packed")
    assert document.images == len(GOOD)
    assert images.select(pl.min_horizontal("width", "height").unique()).to_series().to_list() == [16]
    assert sorted(images["orientation"]) == [1] * (len(GOOD) - 1) + [6]
    assert verify(ShardsFolder(tmp_path / "shards"), progress=False) == ([], len(GOOD))


@pytest.mark.parametrize(("kind", "extension"), [("JPEG", "jpg"), ("TIFF", "tif")])
def test_exif_orientation_is_recorded_and_applied_once(tmp_path, kind, extension):
    (tmp_path / "data").mkdir()
    for orientation in range(1, 9):
        (tmp_path / "data" / f"{orientation}.{extension}").write_bytes(rotated_image(orientation, kind))
    pack_into(tmp_path / "data", tmp_path / "shards")
    pack_into(tmp_path / "data", tmp_path / "small", size=30, quality=95)
    table = pl.read_parquet(tmp_path / "shards" / "images.parquet")
    assert table["path"].to_list() == [f"{orientation}.{extension}" for orientation in table["orientation"]]
    kept, again = (decoded(tmp_path / name, 30) for name in ("shards", "small"))
    assert (kept.int() - again.int()).abs().float().mean() < 8
    bright = {
        orientation: (image[:, :15].float().mean() > 200, image[:15].float().mean() > 200)
        for orientation, image in zip(table["orientation"], kept, strict=True)
    }
    assert bright[1] == bright[4] == (True, False)  # left
    assert bright[2] == bright[3] == (False, False)  # right
    assert bright[6] == bright[5] == (False, True)  # up


def test_derived_attributes_follow_the_present_table():
    images = pl.DataFrame({"gender": ["female"], "skin_tone": [9], "skin_group": ["light"]})  # packed by another table
    images = with_crosses(images, built_in_attributes())
    assert images.select("skin_group", "intersection").rows() == [("dark", "female-dark")]
