"""The options of a DCGAN and its presets."""

import math
from dataclasses import dataclass

from models.dcgan import IMAGE_SIZES
from shards.errors import FairfaceError

GAN_EXECUTION_OPTIONS = ("feed", "cuda_graphs")  # change the speed, not the result: a run may be resumed with others


@dataclass(frozen=True)
class GanOptions:
    """The options that determine a run's weights, together with the images and the number of steps.

    Raises FairfaceError for a value that is out of range, such as one in a config.json that was edited.
    """

    image_size: int = 64  # pixels
    latent_dim: int = 128
    width_g: int = 64  # channels of the generator's last hidden layer
    width_d: int = 64  # channels of the discriminator's first
    batch_size: int = 128  # images of a step, over all ranks
    lr: float = 2e-4  # of Adam
    beta1: float = 0.5
    beta2: float = 0.999
    ema: float = 0.995  # decay per step of the generator's moving average
    ema_start: int = 100  # step at which the average starts, as a copy of the generator
    flip: bool = True  # mirror half of the images
    balance: str | dict[str, float] = "natural"  # natural | uniform | target shares by group
    balance_by: str = "intersection"  # label column
    conditional: str | None = None  # label column that G and D are conditioned on
    seed: int = 0
    precision: str = "auto"  # auto | bf16 | fp32
    compile: bool | None = None  # torch.compile; None: where it pays off
    cuda_graphs: bool = False  # replay a whole step as one CUDA graph
    feed: str = "auto"  # auto | resident | streaming

    def __post_init__(self) -> None:
        shares = self.balance.values() if isinstance(self.balance, dict) else [math.nan]
        in_range = {
            "image_size": self.image_size in IMAGE_SIZES,
            "latent_dim": self.latent_dim >= 1,
            "width_g": self.width_g >= 1,
            "width_d": self.width_d >= 1,
            "batch_size": self.batch_size >= 2,
            "lr": 0 < self.lr < math.inf,
            "beta1": 0 <= self.beta1 < 1,
            "beta2": 0 <= self.beta2 < 1,
            "ema": 0 <= self.ema < 1,
            "balance": self.balance in ("natural", "uniform")
            or all(isinstance(share, int | float) and 0 <= share < math.inf for share in shares),
            "seed": 0 <= self.seed < 2**63,
            "precision": self.precision in ("auto", "bf16", "fp32"),
            "feed": self.feed in ("auto", "resident", "streaming"),
        }
        if wrong := [name for name, is_valid in in_range.items() if not is_valid]:
            raise FairfaceError(f"the option {wrong[0]} can't be {getattr(self, wrong[0])!r}")


# `faces` is the DCGAN as published, for real data and a GPU; `sketch` learns in minutes on a laptop.
PRESETS = {"faces": GanOptions(), "sketch": GanOptions(width_g=24, width_d=16, batch_size=16)}
