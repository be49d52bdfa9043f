"""One training step of a detector, and what it says of faces: on one device, compiled where that pays."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models import clip
from models.detectors import DETECTORS, BuildConfig, Detector, DetectorSpec, Labels, Weights, build_detector_network
from pipeline.data.random_streams import DETECTOR_STEPS, seeded_generator
from pipeline.data.sampler import SINGLE_RANK, RankSlice
from pipeline.gan.trainer import average_across_ranks
from shards.errors import FairfaceError

EXECUTION_OPTIONS = ("feed",)  # how the same steps are come by: a training may go on in another


@dataclass(frozen=True)
class DetectorOptions:
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
    def kind(self) -> DetectorSpec:
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
        options: DetectorOptions,
        counts: list[int],
        device: torch.device,
        per_epoch: int,
        part: RankSlice = SINGLE_RANK,
        begun: bool = False,
    ):
        """`begun` says that a checkpoint is going to be loaded."""
        self.options, self.device, self.part, self.per_epoch = options, device, part, per_epoch
        self.net = build_detector(options, counts, begun).to(device).train()
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
        place = seeded_generator("cpu", self.options.seed, DETECTOR_STEPS, step, self.part.rank)
        torch.manual_seed(place.initial_seed())
        for group in self.sgd.param_groups:
            group["lr"] = self.options.lr * self.options.lr_gamma ** (step // self.per_epoch // self.options.lr_step)
        loss, logits = self.learn(self.options.kind.normalised(images, self.options.image_size), labels)
        self.sgd.zero_grad(set_to_none=True)
        loss.backward()
        learnt = self.sgd.param_groups[0]["params"]
        average_across_ranks([weight.grad for weight in learnt if weight.grad is not None], self.part)
        self.sgd.step()
        right = ((logits.detach() >= 0) == (labels.target == 1)).float().mean()
        told = torch.stack([loss.detach().float(), right])
        average_across_ranks([told, *(b for b in self.net.buffers() if b.is_floating_point())], self.part)
        return told

    def line(self, values: Sequence[float]) -> str:
        """Loss and accuracy for a person."""
        return f"loss {values[0]:.3f}, accuracy {values[1]:.3f}"

    def state(self) -> dict:
        """All that continuing needs; what never changes is left out."""
        return {"net": trainable_state(self.net), "sgd": self.sgd.state_dict()}

    def load(self, state: dict) -> None:
        """Takes a checkpoint's state."""
        load_trainable(self.net, state["net"])
        self.sgd.load_state_dict(state["sgd"])


def build_detector(options: DetectorOptions, counts: list[int], begun: bool = False) -> Detector:
    """The detector that the options name, on the CPU; `counts` are the images of each group that it learns from.

    Where a checkpoint is going to be loaded, nothing is pretrained but what no checkpoint holds.
    """
    scratch = options.from_scratch or (begun and not options.kind.frozen)
    weights = Weights(None if scratch else options.pretrained, scratch)
    return build_detector_network(options.model, BuildConfig(weights, options.image_size, counts), options.seed)


def frozen_names(net: torch.nn.Module) -> set[str]:
    """The names of the weights that do not learn."""
    return {name for name, weight in net.named_parameters() if not weight.requires_grad}


def frozen_hash(net: torch.nn.Module) -> str | None:
    """Changes when the frozen weights do; None where there are none."""
    still = frozen_names(net)
    held = torch.nn.ParameterDict({name.replace(".", "/"): p for name, p in net.named_parameters() if name in still})
    return clip.weights_hash(held) if still else None


def trainable_state(net: torch.nn.Module) -> dict[str, Tensor]:
    """The state of all but the frozen weights, which are another model's own."""
    still = frozen_names(net)
    return {name: value for name, value in net.state_dict().items() if name not in still}


def load_trainable(net: torch.nn.Module, state: dict[str, Tensor]) -> None:
    """Loads what `changing` made. FairfaceError for the state of another network."""
    try:
        missing, strange = net.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise FairfaceError(f"the checkpoint is another network's ({str(error).splitlines()[-1].strip()})") from error
    if strange or set(missing) - frozen_names(net):
        raise FairfaceError(f"the checkpoint is another network's (it has {(strange or ['less'])[0]})")


@torch.inference_mode()
def detector_logits(net: Detector, options: DetectorOptions, images: Tensor, resize: bool = True) -> Tensor:
    """What a detector in evaluation mode says of uint8 [B, S, S, 3]: float32 [B] on its device; 0 or more: fake."""
    device = images.device.type
    with torch.autocast(device, torch.bfloat16, enabled=options.precision == "bf16"):
        return net(options.kind.normalised(images, options.image_size if resize else None)).float()


def check_frozen_weights(net: Detector, config: dict) -> None:
    """FairfaceError where the weights that no checkpoint holds are others than those that were trained on."""
    if config.get("frozen") and config["frozen"] != frozen_hash(net):
        raise FairfaceError(
            f"{config['detector']} was trained on other weights of its backbone than --pretrained names now: give "
            "those, or replace it with --force"
        )
