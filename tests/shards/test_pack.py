"""Packing: what lands in tars, index and table, for good and for broken images."""

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from functools import partial
from pathlib import Path

import polars as pl
import pytest

from shards import pack, tar
from shards.atomic_io import exclusive_lock, read_json, write_json
from shards.errors import FairfaceError
from shards.verify import verify
from tests.shards.pictures import BAD, GOOD, picture, turned


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted([*folder.glob("*.tar"), *folder.glob("*.idx")])}


def tables_of(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in ("images.parquet", "unmatched.parquet")]


def packed_into(root: Path, out: Path, workers: int = 1, force: bool = False, **options) -> dict:
    return pack.pack(root, out, pack.PackConfig(**options), None, workers, force, progress=False)


def test_a_pipe_is_not_waited_for(tmp_path):
    (tmp_path / "data").mkdir()
    os.mkfifo(tmp_path / "data" / "pipe.jpg")
    (tmp_path / "data" / "good.jpg").write_bytes(picture())
    assert packed_into(tmp_path / "data", tmp_path / "shards")["rejected"] == {"unreadable": 1}


@pytest.fixture
def mixed(tmp_path) -> Path:
    """Good and broken images under hostile names."""
    root = tmp_path / "mixed"
    (root / "GANs" / "A B'\"\n").mkdir(parents=True)
    for i, data in enumerate([*(data for _, data in GOOD.values()), *BAD.values()]):
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


def test_dali_decodes_all_that_the_check_lets_through(mixed, tmp_path):
    import torch

    from pipeline.data.loader import load_resident
    from pipeline.data.shard_set import ShardSet

    packed_into(mixed, tmp_path / "shards", shard_images=4)
    images = load_resident(ShardSet.open(tmp_path / "shards"), 32, torch.device("cpu"), progress=False)
    assert images.shape == (len(GOOD), 32, 32, 3)
    assert images.float().flatten(1).std(1).min() > 5


def test_tars_do_not_depend_on_the_workers_but_on_the_seed(drawn, tmp_path):
    for name, workers, seed in (("one", 1, 0), ("two", 2, 0), ("four", 4, 0), ("other", 1, 1)):
        packed_into(drawn, tmp_path / name, workers, shard_images=50, seed=seed)
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two") == bytes_of(tmp_path / "four")
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
    with pytest.raises(FairfaceError, match="--force"):
        packed_into(drawn, tmp_path / "shards", limit=100)
    assert (tmp_path / "shards" / "shard-000000.tar").stat().st_mtime_ns == before
    assert packed_into(drawn, tmp_path / "shards", force=True, limit=100)["images"] == 100


def test_an_unfinished_pack_of_other_options_is_kept_without_force(drawn, tmp_path):
    packed_into(drawn, tmp_path / "shards", shard_images=20)
    (tmp_path / "shards" / "shards.json").unlink()
    found = pack.survey(drawn, pack.PackConfig(shard_images=20))
    write_json(tmp_path / "shards" / ".unfinished" / "plan.json", {"fingerprint": found.fingerprint, "root": "x"})
    with pytest.raises(FairfaceError, match=r"unfinished pack of x.*--force"):
        packed_into(drawn, tmp_path / "shards", shard_images=30)
    assert len(list((tmp_path / "shards").glob("*.tar"))) == 12


def test_real_images_are_not_replaced_without_force(mixed, drawn, tmp_path):
    packed_into(mixed, tmp_path / "shards")
    kept = bytes_of(tmp_path / "shards")
    with pytest.raises(FairfaceError, match="--force"):
        packed_into(drawn, tmp_path / "shards")
    assert bytes_of(tmp_path / "shards") == kept
    packed_into(drawn, tmp_path / "shards", force=True)
    assert read_json(tmp_path / "shards" / "shards.json")["drawn"]


def command(root: Path, out: Path, *options: str) -> list[str]:
    words = [sys.executable, "-m", "pipeline.cli", "shards", "--data", root, "--out", out, "--shard-images", 20]
    return [str(word) for word in [*words, *options]]


