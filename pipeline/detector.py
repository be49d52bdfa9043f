"""One training step of a detector, and what it says of faces: on one device, compiled where that pays."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models import clip
from models.detectors import DETECTORS, Detector, Kind, Labels, Making, Weights, build
from pipeline.order import CHANCES, WHOLE, Part, generator
from pipeline.step import mean_over_ranks


@dataclass(frozen=True)
class Options:
    """What decides a detector's weights, beside the faces; the defaults are those of AI-Face's benchmark."""

    model: str = "xception"
    image_size: int = 256  # pixels
    batch_size: int = 128  # images, or pairs of a real face and a fake
    epochs: int = 10
    lr: float = 5e-4
    momentum: float = 0.9
    weight_decay: float = 5e-3
    lr_step: int = 60  # epochs after which the learning rate is multiplied by lr_gamma
    lr_gamma: float = 0.9
    pretrained: str | None = None  # a tag or a file; None: the detector's own tag
    from_scratch: bool = False
    seed: int = 0
    precision: str = "auto"  # bf16 | fp32
    compile: bool | None = None  # None: where it pays
    feed: str = "auto"  # resident | streaming

    @property
    def kind(self) -> Kind:
        return DETECTORS[self.model]

    @property
    def images(self) -> int:
        """Of a step."""
        return self.batch_size * (2 if self.kind.paired else 1)


class DetectorTrainer:
    """One training step after another; a step's randomness is a function of (seed, step, rank)."""

    figures = ("loss", "accuracy")

    def __init__(
        self,
        options: Options,
        counts: list[int],
        device: torch.device,
        per_epoch: int,
        part: Part = WHOLE,
        begun: bool = False,
    ):
        """`begun` says that a checkpoint is going to be loaded."""
        self.options, self.device, self.part, self.per_epoch = options, device, part, per_epoch
        self.net = make(options, counts, begun).to(device).train()
        self.batch = options.images
        learnt = [weight for weight in self.net.parameters() if weight.requires_grad]
        self.sgd = torch.optim.SGD(learnt, options.lr, options.momentum, weight_decay=options.weight_decay, fused=True)
        self.learn = torch.compile(self._learn, fullgraph=True) if options.compile else self._learn

    def _learn(self, images: Tensor, labels: Labels) -> tuple[Tensor, Tensor]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.precision == "bf16"):
            return self.net.learn(images, labels)

    def step(self, step: int, images: Tensor, labels: Labels) -> Tensor:
        """One update on uint8 [B, S, S, 3]; returns [loss, accuracy] on the device."""
        # dropout and random views draw from torch's own generator
        place = generator("cpu", self.options.seed, CHANCES, step, self.part.rank)
        torch.manual_seed(place.initial_seed())
        for group in self.sgd.param_groups:
            group["lr"] = self.options.lr * self.options.lr_gamma ** (step // self.per_epoch // self.options.lr_step)
        loss, logits = self.learn(self.options.kind.normalised(images, self.options.image_size), labels)
        self.sgd.zero_grad(set_to_none=True)
        loss.backward()
        learnt = self.sgd.param_groups[0]["params"]
        mean_over_ranks([weight.grad for weight in learnt if weight.grad is not None], self.part)
        self.sgd.step()
        right = ((logits.detach() >= 0) == (labels.target == 1)).float().mean()
        told = torch.stack([loss.detach().float(), right])
        mean_over_ranks([told, *(b for b in self.net.buffers() if b.is_floating_point())], self.part)
        return told

    def line(self, values: Sequence[float]) -> str:
        """Loss and accuracy for a person."""
        return f"loss {values[0]:.3f}, accuracy {values[1]:.3f}"

    def state(self) -> dict:
        """All that continuing needs; what never changes is left out."""
        return {"net": changing(self.net), "sgd": self.sgd.state_dict()}

    def load(self, state: dict) -> None:
        """Takes a checkpoint's state."""
        take(self.net, state["net"])
        self.sgd.load_state_dict(state["sgd"])


def make(options: Options, counts: list[int], begun: bool = False) -> Detector:
    """The detector that the options name, on the CPU; `counts` are the images of each group that it learns from.

    Where a checkpoint is going to be loaded, nothing is pretrained but what no checkpoint holds.
    """
    scratch = options.from_scratch or (begun and not options.kind.frozen)
    weights = Weights(None if scratch else options.pretrained, scratch)
    return build(options.model, Making(weights, options.image_size, counts), options.seed)


def frozen(net: torch.nn.Module) -> set[str]:
    """The names of the weights that do not learn."""
    return {name for name, weight in net.named_parameters() if not weight.requires_grad}


def frozen_mark(net: torch.nn.Module) -> str | None:
    """Changes when the frozen weights do; None where there are none."""
    still = frozen(net)
    held = torch.nn.ParameterDict({name.replace(".", "/"): p for name, p in net.named_parameters() if name in still})
    return clip.fingerprint(held) if still else None


def changing(net: torch.nn.Module) -> dict[str, Tensor]:
    """The state of all but the frozen weights, which are another model's own."""
    still = frozen(net)
    return {name: value for name, value in net.state_dict().items() if name not in still}


def take(net: torch.nn.Module, state: dict[str, Tensor]) -> None:
    """Loads what `changing` made. ValueError for the state of another network."""
    try:
        missing, strange = net.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise ValueError(f"the checkpoint is another network's ({str(error).splitlines()[-1].strip()})") from error
    if strange or set(missing) - frozen(net):
        raise ValueError(f"the checkpoint is another network's (it has {(strange or ['less'])[0]})")


@torch.inference_mode()
def logits_of(net: Detector, options: Options, images: Tensor, resize: bool = True) -> Tensor:
    """What a detector in evaluation mode says of uint8 [B, S, S, 3]: float32 [B] on its device; 0 or more: fake."""
    device = images.device.type
    with torch.autocast(device, torch.bfloat16, enabled=options.precision == "bf16"):
        return net(options.kind.normalised(images, options.image_size if resize else None)).float()
