"""Speed and memory of packing: against plain tar writers, at a hundred thousand images, at a million rows."""

import csv
import io
import itertools
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from pipeline.bench.measure import Row, apart, compare
from shards import annotations, discover, match, pack, verify
from shards.concurrency import available_cpus
from shards.synthetic import dataset

COPIES = 10  # of every drawn face, as files of their own
SHARD_IMAGES = 2048


def copied(bench) -> Path:
    """COPIES of the benchmark's images: enough for starting up not to matter."""
    folder = bench.scratch / "copied"
    if not folder.exists():
        copies(bench.root, folder, COPIES)
    return folder


def copies(root: Path, folder: Path, times: int) -> None:
    for path in sorted(root.rglob("*.jpg")):
        data = path.read_bytes()
        for copy in range(times):
            target = folder / "GANs" / f"copy{copy}" / path.parent.name / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)


def packed_fresh(root: Path, folder: Path, **options) -> int:
    return pack.pack(root, folder, pack.PackConfig(**options), force=True, progress=False)["images"]


def bench_pack(bench) -> Iterator[Row]:
    """Checked and unchecked packing against webdataset's ShardWriter, with and without Pillow, and against GNU tar."""
    import webdataset
    from PIL import Image

    root, scratch = copied(bench), bench.scratch / "tars"
    paths, listing = sorted(root.rglob("*.jpg")), bench.scratch / "list"
    listing.write_text("\n".join(map(str, paths)))

    def ours(checked: bool) -> int:
        return packed_fresh(root, scratch / "ours", check=checked)

    def shard_writer(verify: bool) -> int:
        with webdataset.ShardWriter(f"{scratch}/plain-%06d.tar", maxcount=SHARD_IMAGES, verbose=0) as writer:
            for i, path in enumerate(paths):
                data = path.read_bytes()
                if verify:
                    Image.open(io.BytesIO(data)).load()
                writer.write({"__key__": f"{i:08d}", "jpg": data})
        return len(paths)

    def gnu_tar() -> int:
        subprocess.run(["tar", "-cPf", scratch / "gnu.tar", "-T", listing], check=True)
        return len(paths)

    scratch.mkdir()
    note = f"{available_cpus()} processes against one; ours with hashes, table and fsync"
    for figure, check, theirs in (
        ("every image decoded, against ShardWriter and Pillow", True, lambda: shard_writer(True)),
        ("--no-check, against ShardWriter", False, lambda: shard_writer(False)),
        ("--no-check, against GNU tar", False, gnu_tar),
    ):
        yield compare("pack", figure, lambda check=check: ours(check), theirs, note=note)
    shutil.rmtree(scratch)


def bench_verify(bench) -> Iterator[Row]:
    """Reading shards again and hashing every image, against sha256sum over the tars."""
    folder = bench.scratch / "verified"
    count = packed_fresh(copied(bench), folder, check=True)

    def theirs() -> int:
        subprocess.run(["sha256sum", *folder.glob("*.tar")], check=True, stdout=subprocess.DEVNULL)
        return count

    def ours() -> int:
        faults, images = verify.verify(folder, progress=False)
        return images - len(faults)

    yield compare("verify", "sizes, checksums, indices, keys, against sha256sum", ours, theirs)
    shutil.rmtree(folder)


def bench_scale(bench) -> Iterator[Row]:
    """Cost and memory at ten times the images, of small ones, with annotations."""
    faces = bench.scratch / "small"
    dataset.write_dataset(faces, 1000, size=64, progress=False)
    found = {}
    for times in (10, 100):
        root = bench.scratch / f"small{times}"
        copies(faces, root, times)
        rows = [
            f"AI/{path.relative_to(root)},{i % 2},{i % 5},{i % 10 + 1},1,0,0"
            for i, path in enumerate(root.rglob("*.jpg"))
        ]
        (root / "train.csv").write_text("\n".join([dataset.COLUMNS, *rows, ""]))
        found[times * 1000] = apart(pack_apart, str(root), str(bench.scratch / "scaled"))
        shutil.rmtree(root)
    (fewer, less), (more, memory) = found[10_000], found[100_000]
    yield Row("scale", "checked packing, an image of 100,000 against one of 10,000", "us", more, fewer, more / fewer)
    note = "all processes together"
    yield Row("scale", "its peak memory", "MB", memory / 1e6, less / 1e6, memory / less, note)


def pack_apart(root: str, folder: str) -> float:
    """Microseconds an image."""
    started = time.perf_counter()
    count = packed_fresh(Path(root), Path(folder))
    return (time.perf_counter() - started) / count * 1e6


SUBSETS = ("GANs/AttGAN", "GANs/STYLEGAN2", "GANs/StyleGAN3", "DMs/DCFACe", "DMs/SD1.5", "Real/FFHQ", "Real/imdb_wiki")


def million(count: int) -> list[str]:
    """Image paths as AI-Face has them: few names in many folders of many methods."""
    places = itertools.product(range(count), SUBSETS)
    return [f"{subset}/{i // 1000:04d}/{i % 1000}.jpg" for i, subset in itertools.islice(places, count)]


def bench_join(bench) -> Iterator[Row]:
    """A million annotation rows read and joined to a million paths, against csv and a dictionary of exact paths."""
    table, count = bench.scratch / "million.csv", 1_000_000
    chance = random.Random(0)
    with open(table, "w") as file:
        file.write(dataset.COLUMNS + "\n")
        for path in million(count):
            file.write(
                f"AI_Face_imagesV2/{path},{chance.randrange(2)},{chance.randrange(5)},{chance.randrange(1, 11)},1,0,0\n"
            )
    ours, memory = apart(join_apart, str(table), count)
    theirs, more = apart(dictionary_apart, str(table), count)
    note = f"{count:,} rows; folded names, aliases, ambiguity"
    yield Row(
        "join",
        "reading and joining, against csv and a dictionary",
        "rows/s",
        count / ours,
        count / theirs,
        theirs / ours,
        note,
    )
    yield Row("join", "its peak memory", "MB", memory / 1e6, more / 1e6, more / memory, f"{ours:.1f} s")


def join_apart(table: str, count: int) -> float:
    """Seconds."""
    paths, root = pl.Series("path", sorted(million(count))), Path("/data/AI-Face")
    started = time.perf_counter()
    tables = annotations.read_tables([Path(table)])
    joined = match.match_rows(discover.describe(paths, root), tables.frame, root)
    if not joined.files["matched"].all():
        raise RuntimeError("not every row found its image")
    return time.perf_counter() - started


def dictionary_apart(table: str, count: int) -> float:
    """Seconds of the plain way, which matches exact paths only."""
    paths = sorted(million(count))
    started = time.perf_counter()
    with open(table, newline="") as file:
        rows = {row["Image Path"].partition("/")[2]: row for row in csv.DictReader(file)}
    if len([rows[path] for path in paths]) != count:
        raise RuntimeError("not every row found its image")
    return time.perf_counter() - started
