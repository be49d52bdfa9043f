"""One training step of the DCGAN: networks, losses and optimizers on one device, compiled where that pays."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from models.dcgan import Discriminator, Generator, discriminator_loss, generator_loss
from pipeline.data.loader import to_unit_range
from pipeline.data.random_streams import FLIPS, LATENTS, seeded_generator
from pipeline.data.sampler import SINGLE_RANK, RankSlice
from shards.errors import FairfaceError

GRID_SEED = 2**31  # the grid's latents lie outside every training step's


@dataclass(frozen=True)
class GanOptions:
    """What decides a run's weights, beside the images and the number of steps."""

    image_size: int = 64  # pixels
    latent_dim: int = 128
    width_g: int = 64  # channels of the generator's last hidden layer
    width_d: int = 64  # channels of the discriminator's first
    batch_size: int = 128
    lr: float = 2e-4
    beta1: float = 0.5
    beta2: float = 0.999
    ema: float = 0.995  # decay a step
    ema_start: int = 100  # the step at which the average starts, as a copy
    flip: bool = True  # mirror half of the images
    balance: str | dict[str, float] = "natural"  # uniform | target shares by group
    balance_by: str = "intersection"  # the label column
    conditional: str | None = None  # the label column that G and D are told
    seed: int = 0
    precision: str = "auto"  # bf16 | fp32
    compile: bool | None = None  # None: where it pays
    cuda_graphs: bool = False  # a whole step as one CUDA graph
    feed: str = "auto"  # resident | streaming


# `faces` is the DCGAN as published, for real data and a GPU; `sketch` is what a laptop learns in minutes.
PRESETS = {"faces": GanOptions(), "sketch": GanOptions(width_g=24, width_d=16, batch_size=16)}


@dataclass
class Networks:
    """Generator, discriminator, the generator's moving average and the two optimizers."""

    g: Generator
    d: Discriminator
    ema: Generator
    adam_g: torch.optim.Adam
    adam_d: torch.optim.Adam

    @classmethod
    def new(cls, options: GanOptions, device: torch.device, classes: int = 0) -> "Networks":
        """Fresh networks, a function of the seed alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)
            g = Generator(options.latent_dim, options.width_g, options.image_size, classes)
            d = Discriminator(options.width_d, options.image_size, classes)
        g, d = (net.to(device, memory_format=torch.channels_last) for net in (g, d))
        adams = [
            torch.optim.Adam(net.parameters(), options.lr, (options.beta1, options.beta2), fused=True) for net in (g, d)
        ]
        nets = cls(g, d, deepcopy(g).requires_grad_(False), *adams)
        nets.set_capturable()
        return nets

    def state(self) -> dict:
        """All that continuing needs."""
        return {name: getattr(self, name).state_dict() for name in ("g", "d", "ema", "adam_g", "adam_d")}

    def sizes(self) -> dict[str, int]:
        """Parameters of the generator and of the discriminator."""
        nets = {"generator": self.g, "discriminator": self.d}
        return {name: sum(p.numel() for p in net.parameters()) for name, net in nets.items()}

    def load(self, state: dict) -> None:
        """Takes a checkpoint's state."""
        for name in ("g", "d", "ema", "adam_g", "adam_d"):
            getattr(self, name).load_state_dict(state[name])
        self.set_capturable()

    def set_capturable(self) -> None:
        """Lets the optimizers be captured where they are on a GPU, whatever machine a checkpoint is from."""
        for adam in (self.adam_g, self.adam_d):
            for group in adam.param_groups:
                group["capturable"] = group["params"][0].device.type == "cuda"


class CapturedStep:
    """A whole step as one CUDA graph: hundreds of launches become one.

    BatchNorm's statistics, the weights and Adam's state change in place at each replay, as they would without. The
    runs that CUDA wants before a capture train, too, and are undone.
    https://docs.pytorch.org/docs/stable/notes/cuda.html#whole-network-capture
    """

    def __init__(self, update: Callable, nets: Networks):
        self.update, self.nets, self.graph = update, nets, None

    def __call__(self, *inputs: Tensor | None) -> Tensor:
        if not self.graph:
            self.capture(inputs)
        for place, tensor in zip(self.inputs, inputs, strict=True):
            if tensor is not None:
                place.copy_(tensor)
        self.graph.replay()
        return self.told.clone()

    def capture(self, inputs: tuple[Tensor | None, ...]) -> None:
        """Records the step; its inputs and what it returns then have fixed places on the device."""
        self.inputs = [None if tensor is None else tensor.clone() for tensor in inputs]
        before, side = deepcopy(self.nets.state()), torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self.update(*self.inputs)
        torch.cuda.current_stream().wait_stream(side)
        self.undo(before)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # DALI's threads may allocate
                self.told = self.update(*self.inputs)
        except RuntimeError as error:
            reason = str(error).splitlines()[0][:200]
            raise FairfaceError(
                f"a step can't be captured as a CUDA graph ({reason}): give --no-cuda-graphs"
            ) from error
        self.graph = graph

    @torch.no_grad()
    def undo(self, before: dict) -> None:
        """Puts `before` back into the tensors that are there: a graph knows them by their place."""
        for name in ("g", "d"):
            getattr(self.nets, name).load_state_dict(before[name])
        for name in ("adam_g", "adam_d"):
            adam, known = getattr(self.nets, name), before[name]["state"]
            for number, weight in enumerate(adam.param_groups[0]["params"]):
                for key, tensor in adam.state[weight].items():
                    tensor.copy_(known[number][key]) if known else tensor.zero_()


