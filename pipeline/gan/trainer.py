"""One training step of the DCGAN on one device, compiled or captured as a CUDA graph where that pays off."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from models.diff_augment import RANDOM_NUMBERS, diff_augment
from models.gan_losses import LOSSES, gradient_penalty
from pipeline.data.loader import to_unit_range
from pipeline.data.random_streams import FLIPS, GAN_AUGMENTATION, LATENTS, seeded_generator
from pipeline.data.sampler import SINGLE_RANK, RankSlice
from pipeline.gan.cuda_graph import CapturedStep
from pipeline.gan.networks import Networks
from pipeline.gan.options import GanOptions
from pipeline.training.distributed import average_across_ranks

GRID_SEED = 2**31  # the step of the grid's latents, which no training reaches
GRID_IMAGES, GRID_ROW = 64, 8


class GanTrainer:
    """Performs training steps on `device`; a step's randomness is a function of (seed, step)."""

    metric_names = ("loss_d", "loss_g", "d_real", "d_fake")

    def __init__(
        self,
        options: GanOptions,
        device: torch.device,
        *,
        rank_slice: RankSlice = SINGLE_RANK,
        classes: int = 0,
    ):
        """`classes` is the number of labels that the networks are conditioned on, 0 for unconditional ones."""
        self.options, self.device, self.rank_slice, self.batch_size = options, device, rank_slice, options.batch_size
        self.networks = Networks.new(options, device, classes=classes)

        def wrap(function: Callable) -> Callable:
            return torch.compile(function, fullgraph=True) if options.compile else function

        self.generate, self.d_loss, self.g_loss = wrap(self._generate), wrap(self._d_loss), wrap(self._g_loss)
        self.update: Callable[..., Tensor] = self._update
        self.penalize: Callable[..., Tensor] = self._penalize
        if options.cuda_graphs and device.type == "cuda" and rank_slice.world_size == 1:
            self.update = CapturedStep(self._update, self.networks)
            self.penalize = CapturedStep(self._penalize, self.networks)

    def summary(self, values: Sequence[float]) -> str:
        """The losses as text."""
        return f"D {values[0]:.2f} G {values[1]:.2f}"

    def state(self) -> dict[str, Any]:
        """The state that resuming needs."""
        return self.networks.state()

    def load(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        self.networks.load(state)

    def step(self, step: int, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Update D, then G, on uint8 [B, S, S, 3]; returns [loss_d, loss_g, d_real, d_fake], float32 on the device.

        B is this rank's share of the batch. Conditional networks take the labels int64 [B] of the images, and the
        fakes are generated for the same labels. G's step reuses the fakes of D's step, as in the original, so that G
        runs forward only once. Every `penalty_every` steps, D is also updated by its gradient penalty.
        """
        world_size, rank = self.rank_slice.world_size, self.rank_slice.rank
        batch, share = len(images) * world_size, slice(len(images) * rank, len(images) * (rank + 1))
        options, augmentations = self.options, None
        mirrored = self.mirrored(step, batch)[share] if options.flip else None
        if options.diff_augment:
            augmentations = self.augmentations(step, batch)[:, share]
        inputs = images, self.latents(step, batch)[share], mirrored, labels, augmentations
        metrics = self.update(*inputs)
        if options.has_penalty and step % options.penalty_every == 0:
            self.penalize(*inputs)
        self._update_averages(step)
        return metrics

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.precision == "bf16")

    def _generate(self, z: Tensor, labels: Tensor | None) -> Tensor:
        with self._autocast():
            return self.networks.g(z, labels)

    def _d_loss(
        self, real: Tensor, fake: Tensor, labels: Tensor | None, augmentations: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return D's loss, its mean outputs s(D) for real and generated images, [2], and the real logits, [B]."""
        real, fake = _augment(real, augmentations, 0), _augment(fake, augmentations, 1)
        with self._autocast():
            real, fake = self.networks.d(real, labels), self.networks.d(fake, labels)
        means = torch.stack([real.float().sigmoid().mean(), fake.float().sigmoid().mean()]).detach()
        return LOSSES[self.options.loss][0](real, fake), means, real.detach()

    def _g_loss(self, real: Tensor, fake: Tensor, labels: Tensor | None, augmentations: Tensor | None) -> Tensor:
        """The generator's loss; `real` are the logits of real images before D's update, which saves a forward pass."""
        fake = _augment(fake, augmentations, 2)
        with self._autocast():
            return LOSSES[self.options.loss][1](real, self.networks.d(fake, labels))

    def _update(
        self,
        images: Tensor,
        z: Tensor,
        mirrored: Tensor | None,
        labels: Tensor | None,
        augmentations: Tensor | None,
    ) -> Tensor:
        networks = self.networks
        fake = self.generate(z, labels)
        loss_d, means, real = self.d_loss(to_unit_range(images, mirrored), fake.detach(), labels, augmentations)
        self._step_d(loss_d)
        networks.d.requires_grad_(False)  # D's weights get no gradient from G's loss
        loss_g = self.g_loss(real, fake, labels, augmentations)
        networks.adam_g.zero_grad(set_to_none=True)
        loss_g.backward()
        average_across_ranks(_gradients(networks.g), self.rank_slice)
        networks.adam_g.step()
        networks.d.requires_grad_(True)
        metrics = torch.cat([torch.stack([loss_d.detach(), loss_g.detach()]), means])
        # with BatchNorm's statistics, so that every rank has the same state after every step and any rank can save it
        average_across_ranks([metrics, *_buffers(networks.g), *_buffers(networks.d)], self.rank_slice)
        return metrics

    def _step_d(self, loss: Tensor) -> None:
        networks = self.networks
        networks.adam_d.zero_grad(set_to_none=True)
        loss.backward()
        average_across_ranks(_gradients(networks.d), self.rank_slice)
        networks.adam_d.step()

    def _penalize(
        self,
        images: Tensor,
        z: Tensor,
        mirrored: Tensor | None,
        labels: Tensor | None,
        augmentations: Tensor | None,
    ) -> Tensor:
        """Update D by its gradient penalty, weighted for `penalty_every` steps; returns the penalty, float32 [].

        A step of its own, as in StyleGAN2 (Karras et al. 2020, arXiv:1912.04958, section 3.1). It is always eager and
        in float32: torch.compile has no second derivatives, and in bfloat16 they are mostly noise.
        """
        d, options = self.networks.d, self.options
        penalty = gradient_penalty(d, _augment(to_unit_range(images, mirrored), augmentations, 0), labels)
        if options.regularizer == "r1r2":
            with torch.no_grad():
                fake = _augment(self.generate(z, labels), augmentations, 1)
            average_across_ranks(_buffers(self.networks.g), self.rank_slice)  # generating has changed them
            penalty = penalty + gradient_penalty(d, fake.float(), labels)
        self._step_d(options.gamma / 2 * options.penalty_every * penalty)
        return penalty.detach()

    def mirrored(self, step: int, count: int) -> Tensor:
        """A random mask of the images that a step flips, each with probability 0.5, bool [count] on the device."""
        generator = seeded_generator(self.device, self.options.seed, FLIPS, step)
        return torch.rand(count, generator=generator, device=self.device) < 0.5

    def latents(self, step: int, count: int) -> Tensor:
        """z ~ N(0, 1) of one step, float32 [count, latent_dim] on the device."""
        generator = seeded_generator(self.device, self.options.seed, LATENTS, step)
        return torch.randn(count, self.options.latent_dim, generator=generator, device=self.device)

    def augmentations(self, step: int, count: int) -> Tensor:
        """Random numbers for DiffAugment, float32 [3, count, 5]: for D's real and generated images, and in G's loss."""
        generator = seeded_generator(self.device, self.options.seed, GAN_AUGMENTATION, step)
        return torch.rand(3, count, RANDOM_NUMBERS, generator=generator, device=self.device)

    @torch.no_grad()
    def _update_averages(self, step: int) -> None:
        """Update the averages of G's weights and BatchNorm statistics; before `ema_start` they are copies of G."""
        options, networks = self.options, self.networks
        current = _float_tensors(networks.g)
        for average, half_life in zip((networks.ema, networks.ema_long), options.half_lives, strict=True):
            decay = 0.5 ** (options.batch_size / half_life) if half_life else 0.0
            torch._foreach_lerp_(_float_tensors(average), current, 1 - decay if step >= options.ema_start else 1.0)

    @torch.no_grad()
    def grid(self) -> Tensor:
        """Generate 64 images with the moving average from fixed latents: float32 [64, 3, S, S] in [0, 1].

        With a conditional generator, each row of 8 shows one class.
        """
        net = self.networks.ema.eval()
        rows = torch.arange(GRID_IMAGES, device=self.device) // GRID_ROW
        labels = rows % net.classes if net.classes else None
        return (net(self.latents(GRID_SEED, GRID_IMAGES), labels).float() + 1) / 2


def _augment(images: Tensor, augmentations: Tensor | None, use: int) -> Tensor:
    return images if augmentations is None else diff_augment(images, augmentations[use])


def _float_tensors(network: torch.nn.Module) -> list[Tensor]:
    return [tensor for tensor in network.state_dict().values() if tensor.is_floating_point()]


def _buffers(network: torch.nn.Module) -> list[Tensor]:
    return [buffer for buffer in network.buffers() if buffer.is_floating_point()]


def _gradients(network: torch.nn.Module) -> list[Tensor]:
    return [weight.grad for weight in network.parameters() if weight.grad is not None]


def step_flop(options: GanOptions) -> float:
    """Floating-point operations per image of one training step without gradient penalty, as counted by torch."""
    plain = replace(options, compile=False, precision="fp32", conditional=None, diff_augment=False)
    # torch can't count the operations of second derivatives: the step that is taken must have no penalty
    trainer = GanTrainer(replace(plain, penalty_every=2), torch.device("cpu"))
    with FlopCounterMode(display=False) as counter:
        trainer.step(1, torch.zeros(2, options.image_size, options.image_size, 3, dtype=torch.uint8))
    return counter.get_total_flops() / 2
