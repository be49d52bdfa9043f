"""Benchmark of packing ten times as many images: time and memory of each image must not grow."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from pipeline.bench.context import BenchContext
from pipeline.bench.measure import Row, run_in_process
from pipeline.bench.pack import copy_images, pack_again
from shards.plan import PackConfig
from shards.synthetic import dataset
from shards.workspace import ShardsFolder

FACES = 1000  # small images, of which every pack has several copies


def bench_scale(context: BenchContext) -> Iterator[Row]:
    """Measure time and memory of packing 100,000 small annotated images next to 10,000."""
    faces, measured = context.scratch("small"), {}
    dataset.write_dataset(faces, dataset.SyntheticConfig(count=FACES, size=64), progress=False)
    for copies in (10, 100):
        root = context.scratch(f"small{copies}")
        copy_images(faces, root, copies)
        rows = [
            f"AI/{path.relative_to(root)},{i % 2},{i % 5},{i % 10 + 1},1,0,0,,"
            for i, path in enumerate(root.rglob("*.jpg"))
        ]
        (root / "train.csv").write_text("\n".join([dataset.COLUMNS, *rows, ""]))
        measured[copies] = run_in_process(time_packing, str(root), str(context.scratch("scaled")))
        shutil.rmtree(root)
    (fewer_us, fewer_bytes), (more_us, more_bytes) = measured[10], measured[100]
    yield Row(
        "scale",
        "checked packing: time per image of 100,000, vs of 10,000",
        unit="us",
        value=more_us,
        baseline=fewer_us,
        ratio=more_us / fewer_us,
    )
    yield Row(
        "scale",
        "checked packing: peak memory with 100,000 images, vs 10,000",
        unit="MB",
        value=more_bytes / 1e6,
        baseline=fewer_bytes / 1e6,
        ratio=more_bytes / fewer_bytes,
        note="all processes together",
    )


def time_packing(root: str, folder: str) -> float:
    """Pack the images below `root`; return microseconds per image."""
    started = time.perf_counter()
    count = pack_again(Path(root), ShardsFolder(Path(folder)), PackConfig())
    return (time.perf_counter() - started) / count * 1e6
