"""NVIDIA DALI decodes packed images to uint8 tensors on the training device."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.data.member_reader import MemberReader, read_ahead
from pipeline.data.shard_set import ShardSet
from shards.concurrency import available_cpus
from shards.errors import FairfaceError
from shards.image_check import EXTENSIONS

# (nvidia.dali.fn) -> the nodes of coded images and of random numbers, or None without random numbers
Source = Callable[[Any], tuple[Any, Any]]
# (nvidia.dali.fn, nvidia.dali.types, images, random numbers, image size) -> the node of perturbed images
Perturbation = Callable[[Any, Any, Any, Any, int], Any]


@dataclass(frozen=True)
class DecoderConfig:
    """How DALI decodes."""

    workers: int | None = None  # threads; None: one per core
    hw_decoder_load: float = 0.1  # share of a batch for a GPU's hardware JPEG engine; 0.1 is fastest on an H100
    pre_resize: int | None = None  # pixels that larger images are first reduced to, so that all are equally sharp


def decode_all(
    shards: ShardSet,
    image_size: int,
    *,
    device: torch.device,
    batch_size: int = 256,
    decoder: DecoderConfig | None = None,
) -> Iterator[Tensor]:
    """Yield every image once, in tar order, through DALI's webdataset reader.

    Batches are uint8 [<= batch_size, image_size, image_size, 3] on `device`, in DALI's own memory: each is valid until
    the next one is requested. Raises FairfaceError if a shard differs from what was packed or cannot be decoded.
    """
    paths = [str(shards.folder / name) for name in shards.names]

    def source(fn: Any) -> tuple[Any, Any]:
        coded = fn.readers.webdataset(
            paths=paths,
            index_paths=[path[:-4] + ".idx" for path in paths],
            ext=";".join(dict.fromkeys(EXTENSIONS.values())),
            missing_component_behavior="error",
            name="reader",
        )
        return coded, None

    remaining = shards.images
    for images in run_pipeline(
        shards,
        source,
        image_size=image_size,
        device=device,
        batch_size=min(batch_size, remaining),
        decoder=decoder or DecoderConfig(),
    ):
        yield images[:remaining]
        if (remaining := remaining - len(images)) <= 0:
            return


def decode_batches(
    shards: ShardSet,
    batches: Iterator[Tensor],
    *,
    image_size: int,
    device: torch.device,
    decoder: DecoderConfig,
    prefetch_tars: bool,
    perturb: Perturbation | None = None,
    random_numbers: np.ndarray | None = None,
) -> Iterator[Tensor]:
    """Yield the images of each batch of indices (in tar order), int64 [<= batch_size], decoded as by `decode_all`.

    A thread reads the files ahead. `prefetch_tars` has the system read every opened tar ahead, for batches of
    neighbouring images. `perturb` is applied to every image, with its row of `random_numbers`, float32 [images, any].
    """
    first = next(batches)
    members = MemberReader(shards, prefetch_tars)

    def read(indices: Tensor) -> Any:
        coded = members.read(indices)
        return coded if random_numbers is None else (coded, list(random_numbers[indices.numpy()]))

    coded_batches = read_ahead(read, chain([first], batches))

    def source(fn: Any) -> tuple[Any, Any]:
        from nvidia.dali import types

        if random_numbers is None:
            return fn.external_source(source=coded_batches, batch=True, dtype=types.UINT8, ndim=1), None
        return fn.external_source(
            source=coded_batches, num_outputs=2, batch=True, dtype=[types.UINT8, types.FLOAT], ndim=[1, 1]
        )

    yield from run_pipeline(
        shards,
        source,
        image_size=image_size,
        device=device,
        batch_size=len(first),
        decoder=decoder,
        perturb=perturb,
    )


def decode_coded(
    batches: Iterable[Sequence[np.ndarray]],
    *,
    image_size: int,
    device: torch.device,
    batch_size: int,
    decoder: DecoderConfig,
) -> Iterator[Tensor]:
    """Yield the decoded images of each batch of encoded ones, uint8 [bytes] each, as `decode_all` decodes packed ones.

    The caller must have checked their bytes as the packer does: DALI may crash on other images. A batch has 1 to
    `batch_size` images. Raises FairfaceError if DALI can't decode one nevertheless.
    """

    def source(fn: Any) -> tuple[Any, Any]:
        from nvidia.dali import types

        return fn.external_source(name="coded", dtype=types.UINT8, ndim=1), None

    pipeline = _define_pipeline(
        source, image_size=image_size, device=device, batch_size=batch_size, decoder=decoder, prefetched=1
    )
    pipeline.build()
    for batch in batches:
        try:
            (images,) = pipeline.run(coded=list(batch))
        except RuntimeError as error:
            raise FairfaceError(f"DALI can't decode one of the images ({error_line(error)})") from error
        yield from _yield_decoded(images, device)


def run_pipeline(
    shards: ShardSet,
    source: Source,
    *,
    image_size: int,
    device: torch.device,
    batch_size: int,
    decoder: DecoderConfig,
    perturb: Perturbation | None = None,
) -> Iterator[Tensor]:
    """Yield decoded batches of the images that DALI reads from `source`, without end.

    Batches are uint8 [batch_size, image_size, image_size, 3] on `device`. Raises FairfaceError, naming the image, if
    one cannot be decoded.
    """
    shards.verify(workers=decoder.workers)
    pipeline = _define_pipeline(
        source, image_size=image_size, device=device, batch_size=batch_size, decoder=decoder, perturb=perturb
    )
    try:
        pipeline.build()
        while True:
            (images,) = pipeline.run()
            yield from _yield_decoded(images, device)
    except RuntimeError as error:
        shards.verified = False
        shards.verify(workers=decoder.workers)  # names a tar whose bytes changed in the meantime
        shards.check_decodable(workers=decoder.workers)
        raise FairfaceError(
            f"a shard in {shards.folder} cannot be decoded ({error_line(error)}){shards.remedy()}"
        ) from error


def error_line(error: Exception) -> str:
    """The line of DALI's message that says what went wrong."""
    return next((text for text in str(error).splitlines() if "rror" in text), str(error))[:300]


