"""Shards become batches on the training device: NVIDIA DALI decodes, resident once or streaming every epoch."""

from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl
import torch
from torch import Tensor
from tqdm import tqdm

from pipeline.machine import free_memory
from shards import cpus
from shards.check import EXTENSIONS
from shards.files import read_json, read_parquet
from shards.verify import damage

RESIDENT_SHARE = 0.5  # of the free memory that decoded images may take


class Shards:
    """A folder of packed tars: what `shards.json` (or a list of tar names and sizes) says of it."""

    def __init__(self, folder: Path, shards: list[dict], table: Path | None, command: str):
        self.folder, self.shards, self.table, self.command = folder, shards, table, command
        self.names, self.images = [shard["name"] for shard in shards], sum(shard["images"] for shard in shards)
        self.sound = False  # whether every byte has been looked at

    @classmethod
    def open(cls, folder: Path) -> "Shards":
        """The finished pack in `folder`. Raises ValueError where there is none."""
        packed = read_json(folder / "shards.json")
        if not packed:
            raise ValueError(f"no finished shards in {folder}: run `fairface shards` first")
        return cls(folder, packed["shards"], folder / "images.parquet", "fairface shards --force").checked()

    @classmethod
    def of_samples(cls, folder: Path, shards: list[dict]) -> "Shards":
        """Tars of samples, which are drawn again rather than verified."""
        return cls(folder, shards, None, "fairface sample --force").checked()

    def checked(self) -> "Shards":
        """Itself, if the tars have their sizes: DALI 2.4 may crash the process on a cut file."""
        for shard in self.shards:
            path = self.folder / shard["name"]
            if not path.exists() or path.stat().st_size != shard["bytes"] or not path.with_suffix(".idx").exists():
                raise ValueError(f"{path} is missing or not as it was written{self.remedy()}")
        return self

    def remedy(self) -> str:
        """What to do about a damaged shard."""
        verify = f"`fairface verify --out {self.folder.parent}` lists every fault, " if self.table else ""
        return f": {verify}`{self.command}` writes it again"

    def first(self, count: int) -> "Shards":
        """The shards that hold the first `count` images."""
        kept, held = [], 0
        for shard in self.shards:
            if held < count:
                kept.append(shard)
                held += shard["images"]
        return Shards(self.folder, kept, self.table, self.command)

    def verify(self, workers: int | None = None, progress: bool = False) -> None:
        """Looks at every byte, once: what rots after packing makes DALI's decoder on a CPU crash the process.

        A thirtieth of the time that decoding takes. Raises ValueError that names the first fault.
        """
        if self.sound or not self.table:
            return
        packed = read_parquet(self.table, ["shard", "key", "bytes", "sha256"]).filter(pl.col("shard").is_in(self.names))
        if faults := damage(self.folder, packed, workers=workers, progress=progress):
            raise ValueError(f"{self.folder}/{faults[0]}{self.remedy()}")
        self.sound = True


def decode(
    shards: Shards,
    size: int,
    device: torch.device,
    batch: int = 256,
    workers: int | None = None,
    order: list[str] | None = None,
) -> Iterator[Tensor]:
    """Every image once, in tar order (or the tars in `order`), as uint8 [<= batch, size, size, 3] on `device`.

    The shorter side is resized to `size` by an antialiased triangular filter and the centre is cut out, as
    torchvision's Resize and CenterCrop do. On a GPU the JPEGs are decoded there (`mixed`). A yielded tensor is
    DALI's own memory: it holds until the next one is asked for. Raises ValueError when a shard is not as it was
    packed or can't be decoded.
    """
    shards.verify(workers)
    try:
        from nvidia.dali import fn, pipeline_def, types
    except ImportError as error:
        raise ValueError(
            f"NVIDIA DALI is missing ({error}): `make setup`, or pip install 'fairface-generator[cuda13]'"
        ) from error

    paths = [str(shards.folder / name) for name in order or shards.names]
    on_gpu = device.type == "cuda"

    @pipeline_def(
        batch_size=min(batch, shards.images),
        num_threads=workers or cpus(),
        prefetch_queue_depth=2,
        device_id=(device.index or 0) if on_gpu else None,
    )
    def pipeline():
        coded = fn.readers.webdataset(
            paths=paths,
            index_paths=[path[:-4] + ".idx" for path in paths],
            ext=";".join(dict.fromkeys(EXTENSIONS.values())),
            missing_component_behavior="error",
            name="reader",
        )
        images = fn.decoders.image(coded, device="mixed" if on_gpu else "cpu", output_type=types.RGB)
        images = fn.resize(images, resize_shorter=size, interp_type=types.INTERP_LINEAR, antialias=True)
        return fn.crop(images, crop=(size, size))

    running = pipeline()
    try:
        running.build()
        for start in range(0, shards.images, running.max_batch_size):
            (images,) = running.run()
            yield torch.from_dlpack(images.as_tensor())[: shards.images - start]
            if on_gpu:  # what was queued on it must be done before DALI writes there again
                torch.cuda.current_stream(device).synchronize()
    except RuntimeError as error:
        shards.sound = False
        shards.verify(workers)  # which knows its name, if it broke meanwhile
        line = next((text for text in str(error).splitlines() if "rror" in text), str(error))[:300]
        raise ValueError(f"a shard in {shards.folder} can't be decoded ({line}){shards.remedy()}") from error


