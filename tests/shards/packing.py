"""Packing with few words, and what tests compare about packs."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from shards import pack
from shards.documents import ShardsDocument
from shards.plan import PackConfig
from shards.workspace import ShardsFolder


def pack_result(root: Path, folder: Path, *, workers: int = 1, force: bool = False, **options: object):
    config = PackConfig(**options)
    return pack.pack(root, ShardsFolder(folder), config, workers=workers, force=force, progress=False)


def pack_into(root: Path, folder: Path, *, workers: int = 1, force: bool = False, **options: object) -> ShardsDocument:
    return pack_result(root, folder, workers=workers, force=force, **options).document


def tars_and_indices(folder: Path) -> dict[str, bytes]:
    """Name -> bytes."""
    return {path.name: path.read_bytes() for path in ShardsFolder(folder).tars_and_indices()}


def tables(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in (ShardsFolder(folder).images, ShardsFolder(folder).unmatched)]


def command(root: Path, out: Path, *options: str) -> list[str]:
    """A pack by the command line, of 20 images a tar."""
    words = [sys.executable, "-m", "pipeline.cli", "shards", "--data", root, "--out", out, "--shard-images", 20]
    return [str(word) for word in [*words, *options]]


def wait_for_tars(process: subprocess.Popen, folder: Path, count: int = 1) -> None:
    """Wait until a running command has finished so many tars, or has ended."""
    while process.poll() is None and len(list(folder.glob("*.tar"))) < count:
        time.sleep(0.002)


def interrupted_pack(root: Path, out: Path, *options: str) -> Path:
    """The folder of a pack that was killed when three of its shards were finished."""
    process = subprocess.Popen(command(root, out, *options), start_new_session=True)
    wait_for_tars(process, out / "shards", 3)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return out / "shards"
