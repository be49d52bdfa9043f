"""Packing that was interrupted, shared, or left incomplete ends as one that ran through."""

import errno
import os
import signal
import subprocess
import sys
import tarfile
import time
from functools import partial

import polars as pl
import pytest

from shards import tar
from shards.documents import UnfinishedPack, write_document
from shards.errors import FairfaceError
from shards.plan import PackConfig, survey
from shards.verify import verify
from shards.workspace import ShardsFolder
from tests.shards.packing import (
    command,
    interrupted_pack,
    pack_into,
    pack_result,
    tables,
    tars_and_indices,
    wait_for_tars,
)


def test_an_unfinished_pack_of_other_options_is_kept_without_force(synthetic_root, tmp_path):
    shards = ShardsFolder(tmp_path / "shards")
    pack_into(synthetic_root, shards.folder, shard_images=20)
    shards.document.unlink()
    files = survey(synthetic_root, PackConfig(shard_images=20))
    unfinished = UnfinishedPack(fingerprint=files.fingerprint, order="o", root="x")
    write_document(shards.unfinished_document, unfinished)
    with pytest.raises(FairfaceError, match=r"unfinished pack of x.*--force"):
        pack_into(synthetic_root, shards.folder, shard_images=30)
    assert len(shards.tars()) == 12


@pytest.mark.parametrize("group", [True, False], ids=["all its processes", "itself alone"])
def test_a_killed_pack_is_finished_by_the_next_and_ends_the_same(synthetic_root, tmp_path, group):
    pack_into(synthetic_root, tmp_path / "uninterrupted", shard_images=20)
    for finished in (0, 1, 2, 4):
        process = subprocess.Popen(command(synthetic_root, tmp_path), start_new_session=True)
        wait_for_tars(process, tmp_path / "shards", finished)
        (os.killpg if group else os.kill)(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    pack_into(synthetic_root, tmp_path / "shards", shard_images=20)
    assert tars_and_indices(tmp_path / "shards") == tars_and_indices(tmp_path / "uninterrupted")
    assert tables(tmp_path / "shards") == tables(tmp_path / "uninterrupted")
    assert [path.name for path in (tmp_path / "shards").glob(".*")] == [".lock"]


def test_a_damaged_finished_shard_is_packed_again_by_a_resume(synthetic_root, tmp_path):
    folder = interrupted_pack(synthetic_root, tmp_path)
    first, second, *_ = sorted(folder.glob("shard-*.tar"))  # any three: two processes pack
    first.with_suffix(".idx").unlink()
    os.truncate(second, 2000)
    pack_into(synthetic_root, folder, shard_images=20)
    assert verify(ShardsFolder(folder), progress=False) == ([], 240)


def test_shards_of_another_selection_or_of_unknown_origin_are_not_used(synthetic_root, tmp_path):
    random = "path <> '' and random() < 0.7"
    folder = interrupted_pack(synthetic_root, tmp_path, "--where", random)
    with pytest.raises(FairfaceError, match="unfinished pack"):
        pack_into(synthetic_root, folder, shard_images=20, where=random)
    ShardsFolder(folder).unfinished_document.unlink()
    pack_into(synthetic_root, folder, shard_images=20, size=32)
    images = pl.read_parquet(folder / "images.parquet")
    assert set(images["height"]) == {32}
    assert verify(ShardsFolder(folder), progress=False) == ([], 240)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_signals_stop_with_one_line_and_the_same_command_resumes(synthetic_root, tmp_path, number, code):
    words = command(synthetic_root, tmp_path, "--shard-images", "1")
    heeded = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background job ignores it
    pipe = subprocess.PIPE
    process = subprocess.Popen(words, start_new_session=True, stderr=pipe, text=True, preexec_fn=heeded)
    wait_for_tars(process, tmp_path / "shards")
    os.killpg(process.pid, number)  # as a terminal and SLURM do
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert "rerun the same command to resume" in errors
    assert "Traceback" not in errors
    pack_into(synthetic_root, tmp_path / "shards", shard_images=1)
    assert verify(ShardsFolder(tmp_path / "shards"), progress=False) == ([], 240)


@pytest.mark.attack
def test_workers_end_with_their_parent(synthetic_root, tmp_path):
    process = subprocess.Popen(command(synthetic_root, tmp_path, "--shard-images", "2"), start_new_session=True)
    wait_for_tars(process, tmp_path / "shards")
    process.kill()
    process.wait()
    for _ in range(100):
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("a worker outlived the command by ten seconds")


def test_torchrun_packs_the_same_in_parts(synthetic_root, tmp_path):
    pack_into(synthetic_root, tmp_path / "single", shard_images=20)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = [*torchrun, *command(synthetic_root, tmp_path)[1:]]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("240 images packed") == 1
    assert tars_and_indices(tmp_path / "shards") == tars_and_indices(tmp_path / "single")
    assert tables(tmp_path / "shards") == tables(tmp_path / "single")
    wrong = subprocess.run([*words, "--where", "true"], capture_output=True, text=True, timeout=120)
    assert wrong.returncode != 0
    assert wrong.stderr.count("Error: --where 'true' names no column") == 1
    assert "pipeline/cli/" not in wrong.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk takes root")
def test_a_full_disk_ends_the_pack_and_keeps_the_finished_shards(synthetic_root, tmp_path):
    (disk := tmp_path / "disk").mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        with pytest.raises(OSError, match="No space") as caught:
            pack_into(synthetic_root, disk / "shards", shard_images=20)
        assert caught.value.errno == errno.ENOSPC
        finished = {path: path.stat().st_mtime_ns for path in (disk / "shards").glob("*.tar")}
        assert finished
        assert not (disk / "shards" / "shards.json").exists()
        for path in finished:
            assert len(tar.read_index(path)) == 20
            with tarfile.open(path) as file:
                assert len(file.getnames()) == 20
        subprocess.run(["mount", "-o", "remount,size=9m", disk], check=True)
        pack_into(synthetic_root, disk / "shards", shard_images=20)
        assert {path: path.stat().st_mtime_ns for path in finished} == finished
        pack_into(synthetic_root, tmp_path / "uninterrupted", shard_images=20)
        assert tars_and_indices(disk / "shards") == tars_and_indices(tmp_path / "uninterrupted")
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("name", ["shard-000001.tar", "shard-000001.idx", "unmatched.parquet", "images.parquet"])
def test_a_missing_file_is_written_again_and_the_labels_stay(synthetic_root, tmp_path, name):
    folder = tmp_path / "shards"
    pack_into(synthetic_root, folder, shard_images=100)
    before = tars_and_indices(folder)
    times = {path: path.stat().st_mtime_ns for path in folder.glob("*.tar")}
    (folder / "labels.parquet").write_bytes(b"labels")
    (folder / name).unlink()
    assert not pack_result(synthetic_root, folder, shard_images=100).unchanged
    assert tars_and_indices(folder) == before
    assert (folder / "labels.parquet").exists()
    if name != "images.parquet":
        again = {path.name for path, time in times.items() if path.stat().st_mtime_ns != time}
        assert again == ({"shard-000001.tar"} if name.startswith("shard") else set())