def load(shards: Shards, size: int, device: torch.device, workers: int | None = None, progress: bool = True) -> Tensor:
    """All images at once, decoded through DALI: uint8 [N, size, size, 3] on `device`, in tar order."""
    images = torch.empty(shards.images, size, size, 3, dtype=torch.uint8, device=device)
    start = 0
    with tqdm(total=shards.images, unit="img", desc="decoding", disable=not progress, leave=False) as bar:
        for batch in decode(shards, size, device, workers=workers):
            images[start : start + len(batch)] = batch
            start += len(batch)
            bar.update(len(batch))
    return images


def choose(shards: Shards, size: int, device: torch.device) -> str:
    """`resident` when the decoded images fit in RESIDENT_SHARE of the free memory, else `streaming`."""
    fits = shards.images * size * size * 3 <= RESIDENT_SHARE * free_memory(device)
    return "resident" if fits else "streaming"


def generator(device: torch.device | str, *place: int) -> torch.Generator:
    """A torch generator that is a function of where it is used: (seed, purpose, step ...), never a stream to save."""
    state = 0x9E3779B97F4A7C15
    for number in place:  # splitmix64, so that neighbouring places give unrelated seeds
        state = (state + number + 0x9E3779B97F4A7C15) & (2**64 - 1)
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
        state ^= state >> 31
    return torch.Generator(device).manual_seed(state >> 1)


ORDER, LATENTS, FLIPS = 1, 2, 3  # purposes


def resident(
    shards: Shards,
    size: int,
    batch: int,
    seed: int,
    device: torch.device,
    workers: int | None = None,
    progress: bool = True,
) -> Callable[[int], Iterator[Tensor]]:
    """Decodes once and keeps the images; returns `batches(first_step)`: uint8 [batch, size, size, 3] for ever.

    Every epoch is a permutation of all images, a pure function of (seed, epoch); its incomplete last batch is left out.
    """
    images = load(shards, size, device, workers, progress)
    per_epoch = len(images) // batch

    def batches(step: int) -> Iterator[Tensor]:
        while True:
            epoch, first = divmod(step, per_epoch)
            order = torch.randperm(len(images), generator=generator("cpu", seed, ORDER, epoch)).to(device)
            for i in range(first, per_epoch):
                yield images[order[i * batch : (i + 1) * batch]]
            step = (epoch + 1) * per_epoch

    return batches


def streaming(
    shards: Shards,
    size: int,
    batch: int,
    seed: int,
    device: torch.device,
    workers: int | None = None,
    progress: bool = True,
) -> Callable[[int], Iterator[Tensor]]:
    """The same for what does not fit in memory: the tars, each shuffled when it was packed, in a new order each epoch.

    To begin inside an epoch, the images before are decoded again and passed over.
    """
    per_epoch = shards.images // batch

    def batches(step: int) -> Iterator[Tensor]:
        while True:
            epoch, first = divmod(step, per_epoch)
            places = torch.randperm(len(shards.names), generator=generator("cpu", seed, ORDER, epoch))
            order = [shards.names[i] for i in places]
            for i, images in enumerate(decode(shards, size, device, batch, workers, order)):
                if first <= i < per_epoch:
                    yield images
            step = (epoch + 1) * per_epoch

    return batches


FEEDS = {"resident": resident, "streaming": streaming}


def to_unit(images: Tensor, flip: torch.Generator | None = None) -> Tensor:
    """uint8 [B, S, S, 3] -> float32 [B, 3, S, S] in [-1, 1], channels_last; half are mirrored if `flip` is given."""
    images = images.permute(0, 3, 1, 2)
    if flip is not None:
        chosen = torch.rand(len(images), 1, 1, 1, generator=flip, device=images.device) < 0.5
        images = torch.where(chosen, images.flip(3), images)
    return (images.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
