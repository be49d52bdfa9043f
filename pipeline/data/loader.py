"""Shards become batches on the training device: NVIDIA DALI decodes, resident once or streaming every epoch."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pipeline.data.sampler import SINGLE_RANK, BalancedSampler, NaturalSampler, RankSlice, iterate_batches
from pipeline.data.shard_set import ShardSet
from pipeline.runtime import free_memory
from shards import tar
from shards.concurrency import available_cpus, map_in_order
from shards.errors import FairfaceError
from shards.image_check import EXTENSIONS

RESIDENT_MEMORY_SHARE = 0.5  # of the free memory that decoded images may take


@dataclass(frozen=True)
class DecoderConfig:
    """How DALI decodes: its threads (one a core without a number), and what a GPU's own JPEG engine takes."""

    workers: int | None = None
    hw_load: float = 0.65  # share of a batch for nvJPEG's hardware engine, where there is one: DALI's own default
    through: int | None = None  # pixels that images are made smaller to on their way, so that all are as sharp


def decode_all(
    shards: ShardSet, size: int, device: torch.device, batch: int = 256, how: DecoderConfig | None = None
) -> Iterator[Tensor]:
    """Every image once, in tar order, as uint8 [<= batch, size, size, 3] on `device`, by DALI's webdataset reader.

    A yielded tensor is DALI's own memory: it holds until the next one is asked for. Raises FairfaceError when a shard is
    not as it was packed or can't be decoded.
    """
    paths = [str(shards.folder / name) for name in shards.names]

    def source(fn) -> tuple[object, None]:
        coded = fn.readers.webdataset(
            paths=paths,
            index_paths=[path[:-4] + ".idx" for path in paths],
            ext=";".join(dict.fromkeys(EXTENSIONS.values())),
            missing_component_behavior="error",
            name="reader",
        )
        return coded, None

    left = shards.images
    for images in run_pipeline(shards, source, size, device, min(batch, left), how or DecoderConfig()):
        yield images[:left]
        if (left := left - len(images)) <= 0:
            return


def decode_batches(
    shards: ShardSet,
    batches: Iterator[Tensor],
    size: int,
    device: torch.device,
    how: DecoderConfig,
    in_pieces: bool,
    change: Callable | None = None,
    chances: np.ndarray | None = None,
) -> Iterator[Tensor]:
    """The images of whatever numbers (in tar order) `batches` names, int64 [<= batch] each, as `decode` has them.

    Their bytes are read ahead by a thread; `in_pieces` says that neighbours in a tar are wanted soon. `change` is done
    to each of them, with its row of `chances`, float32 [N, any], where there are some.
    """
    first = next(batches)
    members = MemberReader(shards, in_pieces)
    read = members.read if chances is None else lambda numbers: (members.read(numbers), list(chances[numbers.numpy()]))
    ahead = read_ahead(read, chain([first], batches))

    def source(fn) -> tuple[object, object]:
        from nvidia.dali import types

        if chances is None:
            return fn.external_source(source=ahead, batch=True, dtype=types.UINT8, ndim=1), None
        return fn.external_source(
            source=ahead, num_outputs=2, batch=True, dtype=[types.UINT8, types.FLOAT], ndim=[1, 1]
        )

    yield from run_pipeline(shards, source, size, device, len(first), how, change)


def run_pipeline(
    shards: ShardSet,
    source: Callable,
    size: int,
    device: torch.device,
    batch: int,
    how: DecoderConfig,
    change: Callable | None = None,
) -> Iterator[Tensor]:
    """Batches of what DALI reads from `source`, for ever, as uint8 [batch, size, size, 3] on `device`.

    The shorter side is resized to `size` by an antialiased triangular filter and the centre is cut out, as
    torchvision's Resize and CenterCrop do. On a GPU the JPEGs are decoded there (`mixed`).
    """
    shards.verify(how.workers)
    try:
        from nvidia.dali import fn, pipeline_def, types
    except ImportError as error:
        raise FairfaceError(
            f"NVIDIA DALI is missing ({error}): `make setup`, or pip install 'fairface-generator[cuda13]'"
        ) from error

    on_gpu = device.type == "cuda"
    decoder = {"device": "mixed", "hw_decoder_load": how.hw_load} if on_gpu else {"device": "cpu"}

    @pipeline_def(
        batch_size=batch,
        num_threads=how.workers or available_cpus(),
        prefetch_queue_depth=2,
        device_id=(device.index or 0) if on_gpu else None,
    )
    def pipeline():
        coded, chance = source(fn)
        images = fn.decoders.image(coded, output_type=types.RGB, **decoder)
        for side in (how.through, size) if how.through and how.through < size else (size,):
            images = fn.resize(images, resize_shorter=side, interp_type=types.INTERP_LINEAR, antialias=True)
        images = fn.crop(images, crop=(size, size))
        return images if change is None else change(fn, types, images, chance, size)

    running = pipeline()
    try:
        running.build()
        while True:
            (images,) = running.run()
            yield torch.from_dlpack(images.as_tensor())
            if on_gpu:  # what was queued on it must be done before DALI writes there again
                torch.cuda.current_stream(device).synchronize()
    except RuntimeError as error:
        shards.sound = False
        shards.verify(how.workers, decode_all=True)  # which knows its name, if it broke meanwhile
        line = next((text for text in str(error).splitlines() if "rror" in text), str(error))[:300]
        raise FairfaceError(f"a shard in {shards.folder} can't be decoded ({line}){shards.remedy()}") from error


