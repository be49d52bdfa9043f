"""Benchmark of the feeds next to webdataset, Pillow and DataLoader with a worker per core."""

from collections.abc import Iterator
from itertools import islice

import webdataset
from torch.utils.data import DataLoader

from pipeline.bench.baselines import decode_member
from pipeline.bench.context import SIZE, BenchContext
from pipeline.bench.measure import Row, compare
from pipeline.data.loader import FeedConfig, resident_feed, streaming_feed, to_unit_range
from pipeline.data.sampler import NaturalSampler
from shards.concurrency import available_cpus

BATCH_SIZE = 128
RESIDENT_EPOCHS = 20  # of the resident feed for one of the others


def bench_feed(context: BenchContext) -> Iterator[Row]:
    """Measure the streaming and the resident feed, to float32 batches on the device."""
    shards, device = context.shards(), context.device
    sampler, config = NaturalSampler(shards.sizes, 0), FeedConfig(SIZE, BATCH_SIZE, device, progress=False)

    def streaming() -> int:
        batches = streaming_feed(shards, sampler, config)(0)
        return sum(len(to_unit_range(images)) for images in islice(batches, shards.images // BATCH_SIZE))

    resident_batches = resident_feed(shards, sampler, config)(0)

    def resident() -> int:
        batches = islice(resident_batches, RESIDENT_EPOCHS * shards.images // BATCH_SIZE)
        return sum(len(to_unit_range(images)) for images in batches)

    def plain() -> int:
        urls = [str(shards.folder / name) for name in shards.names]
        members = webdataset.WebDataset(urls, shardshuffle=False, workersplitter=webdataset.split_by_worker)
        workers = min(available_cpus(), len(urls))
        loader = DataLoader(members.map(decode_member), batch_size=BATCH_SIZE, num_workers=workers)
        return sum(len(images.to(device)) for images in loader)

    note = "to float32 batches on the device"
    title = "streaming, vs webdataset and DataLoader"
    yield compare("feed", title, ours=streaming, baseline=plain, device=device, note=note)
    title = "resident after the first epoch, vs webdataset and DataLoader"
    yield compare("feed", title, ours=resident, baseline=plain, device=device, note=note)