def _yield_decoded(images: Any, device: torch.device) -> Iterator[Tensor]:
    """Yield the tensor of a decoded batch, which is valid until the next one is requested."""
    yield torch.from_dlpack(images.as_tensor())
    if device.type == "cuda":  # queued work on the batch must finish before DALI writes to its memory again
        torch.cuda.current_stream(device).synchronize()


def _define_pipeline(
    source: Source,
    *,
    image_size: int,
    device: torch.device,
    batch_size: int,
    decoder: DecoderConfig,
    perturb: Perturbation | None = None,
    prefetched: int = 2,
) -> Any:
    """Return the DALI pipeline that decodes, resizes, crops and perturbs; `prefetched` batches are decoded ahead.

    The shorter side is resized to `image_size` by an antialiased triangular filter and the centre is cropped, as by
    torchvision's Resize and CenterCrop. On a GPU, JPEGs are decoded there (`mixed`).
    """
    try:
        from nvidia.dali import fn, pipeline_def, types
    except ImportError as error:
        raise FairfaceError(
            f"NVIDIA DALI is missing ({error}): `make setup`, or pip install 'fairface-generator[cuda13]'"
        ) from error

    on_gpu = device.type == "cuda"
    backend = {"device": "mixed", "hw_decoder_load": decoder.hw_decoder_load} if on_gpu else {"device": "cpu"}
    sides = [image_size]
    if decoder.pre_resize and decoder.pre_resize < image_size:
        sides = [decoder.pre_resize, image_size]

    @pipeline_def(
        batch_size=batch_size,
        num_threads=decoder.workers or available_cpus(),
        prefetch_queue_depth=prefetched,
        device_id=(device.index or 0) if on_gpu else None,
    )
    def pipeline() -> Any:
        coded, random_numbers = source(fn)
        images = fn.decoders.image(coded, output_type=types.RGB, **backend)
        for side in sides:
            images = fn.resize(images, resize_shorter=side, interp_type=types.INTERP_LINEAR, antialias=True)
        images = fn.crop(images, crop=(image_size, image_size))
        return images if perturb is None else perturb(fn, types, images, random_numbers, image_size)

    return pipeline()