class MemberReader:
    """The bytes of every image of some shards, by its number in tar order."""

    def __init__(self, shards: ShardSet, in_pieces: bool):
        self.files: dict[int, int] = {}
        self.paths, self.in_pieces = [shards.folder / name for name in shards.names], in_pieces
        places = [list(tar.index(path).values()) for path in self.paths]
        self.shard = np.repeat(np.arange(len(places)), [len(place) for place in places])
        self.place = np.array([pair for place in places for pair in place], dtype=np.int64)  # offset, size

    def read(self, numbers: Tensor) -> list[np.ndarray]:
        """The coded images, uint8 [bytes] each."""
        return [
            np.frombuffer(os.pread(self.file(int(self.shard[n])), int(size), int(offset)), np.uint8)
            for n, (offset, size) in zip(numbers.tolist(), self.place[numbers.numpy()], strict=True)
        ]

    def file(self, shard: int) -> int:
        """An open tar; those opened longest ago are closed, for a process may have only so many."""
        if shard not in self.files:
            if len(self.files) >= 256:
                os.close(self.files.pop(next(iter(self.files))))
            self.files[shard] = os.open(self.paths[shard], os.O_RDONLY)
            if self.in_pieces:  # all of it will be wanted, in small reads here and there
                os.posix_fadvise(self.files[shard], 0, 0, os.POSIX_FADV_WILLNEED)
        return self.files[shard]

    def __del__(self) -> None:
        for file in self.files.values():
            os.close(file)


def read_ahead(read: Callable, batches: Iterator[Tensor], depth: int = 4) -> Iterator:
    """What `read` makes of each batch, by a thread that is `depth` batches ahead."""
    with ThreadPoolExecutor(1) as pool:
        for _, coded in map_in_order(pool, read, ((batch,) for batch in batches), depth):
            yield coded


def load_resident(
    shards: ShardSet,
    size: int,
    device: torch.device,
    how: DecoderConfig | None = None,
    progress: bool = True,
    part: RankSlice = SINGLE_RANK,
) -> Tensor:
    """A part of the images at once, decoded through DALI: uint8 [N, size, size, 3] on `device`, in tar order."""
    mine = part.of(shards.images)
    holding, before = shards.holding(mine)
    images = torch.empty(len(mine), size, size, 3, dtype=torch.uint8, device=device)
    start = before - mine.start  # of the first decoded image among those wanted; negative: some are passed over
    with tqdm(total=len(mine), unit="img", desc="decoding", disable=not progress, leave=False) as bar:
        for batch in decode_all(holding, size, device, how=how):
            wanted = batch[max(-start, 0) : max(len(mine) - start, 0)]
            images[max(start, 0) : max(start, 0) + len(wanted)] = wanted
            start += len(batch)
            bar.update(len(wanted))
    return images


def choose_feed(shards: ShardSet, size: int, device: torch.device) -> str:
    """`resident` when the decoded images fit in RESIDENT_SHARE of the free memory, else `streaming`."""
    fits = shards.images * size * size * 3 <= RESIDENT_MEMORY_SHARE * free_memory(device)
    return "resident" if fits else "streaming"


def resident_feed(
    shards: ShardSet,
    order: NaturalSampler | BalancedSampler,
    size: int,
    batch: int,
    device: torch.device,
    part: RankSlice = SINGLE_RANK,
    how: DecoderConfig | None = None,
    progress: bool = True,
) -> Callable[[int], Iterator[Tensor]]:
    """Decodes once and keeps this part of the images on `device`.

    Returns `batches(first_step)`: uint8 [batch, size, size, 3] for ever, in the order given.
    """
    images, start = load_resident(shards, size, device, how, progress, part), part.of(shards.images).start

    def batches(step: int) -> Iterator[Tensor]:
        return (images[(numbers - start).to(device)] for numbers in iterate_batches(order, batch, step))

    return batches


def streaming_feed(
    shards: ShardSet,
    order: NaturalSampler | BalancedSampler,
    size: int,
    batch: int,
    device: torch.device,
    part: RankSlice = SINGLE_RANK,
    how: DecoderConfig | None = None,
    progress: bool = True,
) -> Callable[[int], Iterator[Tensor]]:
    """The same batches for what does not fit in memory: every image is read and decoded when its turn comes."""

    how = how or DecoderConfig()
    mine, _ = shards.holding(part.of(shards.images))
    mine.verify(how.workers)
    shards.sound = True  # as far as this part is concerned

    def batches(step: int) -> Iterator[Tensor]:
        numbers = iterate_batches(order, batch, step)
        return decode_batches(shards, numbers, size, device, how, in_pieces=isinstance(order, NaturalSampler))

    return batches


FEEDS = {"resident": resident_feed, "streaming": streaming_feed}


def to_unit_range(images: Tensor, mirrored: Tensor | None = None) -> Tensor:
    """uint8 [B, S, S, 3] -> float32 [B, 3, S, S] in [-1, 1], channels_last; flips those of bool [B] `mirrored`."""
    images = images.permute(0, 3, 1, 2)
    if mirrored is not None:
        images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    return (images.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
