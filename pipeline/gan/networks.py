"""The networks and optimizers of a DCGAN's training as one state."""

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch

from models.dcgan import Discriminator, Generator
from pipeline.gan.options import GanOptions

STATES = ("g", "d", "ema", "ema_long", "adam_g", "adam_d")


@dataclass
class Networks:
    """Generator, discriminator, two moving averages of the generator and the two optimizers."""

    g: Generator
    d: Discriminator
    ema: Generator
    ema_long: Generator  # its half-life is LONG_AVERAGE times that of `ema`
    adam_g: torch.optim.Adam
    adam_d: torch.optim.Adam

    @classmethod
    def new(cls, options: GanOptions, device: torch.device, *, classes: int = 0) -> "Networks":
        """Build untrained networks on `device`, a function of the seed alone; `classes` is 0 for unconditional ones."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)
            g, d = build_networks(options, classes=classes)
        for network in (g, d):
            network.to(device).to(memory_format=torch.channels_last)
        adam_g, adam_d = (
            torch.optim.Adam(net.parameters(), lr or options.lr, (options.beta1, options.beta2), fused=True)
            for net, lr in ((g, options.lr_g), (d, options.lr_d))
        )
        ema, ema_long = (deepcopy(g).requires_grad_(False) for _ in range(2))
        networks = cls(g, d, ema, ema_long, adam_g, adam_d)
        networks._set_capturable()
        return networks

    def parameters(self) -> dict[str, int]:
        """The number of parameters of the generator and of the discriminator."""
        networks = {"generator": self.g, "discriminator": self.d}
        return {name: sum(p.numel() for p in net.parameters()) for name, net in networks.items()}

    def checkpoint_bytes(self) -> int:
        """The size of a checkpoint, about: G, D, the moving averages of G, and Adam's two averages of each gradient."""
        count = self.parameters()
        return 4 * (5 * count["generator"] + 3 * count["discriminator"])

    def state(self) -> dict[str, Any]:
        """Everything that resuming needs."""
        return {name: getattr(self, name).state_dict() for name in STATES}

    def load(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned. Raises the errors of `load_state_dict` for the state of other networks."""
        for name in STATES:
            getattr(self, name).load_state_dict(state["ema" if name not in state and name == "ema_long" else name])
        for adam in (self.adam_g, self.adam_d):
            for weight, averages in adam.state.items():
                if any(value.shape not in ((), weight.shape) for value in averages.values()):
                    raise ValueError("Adam's averages have another shape than the weights")
        self._set_capturable()

    def _set_capturable(self) -> None:
        """Let a CUDA graph capture the optimizers on a GPU, whatever machine a checkpoint was saved on."""
        for adam in (self.adam_g, self.adam_d):
            for group in adam.param_groups:
                group["capturable"] = group["params"][0].device.type == "cuda"


def build_networks(options: GanOptions, *, classes: int = 0) -> tuple[Generator, Discriminator]:
    """Build a generator and a discriminator on torch's default device, with its default random generator."""
    g = Generator(options.latent_dim, options.width_g, image_size=options.image_size, classes=classes)
    return g, Discriminator(options.width_d, options.image_size, classes=classes, norm=options.norm_d)


def step_memory(options: GanOptions, *, images: int, classes: int = 0) -> int:
    """The bytes that a training step on `images` images needs at least, without building the networks."""
    with torch.device("meta"):
        g, d = build_networks(options, classes=classes)
    weights_g, weights_d = (sum(p.numel() for p in net.parameters()) for net in (g, d))
    weights = 4 * (6 * weights_g + 4 * weights_d)  # with gradients, Adam's averages and the moving averages
    # of G and, for real and for fake images, of D; half of what an eager step in float32 takes
    activations = 2 * images * (options.width_g + 2 * options.width_d) * options.image_size**2
    return weights + activations
