"""Benchmark of sampling next to the original's way: a batch of 64, then save_image one image at a time."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torchvision.utils import save_image

from pipeline.bench.baselines import PlainGan
from pipeline.bench.context import BenchContext
from pipeline.bench.measure import Row, compare
from pipeline.gan.generate import ImageGenerator
from pipeline.gan.options import PRESETS
from pipeline.gan.sample import write_tars
from pipeline.gan.trainer import GanTrainer
from pipeline.runtime import tune_allocator

COUNT = 2048
BATCH_SIZE = 64


def bench_sample(context: BenchContext) -> Iterator[Row]:
    """Measure sampling with the networks of both presets."""
    tune_allocator()
    for preset in ("sketch", "faces"):
        yield bench_preset(context, preset)


def bench_preset(context: BenchContext, preset: str) -> Row:
    """Measure sampling with an untrained network of a preset."""
    device, options, run = context.device, PRESETS[preset], context.workspace.run(preset)
    images = ImageGenerator(GanTrainer(options, device).networks.ema.eval(), device, seed=0)
    plain, folder = PlainGan(GanTrainer(options, device), device), context.scratch("png")
    plain.g.eval()
    folder.mkdir(exist_ok=True)

    def ours() -> int:
        write_tars(run, images.iterate_png(0, COUNT), count=COUNT, progress=False)
        return COUNT

    return compare(
        "sample",
        f"{preset}: to shards, vs save_image to single files",
        ours=ours,
        baseline=lambda: save_plain_samples(plain, folder),
        device=device,
        note=f"width {options.width_g}, PNG",
    )


@torch.no_grad()
def save_plain_samples(plain: PlainGan, folder: Path) -> int:
    """Generate and save COUNT samples as the original does."""
    for start in range(0, COUNT, BATCH_SIZE):
        images = (plain.g(torch.randn(BATCH_SIZE, plain.latent_dim, device=plain.device)) + 1) / 2
        for i, image in enumerate(images):
            save_image(image, folder / f"sample_{start + i:05d}.png")
    return COUNT
