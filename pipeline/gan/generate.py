"""Generates images, each a pure function of (generator, seed, index, class shares, truncation)."""

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.dcgan import Generator, optimise_for_inference
from pipeline.data.random_streams import REQUESTS, SAMPLES, seeded_generator
from pipeline.gan.options import GanOptions
from pipeline.gan.png import encode_png, filter_rows
from pipeline.threads import choose_threads, max_threads, restored_threads
from pipeline.training import checkpoint
from shards.concurrency import available_cpus, generator_threads, map_in_order
from shards.documents import DataSource
from shards.errors import FairfaceError

BLOCK = 64  # samples that share a random stream and a forward pass


def load_generator(
    path: Path, device: torch.device, *, weights: str = "ema", half_life: float | None = None
) -> tuple[Generator, dict[str, Any]]:
    """Return a checkpoint's generator in evaluation mode (`weights`: ema or g), and the checkpoint's state.

    `half_life` is that of the moving average in images; None: as in training, otherwise see `average_weights`. Raises
    FairfaceError for anything but a checkpoint of a DCGAN, and for a half-life that its averages don't allow.
    """
    state = checkpoint.load(path, device)
    if weights not in state["networks"]:
        raise FairfaceError(f"{path} is not a checkpoint of a generator: it was not written by `fairface train`")
    try:
        tensors = state["networks"][weights] if half_life is None else average_weights(state, half_life)
        net = build_generator(state, tensors)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = (str(error).splitlines() or [""])[-1].strip()[:200]
        raise FairfaceError(f"{path} is not a complete checkpoint of a generator ({reason})") from error
    net.to(device).to(memory_format=torch.channels_last)
    return net.eval().requires_grad_(False), state


def average_weights(state: dict[str, Any], half_life: float) -> dict[str, Tensor]:
    """The moving average of a generator's weights with a `half_life` between those of the two averages in a checkpoint.

    An average with time constant t weights the past by exp(-age / t) / t. Of all mixtures w, 1 - w of two of them, the
    one nearest to a third in the sense of least squares is returned (Karras et al. 2024, arXiv:2312.02696, section 3.2,
    with exponential profiles, whose inner product is 1 / (t + u)). Raises FairfaceError for a half-life outside,
    and the errors of `build_generator`.
    """
    networks, (short, long) = state["networks"], GanOptions(**state["options"]).half_lives
    if "ema_long" not in networks or not short - 0.5 <= half_life <= long + 0.5 or not short:
        raise FairfaceError(
            f"--ema-half-life {half_life:g}: this checkpoint allows half-lives of {short:,.0f} to {long:,.0f} images"
            if "ema_long" in networks
            else "--ema-half-life: this checkpoint was saved by an earlier version, which kept a single moving average"
        )

    half_life = min(max(half_life, short), long)  # the message above shows them rounded
    ema, ema_long = (build_generator(state, networks[name]).state_dict() for name in ("ema", "ema_long"))  # checked

    def product(t: float, u: float) -> float:
        return 1 / (t + u)

    target = product(half_life, short) - product(half_life, long) - product(long, short) + product(long, long)
    weight = target / (product(short, short) - 2 * product(short, long) + product(long, long))
    return {
        name: torch.lerp(ema_long[name], tensor, weight) if tensor.is_floating_point() else tensor
        for name, tensor in ema.items()
    }


def build_generator(state: dict[str, Any], weights: dict[str, Tensor]) -> Generator:
    """Build the generator that a checkpoint describes, with these weights.

    Raises KeyError, RuntimeError, TypeError or ValueError for a state that does not describe them.
    """
    options, classes = state["options"], state["classes"] or {}
    DataSource(**state["data"])
    shares = list(classes.values())
    if type(state["run"]) is not str or not all(isinstance(share, float) and 0 < share <= 1 for share in shares):
        raise ValueError("a field has a wrong value")
    latent_dim, width = options["latent_dim"], options["width_g"]
    # the first layers have at least so many weights: nothing is allocated that the file does not hold
    if not 0 < max(latent_dim, width) * width * 16 <= sum(tensor.numel() for tensor in weights.values()):
        raise ValueError("the weights don't fit the options")
    net = Generator(latent_dim, width, image_size=options["image_size"], classes=len(classes))
    expected = {name: (tensor.shape, tensor.dtype) for name, tensor in net.state_dict().items()}
    if {name: (tensor.shape, tensor.dtype) for name, tensor in weights.items()} != expected:
        raise ValueError("the weights don't fit the options")
    if not checkpoint.is_finite(weights):
        raise ValueError("a weight is NaN or infinite")
    net.load_state_dict(weights, assign=True)
    return net


