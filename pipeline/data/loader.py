"""Batches of packed images for training: decoded once and kept on the device, or streamed every epoch."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from tqdm import tqdm

from pipeline.data.decoder import DecoderConfig, decode_all, decode_batches
from pipeline.data.sampler import SINGLE_RANK, NaturalSampler, RankSlice, Sampler, iterate_batches
from pipeline.data.shard_set import ShardSet
from pipeline.runtime import check_memory, free_memory

RESIDENT_MEMORY_SHARE = 0.5  # of the free memory that decoded images may take


@dataclass(frozen=True)
class FeedConfig:
    """The format of a feed's batches, and their device."""

    image_size: int  # pixels
    batch_size: int  # images of this rank
    device: torch.device
    rank_slice: RankSlice = SINGLE_RANK
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    progress: bool = True


# first step -> batches from there on, uint8 [batch_size, image_size, image_size, 3] on the device, without end
Batches = Callable[[int], Iterator[Tensor]]
Feed = Callable[[ShardSet, Sampler, FeedConfig], Batches]


def choose_feed(shards: ShardSet, image_size: int, *, device: torch.device) -> str:
    """Return "resident" if the decoded images fit in RESIDENT_MEMORY_SHARE of the free memory, else "streaming"."""
    decoded_bytes = shards.images * image_size * image_size * 3
    return "resident" if decoded_bytes <= RESIDENT_MEMORY_SHARE * free_memory(device) else "streaming"


def resident_feed(shards: ShardSet, sampler: Sampler, config: FeedConfig) -> Batches:
    """Decode this rank's images once, keep them on the device, and gather every batch from there.

    Raises FairfaceError if they don't fit there.
    """
    decoded_bytes = len(config.rank_slice.indices(shards.images)) * config.image_size**2 * 3
    check_memory(decoded_bytes, config.device, purpose="the decoded images", remedy="use --feed streaming")
    images = load_resident(
        shards,
        config.image_size,
        device=config.device,
        decoder=config.decoder,
        progress=config.progress,
        rank_slice=config.rank_slice,
    )
    start = config.rank_slice.indices(shards.images).start

    def batches(first_step: int) -> Iterator[Tensor]:
        ordered = iterate_batches(sampler, config.batch_size, first_step=first_step)
        return (images[(indices - start).to(config.device)] for indices in ordered)

    return batches


def streaming_feed(shards: ShardSet, sampler: Sampler, config: FeedConfig) -> Batches:
    """Yield the same batches for images that do not fit in memory: each image is read and decoded when it is needed."""
    own, _ = shards.covering(config.rank_slice.indices(shards.images))
    own.verify(workers=config.decoder.workers)
    shards.verified = True  # only the tars that this rank reads

    def batches(first_step: int) -> Iterator[Tensor]:
        return decode_batches(
            shards,
            iterate_batches(sampler, config.batch_size, first_step=first_step),
            image_size=config.image_size,
            device=config.device,
            decoder=config.decoder,
            prefetch_tars=isinstance(sampler, NaturalSampler),
        )

    return batches


FEEDS: dict[str, Feed] = {"resident": resident_feed, "streaming": streaming_feed}


def load_resident(
    shards: ShardSet,
    image_size: int,
    *,
    device: torch.device,
    decoder: DecoderConfig | None = None,
    progress: bool = True,
    rank_slice: RankSlice = SINGLE_RANK,
) -> Tensor:
    """Decode this rank's images to one tensor, uint8 [N, image_size, image_size, 3] on `device`, in tar order."""
    own = rank_slice.indices(shards.images)
    subset, first = shards.covering(own)
    images = torch.empty(len(own), image_size, image_size, 3, dtype=torch.uint8, device=device)
    position = first - own.start  # of the next decoded image in `images`; negative: it belongs to another rank
    with tqdm(total=len(own), unit="img", desc="decoding", disable=not progress, leave=False) as bar:
        for batch in decode_all(subset, image_size, device=device, decoder=decoder):
            wanted = batch[max(-position, 0) : max(len(own) - position, 0)]
            images[max(position, 0) : max(position, 0) + len(wanted)] = wanted
            position += len(batch)
            bar.update(len(wanted))
    return images


def to_unit_range(images: Tensor, mirrored: Tensor | None = None) -> Tensor:
    """Convert uint8 [B, S, S, 3] to float32 [B, 3, S, S] in [-1, 1], channels_last; flip where bool [B] `mirrored`."""
    images = images.permute(0, 3, 1, 2)
    if mirrored is not None:
        images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    return (images.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
