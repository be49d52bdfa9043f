"""One training step of a detector on one device, compiled where that is faster."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from models.detectors import OPTIMIZERS, FrozenFeatureDetector, Labels
from pipeline.data.random_streams import DETECTOR_STEPS, seeded_generator
from pipeline.data.sampler import SINGLE_RANK, RankSlice
from pipeline.detection.network import build_detector, load_trainable, move_to_device, trainable_state
from pipeline.detection.options import DetectorOptions
from pipeline.training.distributed import average_across_ranks


class DetectorTrainer:
    """Performs training steps; a step's randomness is a function of (seed, step, rank)."""

    metric_names = ("loss", "accuracy")

    def __init__(
        self,
        options: DetectorOptions,
        group_counts: Sequence[int],
        *,
        device: torch.device,
        steps_per_epoch: int,
        rank_slice: RankSlice = SINGLE_RANK,
        resuming: bool = False,  # a checkpoint will be loaded
    ):
        self.options, self.device, self.rank_slice = options, device, rank_slice
        self.steps_per_epoch, self.batch_size = steps_per_epoch, options.images_per_step
        self.net = move_to_device(build_detector(options, group_counts, resuming=resuming), device).train()
        self.weights = [weight for weight in self.net.parameters() if weight.requires_grad]
        self.statistics = [buffer for buffer in self.net.buffers() if buffer.is_floating_point()]  # of BatchNorm
        self.optimizer = build_optimizer(options, self.weights)
        self.compute_loss = torch.compile(self._compute_loss, fullgraph=True) if options.compile else self._compute_loss

    def _compute_loss(self, images: Tensor, labels: Labels) -> tuple[Tensor, Tensor]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.precision == "bf16"):
            if images.ndim == 2 and isinstance(self.net, FrozenFeatureDetector):
                return self.net.training_step_from_features(images, labels)
            return self.net.training_step(images, labels)

    def step(self, step: int, images: Tensor, labels: Labels) -> Tensor:
        """One update on images uint8 [B, S, S, 3], or on their features float16 [B, D].

        Returns [loss, accuracy], float32, on the device.
        """
        # dropout and random views use torch's global generator
        generator = seeded_generator("cpu", self.options.seed, DETECTOR_STEPS, step, self.rank_slice.rank)
        torch.manual_seed(generator.initial_seed())
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(step)
        if images.dtype == torch.uint8:
            images = self.options.spec.normalise(images, self.options.image_size)
        loss, logits = self.compute_loss(images, labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        gradients = [weight.grad for weight in self.weights if weight.grad is not None]
        average_across_ranks(gradients, self.rank_slice)
        self.optimizer.step()
        accuracy = ((logits.detach() >= 0) == (labels.target == 1)).float().mean()
        metrics = torch.stack([loss.detach().float(), accuracy])
        average_across_ranks([metrics, *self.statistics], self.rank_slice)
        return metrics

    def learning_rate(self, step: int) -> float:
        """Decays by `lr_gamma` every `lr_step` epochs."""
        return self.options.lr * self.options.lr_gamma ** (step // self.steps_per_epoch // self.options.lr_step)

    @property
    def checkpoint_bytes(self) -> int:
        """The size of a checkpoint: the weights, and SGD's momentum or Adam's two averages, in float32."""
        averages = 1 if self.options.spec.optimizer == "sgd" else 2
        return 4 * (1 + averages) * sum(weight.numel() for weight in self.weights)

    def summary(self, values: Sequence[float]) -> str:
        """Loss and accuracy in one line."""
        return f"loss {values[0]:.3f}, accuracy {values[1]:.3f}"

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds: all that changes during training."""
        return {"net": trainable_state(self.net), "sgd": self.optimizer.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Load a checkpoint's state. Raises FairfaceError for the state of another network."""
        load_trainable(self.net, state["net"])
        self.optimizer.load_state_dict(state["sgd"])


def build_optimizer(options: DetectorOptions, weights: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """Build the optimizer of the detector's spec; for Adam and AdamW, `momentum` is beta1."""
    name = options.spec.optimizer
    moving = {"momentum": options.momentum} if name == "sgd" else {"betas": (options.momentum, 0.999)}
    return OPTIMIZERS[name](weights, lr=options.lr, weight_decay=options.weight_decay, fused=True, **moving)