class GanTrainer:
    """One training step after another on `device`; a step's randomness is a function of (seed, step)."""

    figures = ("loss_d", "loss_g", "d_real", "d_fake")

    def __init__(self, options: GanOptions, device: torch.device, part: RankSlice = SINGLE_RANK, classes: int = 0):
        self.options, self.device, self.part, self.batch = options, device, part, options.batch_size
        self.nets = Networks.new(options, device, classes)
        wrap = (lambda f: torch.compile(f, fullgraph=True)) if options.compile else (lambda f: f)
        self.generate, self.d_loss, self.g_loss = wrap(self._generate), wrap(self._d_loss), wrap(self._g_loss)
        self.update = self._update
        if options.cuda_graphs and device.type == "cuda" and part.world == 1:
            self.update = CapturedStep(self._update, self.nets)

    def line(self, values: Sequence[float]) -> str:
        """The losses for a person."""
        return f"D {values[0]:.2f} G {values[1]:.2f}"

    def state(self) -> dict:
        """All that continuing needs."""
        return self.nets.state()

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.precision == "bf16")

    def _generate(self, z: Tensor, labels: Tensor | None) -> Tensor:
        with self.autocast():
            return self.nets.g(z, labels)

    def _d_loss(self, real: Tensor, fake: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        with self.autocast():
            real, fake = self.nets.d(real, labels), self.nets.d(fake, labels)
        means = torch.stack([real.float().sigmoid().mean(), fake.float().sigmoid().mean()]).detach()
        return discriminator_loss(real, fake), means

    def _g_loss(self, fake: Tensor, labels: Tensor | None) -> Tensor:
        with self.autocast():
            return generator_loss(self.nets.d(fake, labels))

    def step(self, step: int, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """One update of D, then of G, on uint8 [B, S, S, 3]; returns [loss_d, loss_g, d_real, d_fake] on the device.

        B is this rank's share of the batch. Conditional networks take the labels int64 [B] of the images, and the
        fakes are asked for the same. G's step takes the fakes that D's step judged, as the original does: G
        runs forward once.
        """
        batch, mine = len(images) * self.part.world, slice(*(len(images) * (self.part.rank + i) for i in (0, 1)))
        mirrored = self.mirrored(step, batch)[mine] if self.options.flip else None
        told = self.update(images, self.latents(step, batch)[mine], mirrored, labels)
        self.average(step)
        return told

    def _update(self, images: Tensor, z: Tensor, mirrored: Tensor | None, labels: Tensor | None) -> Tensor:
        nets = self.nets
        fake = self.generate(z, labels)
        loss_d, means = self.d_loss(to_unit_range(images, mirrored), fake.detach(), labels)
        nets.adam_d.zero_grad(set_to_none=True)
        loss_d.backward()
        average_across_ranks([p.grad for p in nets.d.parameters()], self.part)
        nets.adam_d.step()
        nets.d.requires_grad_(False)  # D's weights take no gradient from G's loss
        loss_g = self.g_loss(fake, labels)
        nets.adam_g.zero_grad(set_to_none=True)
        loss_g.backward()
        average_across_ranks([p.grad for p in nets.g.parameters()], self.part)
        nets.adam_g.step()
        nets.d.requires_grad_(True)
        told = torch.cat([torch.stack([loss_d.detach(), loss_g.detach()]), means])
        # BatchNorm's statistics too: every rank has the same state after every step, and any one can save it
        buffers = [b for net in (nets.g, nets.d) for b in net.buffers() if b.is_floating_point()]
        average_across_ranks([told, *buffers], self.part)
        return told

    def mirrored(self, step: int, count: int) -> Tensor:
        """Which half of a step's images is flipped, bool [count]."""
        chance = seeded_generator(self.device, self.options.seed, FLIPS, step)
        return torch.rand(count, generator=chance, device=self.device) < 0.5

    def latents(self, step: int, count: int) -> Tensor:
        """z ~ N(0, 1), [count, latent_dim], of one step."""
        chance = seeded_generator(self.device, self.options.seed, LATENTS, step)
        return torch.randn(count, self.options.latent_dim, generator=chance, device=self.device)

    @torch.no_grad()
    def average(self, step: int) -> None:
        """Moves the average towards G: weights and BatchNorm's statistics alike; before `ema_start` it is a copy."""
        weight = 1 - self.options.ema if step >= self.options.ema_start else 1.0
        ours, theirs = (
            [t for t in net.state_dict().values() if t.is_floating_point()] for net in (self.nets.ema, self.nets.g)
        )
        torch._foreach_lerp_(ours, theirs, weight)

    @torch.no_grad()
    def grid(self) -> Tensor:
        """64 images of the average from latents that stay the same all the run: float32 [64, 3, S, S] in [0, 1].

        Of a conditional one, each row of 8 is of one class.
        """
        net = self.nets.ema.eval()
        labels = torch.arange(64, device=self.device) // 8 % net.classes if net.classes else None
        return (net(self.latents(GRID_SEED, 64), labels).float() + 1) / 2


@torch.no_grad()
def average_across_ranks(tensors: list[Tensor], part: RankSlice) -> None:
    """Replaces each tensor by its mean over all ranks, in one exchange."""
    if part.world == 1:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    torch.distributed.all_reduce(flat)
    flat /= part.world
    for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))


def step_flop(options: GanOptions) -> float:
    """Floating-point operations an image of one training step, as torch counts them."""
    trainer = GanTrainer(replace(options, compile=False, precision="fp32", conditional=None), torch.device("cpu"))
    with FlopCounterMode(display=False) as counter:
        trainer.step(0, torch.zeros(2, options.image_size, options.image_size, 3, dtype=torch.uint8))
    return counter.get_total_flops() / 2