@pytest.mark.parametrize("group", [True, False], ids=["all its processes", "itself alone"])
def test_a_killed_pack_is_finished_by_the_next_and_ends_the_same(drawn, tmp_path, group):
    packed_into(drawn, tmp_path / "whole", shard_images=20)
    for finished in (0, 1, 2, 4):
        process = subprocess.Popen(command(drawn, tmp_path), start_new_session=True)
        while process.poll() is None and len(list((tmp_path / "shards").glob("*.tar"))) < finished:
            time.sleep(0.002)
        (os.killpg if group else os.kill)(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    packed_into(drawn, tmp_path / "shards", shard_images=20)
    assert bytes_of(tmp_path / "shards") == bytes_of(tmp_path / "whole")
    assert tables_of(tmp_path / "shards") == tables_of(tmp_path / "whole")
    assert not list((tmp_path / "shards").glob(".*"))


def cut_short(drawn: Path, out: Path, finished: int = 3, **options) -> Path:
    """A pack that was killed when some of its shards were finished."""
    process = subprocess.Popen([*command(drawn, out), *map(str, options.get("more", ()))], start_new_session=True)
    while process.poll() is None and len(list((out / "shards").glob("*.tar"))) < finished:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return out / "shards"


def test_a_damaged_finished_shard_is_packed_again_by_a_resume(drawn, tmp_path):
    folder = cut_short(drawn, tmp_path)
    (folder / "shard-000000.idx").unlink()
    os.truncate(folder / "shard-000001.tar", 2000)
    packed_into(drawn, folder, shard_images=20)
    assert verify(folder, progress=False) == ([], 240)


def test_parts_of_another_choice_or_of_unknown_origin_are_not_used(drawn, tmp_path):
    chance = "path <> '' and random() < 0.7"
    folder = cut_short(drawn, tmp_path, more=("--where", chance))
    with pytest.raises(FairfaceError, match="unfinished pack"):
        packed_into(drawn, folder, shard_images=20, where=chance)
    (folder / ".unfinished" / "plan.json").unlink()
    packed_into(drawn, folder, shard_images=20, size=32)
    images = pl.read_parquet(folder / "images.parquet")
    assert set(images["height"]) == {32}
    assert verify(folder, progress=False) == ([], 240)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_signals_stop_with_a_word_and_the_same_command_goes_on(drawn, tmp_path, number, code):
    words = command(drawn, tmp_path, "--shard-images", "1")
    heeded = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background job ignores it
    pipe = subprocess.PIPE
    process = subprocess.Popen(words, start_new_session=True, stderr=pipe, text=True, preexec_fn=heeded)
    while process.poll() is None and not list((tmp_path / "shards").glob("*.tar")):
        time.sleep(0.002)
    os.killpg(process.pid, number)  # as a terminal and SLURM do
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert "the same command goes on" in errors
    assert "Traceback" not in errors
    packed_into(drawn, tmp_path / "shards", shard_images=1)
    assert verify(tmp_path / "shards", progress=False) == ([], 240)


def test_a_file_that_vanishes_after_it_was_found_is_unreadable(drawn, tmp_path, monkeypatch):
    shutil.copytree(drawn, tmp_path / "data")
    real = pack.make_plan

    def vanish(found):
        (tmp_path / "data" / "GANs" / "Drawn" / "000" / "000003.jpg").unlink()
        return real(found)

    monkeypatch.setattr(pack, "make_plan", vanish)
    assert packed_into(tmp_path / "data", tmp_path / "shards")["rejected"] == {"unreadable": 1}


def test_shards_of_rejected_images_only_leave_nothing(tmp_path):
    (tmp_path / "data").mkdir()
    for i in range(6):
        (tmp_path / "data" / f"{i}.jpg").write_bytes(picture() if i else b"")
    done = packed_into(tmp_path / "data", tmp_path / "out" / "shards", shard_images=1)
    assert (done["images"], len(done["shards"]), len(list((tmp_path / "out" / "shards").glob("*.tar")))) == (5, 5, 5)
    assert verify(tmp_path / "out" / "shards", progress=False) == ([], 5)
    assert packed_into(tmp_path / "data", tmp_path / "out" / "shards", shard_images=1)["unchanged"]


def test_what_is_written_below_the_data_is_not_packed(drawn, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(drawn, root)
    assert packed_into(root, root / "out" / "shards")["images"] == 240
    (root / "out" / "grids").mkdir()
    (root / "out" / "grids" / "1.png").write_bytes(picture("PNG"))
    assert packed_into(root, root / "out" / "shards")["unchanged"]
    with pytest.raises(FairfaceError, match="both --data and --out"):
        packed_into(root, root / "shards")


def test_workers_end_with_their_parent(drawn, tmp_path):
    process = subprocess.Popen(command(drawn, tmp_path, "--shard-images", "2"), start_new_session=True)
    while process.poll() is None and not list((tmp_path / "shards").glob("*.tar")):
        time.sleep(0.002)
    process.kill()
    process.wait()
    for _ in range(100):
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("a worker outlived the command by ten seconds")


def test_two_at_once_in_one_folder_are_refused(drawn, tmp_path):
    with (
        exclusive_lock(tmp_path / "shards", "packing into"),
        pytest.raises(FairfaceError, match="another process is at work"),
    ):
        packed_into(drawn, tmp_path / "shards")
    assert packed_into(drawn, tmp_path / "shards")["images"] == 240


def test_torchrun_packs_the_same_in_parts(drawn, tmp_path):
    packed_into(drawn, tmp_path / "whole", shard_images=20)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = [*torchrun, *command(drawn, tmp_path)[1:]]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("240 images packed") == 1
    assert bytes_of(tmp_path / "shards") == bytes_of(tmp_path / "whole")
    assert tables_of(tmp_path / "shards") == tables_of(tmp_path / "whole")
    wrong = subprocess.run([*words, "--where", "true"], capture_output=True, text=True, timeout=120)
    assert wrong.returncode != 0
    assert wrong.stderr.count("Error: --where 'true' names no column") == 1
    assert "pipeline/cli/" not in wrong.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk takes root")
def test_a_full_disk_ends_the_pack_and_keeps_the_finished_shards(drawn, tmp_path):
    (disk := tmp_path / "disk").mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        with pytest.raises(OSError, match="No space") as caught:
            packed_into(drawn, disk / "shards", shard_images=20)
        assert caught.value.errno == errno.ENOSPC
        finished = {path: path.stat().st_mtime_ns for path in (disk / "shards").glob("*.tar")}
        assert finished
        assert not (disk / "shards" / "shards.json").exists()
        for path in finished:
            assert len(tar.index(path)) == 20
            with tarfile.open(path) as file:
                assert len(file.getnames()) == 20
        subprocess.run(["mount", "-o", "remount,size=9m", disk], check=True)
        packed_into(drawn, disk / "shards", shard_images=20)
        assert {path: path.stat().st_mtime_ns for path in finished} == finished
        packed_into(drawn, tmp_path / "whole", shard_images=20)
        assert bytes_of(disk / "shards") == bytes_of(tmp_path / "whole")
    finally:
        subprocess.run(["umount", disk], check=True)


def test_only_broken_images_is_an_error_that_counts_them(tmp_path):
    (tmp_path / "data").mkdir()
    for i in range(3):
        (tmp_path / "data" / f"{i}.jpg").write_bytes(b"")
    with pytest.raises(FairfaceError, match="3 empty"):
        packed_into(tmp_path / "data", tmp_path / "shards")
    assert not list((tmp_path / "shards").glob("*"))


def test_without_the_check_what_decodes_badly_is_packed_and_verify_finds_it(mixed, tmp_path):
    summary = packed_into(mixed, tmp_path / "shards", check=False)
    reasons = ("empty", "not_an_image", "unsupported", "unreadable")
    assert summary["rejected"] == dict.fromkeys(reasons, 1)
    faults, images = verify(tmp_path / "shards", progress=False)
    assert (len(faults), images) == (len(BAD) - 3, len(GOOD) + len(BAD) - 3)
    assert {fault.what.split("(")[1].split(")")[0] for fault in faults} == set(BAD) - set(reasons)


@pytest.mark.parametrize("name", ["shard-000001.tar", "shard-000001.idx", "unmatched.parquet", "images.parquet"])
def test_a_missing_file_is_made_again_and_the_labels_stay(drawn, tmp_path, name):
    folder = tmp_path / "shards"
    packed_into(drawn, folder, shard_images=100)
    whole, times = bytes_of(folder), {path: path.stat().st_mtime_ns for path in folder.glob("*.tar")}
    (folder / "labels.parquet").write_bytes(b"labels")
    (folder / name).unlink()
    assert not packed_into(drawn, folder, shard_images=100)["unchanged"]
    assert bytes_of(folder) == whole
    assert (folder / "labels.parquet").exists()
    if name != "images.parquet":
        again = {path.name for path, time in times.items() if path.stat().st_mtime_ns != time}
        assert again == ({"shard-000001.tar"} if name.startswith("shard") else set())


def test_moving_the_images_is_noticed(drawn, tmp_path):
    shutil.copytree(drawn, tmp_path / "copy")
    packed_into(drawn, tmp_path / "shards")
    with pytest.raises(FairfaceError, match="--force"):
        packed_into(tmp_path / "copy", tmp_path / "shards")


def test_tars_of_about_so_many_bytes(drawn, tmp_path):
    done = packed_into(drawn, tmp_path / "shards", shard_bytes=100_000)
    sizes = [shard["bytes"] for shard in done["shards"]]
    assert len(sizes) > 3
    assert all(90_000 < size < 110_000 for size in sizes[:-1])
    assert sum(shard["images"] for shard in done["shards"]) == 240


def test_encoded_again_at_a_size(mixed, tmp_path):
    done = packed_into(mixed, tmp_path / "shards", size=16, quality=80)
    images = pl.read_parquet(tmp_path / "shards" / "images.parquet").filter(status="packed")
    assert done["images"] == len(GOOD)
    assert images.select(pl.min_horizontal("width", "height").unique()).to_series().to_list() == [16]
    assert sorted(images["orientation"]) == [1] * (len(GOOD) - 1) + [6]
    assert verify(tmp_path / "shards", progress=False) == ([], len(GOOD))


def test_exif_orientation_is_recorded_and_dali_applies_it(tmp_path):
    import torch

    from pipeline.data.loader import load_resident
    from pipeline.data.shard_set import ShardSet

    (tmp_path / "data").mkdir()
    for orientation in range(1, 9):
        (tmp_path / "data" / f"{orientation}.jpg").write_bytes(turned(orientation))
    packed_into(tmp_path / "data", tmp_path / "shards")
    packed_into(tmp_path / "data", tmp_path / "small", size=30, quality=95)
    table = pl.read_parquet(tmp_path / "shards" / "images.parquet")
    assert table["path"].to_list() == [f"{orientation}.jpg" for orientation in table["orientation"]]
    kept, again = (
        load_resident(ShardSet.open(tmp_path / n), 30, torch.device("cpu"), progress=False) for n in ("shards", "small")
    )
    assert (kept.int() - again.int()).abs().float().mean() < 8
    bright = {
        o: (k[:, :15].float().mean() > 200, k[:15].float().mean() > 200)
        for o, k in zip(table["orientation"], kept, strict=True)
    }
    assert bright[1] == bright[4] == (True, False)  # left
    assert bright[2] == bright[3] == (False, False)  # right
    assert bright[6] == bright[5] == (False, True)  # up


def test_the_choice_of_images(drawn, tmp_path):
    truth = packed_into(drawn, tmp_path / "all")
    images = pl.read_parquet(tmp_path / "all" / "images.parquet")
    dark = images.filter(pl.col("skin_tone") >= 7, pl.col("gender") == "female")
    done = packed_into(drawn, tmp_path / "dark", where="skin_tone >= 7 and intersection = 'female-dark'")
    chosen = pl.read_parquet(tmp_path / "dark" / "images.parquet")
    assert set(chosen["path"]) == set(dark["path"])
    assert (done["found"], done["images"], truth["images"]) == (240, len(dark), 240)
    assert packed_into(drawn, tmp_path / "gans", subsets=("gans", "DRAWN"), limit=7)["images"] == 7
    assert packed_into(drawn, tmp_path / "split", splits=("train",))["images"] == 240


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"subsets": ("FFHQ",)}, "--subset FFHQ selects none of the 240 images; there is Drawn, GANs"),
        ({"splits": ("test",)}, "--split test selects none of the 240 images; there is train"),
        ({"where": "gendr = 'male'"}, '"gendr" not found'),
        ({"where": "gender = 'none'"}, "selects none of the 240 images"),
        ({"where": "1 = 1"}, "names no column; the columns are path, family"),
        ({"where": "gender = "}, "is not one predicate"),
        ({"where": "gender = 'male') union select (1"}, "is not one predicate"),
        ({"where": "gender"}, "Could not convert"),
        ({"aliases": (("a", "b"), ("b", "a"))}, "lead back"),
    ],
)
def test_a_choice_that_makes_no_sense_is_said_before_anything_is_touched(drawn, tmp_path, options, says):
    packed_into(drawn, tmp_path / "shards")
    before = bytes_of(tmp_path / "shards")
    with pytest.raises(FairfaceError, match=re.escape(says)):
        packed_into(drawn, tmp_path / "shards", force=True, **options)
    assert bytes_of(tmp_path / "shards") == before


