"""Benchmarks of packing and verifying: checked and unchecked, next to plain tar writers and sha256sum."""

import io
import shutil
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from pipeline.bench.context import BenchContext
from pipeline.bench.measure import Row, compare
from shards import pack, verify
from shards.concurrency import available_cpus
from shards.plan import PackConfig
from shards.workspace import ShardsFolder

COPIES = 10  # of every synthetic face, as separate files: enough to make the start-up time negligible
SHARD_IMAGES = 2048


def bench_pack(context: BenchContext) -> Iterator[Row]:
    """Measure packing next to webdataset's ShardWriter, with and without Pillow, and next to GNU tar."""
    root, scratch = copied_faces(context), context.scratch("tars")
    paths, listing = sorted(root.rglob("*.jpg")), context.scratch("list")
    listing.write_text("\n".join(map(str, paths)))
    scratch.mkdir()
    note = f"{available_cpus()} processes vs one; ours also hashes, writes the table and syncs"
    for title, check, baseline in (
        ("every image decoded, vs ShardWriter and Pillow", True, partial(write_plain_shards, paths, scratch, True)),
        ("unchecked (--no-check), vs ShardWriter", False, partial(write_plain_shards, paths, scratch, False)),
        ("unchecked (--no-check), vs GNU tar", False, partial(write_gnu_tar, listing, scratch, len(paths))),
    ):
        ours = partial(pack_again, root, ShardsFolder(scratch / "ours"), PackConfig(check=check))
        yield compare("pack", title, ours=ours, baseline=baseline, note=note)
    shutil.rmtree(scratch)


def bench_verify(context: BenchContext) -> Iterator[Row]:
    """Measure verifying, which reads the shards and hashes every image, next to sha256sum of the tars."""
    shards = ShardsFolder(context.scratch("verified"))
    count = pack_again(copied_faces(context), shards, PackConfig(check=True))

    def ours() -> int:
        faults, images = verify.verify(shards, progress=False)
        return images - len(faults)

    def baseline() -> int:
        subprocess.run(["sha256sum", *shards.tars()], check=True, stdout=subprocess.DEVNULL)
        return count

    yield compare("verify", "sizes, checksums, indices and keys, vs sha256sum", ours=ours, baseline=baseline)
    shutil.rmtree(shards.folder)


def pack_again(root: Path, shards: ShardsFolder, config: PackConfig) -> int:
    """Pack the images below `root`, replacing an existing pack; return their number."""
    return pack.pack(root, shards, config, force=True, progress=False).document.images


def copied_faces(context: BenchContext) -> Path:
    """Return a folder of COPIES copies of the benchmark's faces, which the first call writes."""
    folder = context.scratch("copied")
    if not folder.exists():
        copy_images(context.faces, folder, COPIES)
    return folder


def copy_images(root: Path, folder: Path, times: int) -> None:
    """Write `times` copies of every JPEG below `root` into `folder`, each in its own folder."""
    for path in sorted(root.rglob("*.jpg")):
        data = path.read_bytes()
        for copy in range(times):
            target = folder / "GANs" / f"copy{copy}" / path.parent.name / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)


def write_plain_shards(paths: list[Path], folder: Path, decode: bool) -> int:
    """Write shards with webdataset's ShardWriter, and with `decode` open every image with Pillow first."""
    import webdataset
    from PIL import Image

    with webdataset.ShardWriter(f"{folder}/plain-%06d.tar", maxcount=SHARD_IMAGES, verbose=0) as writer:
        for i, path in enumerate(paths):
            data = path.read_bytes()
            if decode:
                Image.open(io.BytesIO(data)).load()
            writer.write({"__key__": f"{i:08d}", "jpg": data})
    return len(paths)


def write_gnu_tar(listing: Path, folder: Path, count: int) -> int:
    """Write one tar of the `count` files that `listing` names."""
    subprocess.run(["tar", "-cPf", folder / "gnu.tar", "-T", listing], check=True)
    return count
