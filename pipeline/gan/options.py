"""The options of a DCGAN and its presets."""

import math
from dataclasses import dataclass, replace

from models.dcgan import IMAGE_SIZES
from models.gan_losses import LOSSES
from shards.errors import FairfaceError

REGULARIZERS = ("none", "r1", "r1r2", "spectral")
GAN_EXECUTION_OPTIONS = ("feed", "cuda_graphs")  # change the speed, not the result: a run may be resumed with others


@dataclass(frozen=True)
class GanOptions:
    """The options that determine a run's weights, together with the images and the number of steps.

    The defaults are those of the DCGAN as published; PRESETS override some of them. Raises FairfaceError for a value
    that is out of range, such as one in a config.json that was edited.
    """

    image_size: int = 64  # pixels
    latent_dim: int = 128
    width_g: int = 64  # channels of the generator's last hidden layer
    width_d: int = 64  # channels of the discriminator's first
    batch_size: int = 128  # images of a step, over all ranks
    loss: str = "dcgan"  # dcgan | relativistic | hinge
    regularizer: str = "none"  # of the discriminator: none | r1 | r1r2 | spectral
    gamma: float = 1.0  # weight of the gradient penalty of r1 and r1r2: it adds gamma / 2 * penalty to the loss
    penalty_every: int = 8  # steps from one gradient penalty to the next; each is multiplied by this number
    lr: float = 2e-4  # of Adam
    lr_g: float | None = None  # of the generator's Adam; None: lr
    lr_d: float | None = None  # of the discriminator's Adam; None: lr
    beta1: float = 0.5
    beta2: float = 0.999
    ema: float = 0.995  # decay per step of the generator's moving average
    ema_half_life: float | None = None  # of that average, in images; takes precedence over `ema`
    ema_start: int = 100  # step at which the average starts, as a copy of the generator
    flip: bool = True  # mirror half of the images
    diff_augment: bool = False  # the discriminator sees images through DiffAugment
    balance: str | dict[str, float] = "natural"  # natural | uniform | target shares by group
    balance_by: str = "intersection"  # label column
    conditional: str | None = None  # label column that G and D are conditioned on
    seed: int = 0
    precision: str = "auto"  # auto | bf16 | fp32
    compile: bool | None = None  # torch.compile; None: where it pays off
    cuda_graphs: bool = True  # replay a whole step as one CUDA graph, on a single GPU
    feed: str = "auto"  # auto | resident | streaming

    def __post_init__(self) -> None:
        shares = self.balance.values() if isinstance(self.balance, dict) else [math.nan]
        in_range = {
            "image_size": self.image_size in IMAGE_SIZES,
            "latent_dim": self.latent_dim >= 1,
            "width_g": self.width_g >= 1,
            "width_d": self.width_d >= 1,
            "batch_size": self.batch_size >= 2,
            "loss": self.loss in LOSSES,
            "regularizer": self.regularizer in REGULARIZERS,
            "gamma": 0 < self.gamma < math.inf,
            "penalty_every": self.penalty_every >= 1,
            "lr": 0 < self.lr < math.inf,
            "lr_g": self.lr_g is None or 0 < self.lr_g < math.inf,
            "lr_d": self.lr_d is None or 0 < self.lr_d < math.inf,
            "beta1": 0 <= self.beta1 < 1,
            "beta2": 0 <= self.beta2 < 1,
            "ema": 0 <= self.ema < 1,
            "ema_half_life": self.ema_half_life is None or 0 < self.ema_half_life < math.inf,
            "balance": self.balance in ("natural", "uniform")
            or all(isinstance(share, int | float) and 0 <= share < math.inf for share in shares),
            "seed": 0 <= self.seed < 2**63,
            "precision": self.precision in ("auto", "bf16", "fp32"),
            "feed": self.feed in ("auto", "resident", "streaming"),
        }
        if wrong := [name for name, is_valid in in_range.items() if not is_valid]:
            raise FairfaceError(f"the option {wrong[0]} can't be {getattr(self, wrong[0])!r}")

    @property
    def norm_d(self) -> str:
        """The discriminator's normalisation; a gradient penalty rules out BatchNorm, see `Discriminator`."""
        return {"none": "batch", "spectral": "spectral"}.get(self.regularizer, "none")

    @property
    def has_penalty(self) -> bool:
        """Whether there are gradient penalties: separate updates of the discriminator after some of the steps."""
        return self.regularizer in ("r1", "r1r2")

    @property
    def half_lives(self) -> tuple[float, float]:
        """The half-lives of the short and the long moving average of the generator, in images."""
        short = self.ema_half_life
        if short is None:
            short = -self.batch_size / math.log2(self.ema) if self.ema else 0.0
        return short, LONG_AVERAGE * short


LONG_AVERAGE = 4  # half-life of the long moving average, as a multiple of that of the short one

SKETCH = GanOptions(width_g=24, width_d=16, batch_size=16, loss="relativistic", regularizer="r1")

# `faces` is for real images on a GPU. `small-faces`, for real images, and `sketch`, for synthetic ones, train in
# minutes on a laptop. `faces-2016` is the DCGAN as published. docs/training.md describes how they were chosen.
PRESETS = {
    "faces": GanOptions(),
    "small-faces": replace(SKETCH, lr=4e-4, gamma=0.1),
    "sketch": replace(SKETCH, lr=8e-4),
    "faces-2016": GanOptions(),
}
