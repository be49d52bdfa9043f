"""Runs benchmarks and writes their rows: `fairface bench`."""

import json
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import click
from tqdm import tqdm

from pipeline.bench.audit import bench_audit
from pipeline.bench.context import BenchContext, SizesConfig, TrialsConfig, WorldsConfig
from pipeline.bench.detect import bench_detect
from pipeline.bench.estimates import bench_estimates
from pipeline.bench.feed import bench_feed
from pipeline.bench.gan import bench_gan
from pipeline.bench.join import bench_join
from pipeline.bench.label import bench_label
from pipeline.bench.measure import Row
from pipeline.bench.pack import COPIES, bench_pack, bench_verify
from pipeline.bench.report import bench_report
from pipeline.bench.sample import bench_sample
from pipeline.bench.scale import bench_scale
from pipeline.bench.study import bench_study
from pipeline.bench.table import format_row, write_section
from pipeline.bench.train import bench_train
from pipeline.runtime import device_name, processor_name, resolve_device
from shards.atomic_io import open_output
from shards.errors import FairfaceError
from shards.synthetic.dataset import SyntheticConfig, write_dataset

STAGES: dict[str, Callable[[BenchContext], Iterator[Row]]] = {
    "pack": bench_pack,
    "verify": bench_verify,
    "scale": bench_scale,
    "join": bench_join,
    "feed": bench_feed,
    "train": bench_train,
    "gan": bench_gan,
    "sample": bench_sample,
    "label": bench_label,
    "detect": bench_detect,
    "estimates": bench_estimates,
    "study": bench_study,
    "audit": bench_audit,
    "report": bench_report,
}
LONG_STAGES = ("gan",)  # run only if named explicitly


def run(
    stages: Sequence[str],
    *,
    device: str,
    sizes: SizesConfig,
    json_file: Path | None,
    markdown: Path | None,
    worlds: WorldsConfig,
    trials: TrialsConfig,
) -> None:
    """Run the named stages, or all but LONG_STAGES, on synthetic JPEGs, and print their rows.

    The rows are also written to `json_file`, and into this machine's section of the file `markdown`. Raises
    FairfaceError for an unknown stage.
    """
    if unknown := set(stages) - set(STAGES):
        raise FairfaceError(f"there is no stage {', '.join(sorted(unknown))}: choose from {', '.join(STAGES)}")
    target = resolve_device(device)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="fairface-bench-") as folder:
        context = BenchContext(Path(folder), target, sizes, worlds, trials)
        write_dataset(context.faces, SyntheticConfig(count=sizes.images, size=256, quality=95))
        kilobytes = statistics.mean(path.stat().st_size for path in context.faces.rglob("*.jpg")) / 1000
        for name in stages or [name for name in STAGES if name not in LONG_STAGES]:
            for row in STAGES[name](context):
                rows.append(row)
                tqdm.write(format_row(row))
    if json_file:
        with open_output(json_file) as file:
            file.write(json.dumps([asdict(row) for row in rows], indent=2, ensure_ascii=False).encode() + b"\n")
    if markdown:
        machine = processor_name() if target.type == "cpu" else f"{device_name(target)}, {processor_name()}"
        about = (
            f"{sizes.images:,} synthetic JPEGs of 256x256 pixels and {kilobytes:.0f} kB; for packing and verifying "
            f"{COPIES} copies of each"
        )
        write_section(markdown, machine, rows=rows, images=about)
        click.echo(f"{markdown}: written")