def latents(seed: int, block: int, *, latent_dim: int, truncation: float | None = None) -> Tensor:
    """Return a block's latents z ~ N(0, 1), float32 [BLOCK, latent_dim], on the CPU.

    With `truncation`, z is from a normal distribution truncated to |z| <= truncation (Brock et al. 2019,
    arXiv:1809.11096, section 3.1), by the inverse of its distribution function.
    """
    generator = seeded_generator("cpu", seed, SAMPLES, block)
    if truncation is None:
        return torch.randn(BLOCK, latent_dim, generator=generator)
    uniform = 2 * torch.rand(BLOCK, latent_dim, generator=generator, dtype=torch.float64) - 1
    z = math.sqrt(2) * torch.erfinv(math.erf(truncation / math.sqrt(2)) * uniform)
    return z.clamp(-truncation, truncation).float()


def requested_classes(shares: dict[str, float], seed: int, *, block: int) -> Tensor:
    """Return the class number that each sample of a block is conditioned on, int64 [BLOCK], sampled by `shares`."""
    weights = torch.tensor(list(shares.values()), dtype=torch.float64)
    return torch.multinomial(weights, BLOCK, replacement=True, generator=seeded_generator("cpu", seed, REQUESTS, block))


@dataclass(frozen=True)
class ImageGenerator:
    """Generates the images of a network and a seed by index."""

    network: Generator  # in evaluation mode, on `device`
    device: torch.device
    seed: int
    shares: dict[str, float] | None = None  # of the classes; None for an unconditional network
    truncation: float | None = None  # of the latents; see `latents`
    batch_size: int | None = None  # images generated at the same time; None: a block in every thread
    threads: int | None = None  # each generates its own blocks; None: the fastest number

    @cached_property
    def inference_network(self) -> Generator:
        """The network, optimised for inference."""
        return optimise_for_inference(self.network)

    @torch.inference_mode()
    def generate_block(self, number: int) -> Tensor:
        """Generate a block of images in float32 arithmetic, uint8 [BLOCK, S, S, 3] on the CPU.

        Always the full block, because a matrix product of another size rounds differently.
        """
        network = self.inference_network
        z = latents(self.seed, number, latent_dim=network.latent_dim, truncation=self.truncation).to(self.device)
        labels = None
        if self.shares and network.classes:
            labels = requested_classes(self.shares, self.seed, block=number).to(self.device)
        pixels = ((network(z, labels) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return pixels.permute(0, 2, 3, 1).contiguous().cpu()

    def iterate_png(self, first: int, count: int) -> Iterator[bytes]:
        """Yield the PNG files of the images `first` to `first + count`, in order.

        Each thread generates and encodes its own block on one core. That wastes less time than sharing one block among
        many cores, and gives the same pixels for any number of threads.
        """
        _ = self.inference_network  # once, before the threads share it
        blocks = range(first // BLOCK, -(-(first + count) // BLOCK))
        workers = self.threads or self._fastest_threads(len(blocks))
        if self.batch_size:
            workers = min(workers, max(self.batch_size // BLOCK, 1))
        for number, files in self._encode_blocks(blocks, workers=workers):
            start = number * BLOCK
            yield from files[max(first - start, 0) : first + count - start]

    def _encode_blocks(self, blocks: Iterable[int], *, workers: int) -> Iterator[tuple[int, list[bytes]]]:
        """Generate blocks in `workers` threads; yield the number and the PNG files of each."""

        def work(number: int) -> list[bytes]:
            return [encode_png(rows) for rows in filter_rows(self.generate_block(number))]

        jobs = ((number,) for number in blocks)
        with (
            restored_threads(),  # the workers change it for all threads started later
            generator_threads(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool,
        ):
            for (number,), files in map_in_order(pool, work, jobs, ahead=2 * workers):
                yield number, files

    def _fastest_threads(self, blocks: int) -> int:
        """Return the number of threads that generate so many blocks fastest: measured on a CPU, all cores on a GPU."""
        if self.device.type != "cpu":
            return available_cpus()
        blocks_per_step = max_threads()  # of the measurement

        def time_blocks(workers: int) -> float:
            start = time.perf_counter()
            for _ in self._encode_blocks(range(blocks_per_step), workers=workers):
                pass
            return time.perf_counter() - start

        steps, step_images = blocks // blocks_per_step, blocks_per_step * BLOCK
        return choose_threads(time_blocks, steps=steps, step_images=step_images).count