def test_rows_and_images_that_miss_each_other_are_counted_and_listed(drawn, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(drawn / "GANs", root / "GANs")
    (root / "GANs" / "Other").mkdir()
    (root / "GANs" / "Other" / "000000.jpg").write_bytes(picture())  # a name that another method has too
    lines = (drawn / "train.csv").read_text().splitlines()
    (root / "train.csv").write_text("\n".join([*lines[:-40], "AI/GANs/StarGAN/1.jpg,0,0,1,1,0,0", ""]))
    done = packed_into(root, tmp_path / "shards")
    assert (done["images"], done["matched"], done["rows"]) == (241, 200, 201)
    assert done["unmatched"] == {"missing_rows": 1, "missing_images": 41}
    listed = pl.read_parquet(tmp_path / "shards" / "unmatched.parquet").group_by("what", "subset").len()
    assert set(listed.iter_rows()) == {("row", "StarGAN", 1), ("image", "Drawn", 40), ("image", "Other", 1)}
    images = pl.read_parquet(tmp_path / "shards" / "images.parquet")
    assert images.filter(subset="Other")["gender"].to_list() == [None]
    assert packed_into(root, tmp_path / "annotated", annotated_only=True)["images"] == 200
    only = packed_into(root, tmp_path / "other", subsets=("Other",))
    assert (only["images"], only["unmatched"]) == (1, {"missing_images": 1})
