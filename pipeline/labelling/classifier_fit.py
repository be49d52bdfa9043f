"""Fits the classifier to annotated images."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from models.classifier import FaceClassifier, uses_bf16
from pipeline.data.random_streams import CLASSIFIER_AUGMENTATION, CLASSIFIER_ORDER, seeded_generator
from pipeline.threads import choose_threads, requested_threads, restored_state, restored_threads
from pipeline.training import checkpoint

BATCH, LR, WARM_UP, DECAY = 64, 4e-3, 0.2, 0.05  # WARM_UP is a share of the steps
SMOOTHING = 0.1  # of the labels
ADJUSTMENT = 0.5  # of the logits by the logarithms of the class shares: 0 favours accuracy, 1 balanced accuracy
IMAGES_SEEN = 96_000  # over all epochs
MIN_EPOCHS, MAX_EPOCHS = 4, 40
REDUCED_SIZES = (0.5, 0.75, 1.0)  # shares of the full side, in successive thirds of the epochs
MAX_SHIFT, MAX_ZOOM = 4 / 64, 0.1  # shares of the side
CONTRAST, BRIGHTNESS, TINT = 0.3, 0.3, 0.1  # largest changes, in standard deviations of the pixels
# Samples are often blurred or noisy compared with photographs, which must not change their labels. Half of the images
# are blurred, half of them noisy, by up to these standard deviations, in pixels and in grey levels.
BLUR, NOISE = 1.2, 12.0

RECIPE = [BATCH, LR, WARM_UP, DECAY, SMOOTHING, ADJUSTMENT, IMAGES_SEEN, MIN_EPOCHS, MAX_EPOCHS, *REDUCED_SIZES]
RECIPE += [BLUR, NOISE]


@dataclass(frozen=True)
class FitImages:
    """Images on the device that a classifier is fitted on, and their classes."""

    images: Tensor  # uint8 [N, 3, S, S]
    classes: Mapping[str, Tensor]  # int64 [N], below the number of classes; -1 where an image has no annotation
    counts: Mapping[str, int]  # number of classes of each attribute

    @cached_property
    def priors(self) -> dict[str, Tensor]:
        """The `log_priors` of the classes of each attribute."""
        return {name: log_priors(classes, self.counts[name]) for name, classes in self.classes.items()}


@dataclass(frozen=True)
class FitConfig:
    """How a classifier is fitted."""

    seed: int = 0
    epochs: int | None = None  # None: as many as IMAGES_SEEN allow
    checkpoints: Path | None = None  # folder for the state after every epoch
    progress: bool = True

    def count_epochs(self, images: int) -> int:
        return self.epochs or min(max(round(IMAGES_SEEN / images), MIN_EPOCHS), MAX_EPOCHS)


def fit_classifier(data: FitImages, config: FitConfig) -> FaceClassifier:
    """Fit a classifier to images; an interrupted fit continues after the last epoch in `config.checkpoints`.

    The weights depend only on the images and the seed, however often the fit was interrupted. On CPUs of the same kind
    they are bit-identical if the number of threads is the same; a resumed fit keeps its number.
    """
    device, epochs = data.images.device, config.count_epochs(len(data.images))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = FaceClassifier(data.counts)
    model.fit_standardisation(data.images)
    model = model.to(device).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(parameter_groups(model), LR, fused=True)
    first, threads = resume(config.checkpoints, model, optimizer=optimizer)
    with restored_threads():
        if device.type == "cpu":
            threads = requested_threads() or threads or choose_fit_threads(model, optimizer, data=data, epochs=epochs)
            torch.set_num_threads(threads)
        fit_epochs(model, optimizer, data=data, config=config, first=first, threads=threads)
    return model.eval()


def fit_epochs(
    model: FaceClassifier,
    optimizer: torch.optim.Optimizer,
    *,
    data: FitImages,
    config: FitConfig,
    first: int,
    threads: int | None,
) -> None:
    """Run the epochs from number `first` on; after each, save the state together with the number of `threads`."""
    epochs = config.count_epochs(len(data.images))
    total = epochs * len(data.images)
    with tqdm(total=total, desc="fitting classifier", unit="img", disable=not config.progress, leave=False) as bar:
        bar.update(first * len(data.images))
        for epoch in range(first, epochs):
            loss = fit_epoch(model, optimizer, data=data, epoch=epoch, epochs=epochs, seed=config.seed)
            bar.set_postfix(loss=f"{loss:.2f}", refresh=False)
            bar.update(len(data.images))
            if config.checkpoints:
                state = {"networks": dict(model.state_dict()), "optimizer": optimizer.state_dict(), "threads": threads}
                checkpoint.save(config.checkpoints, epoch + 1, state, keep=1)


def parameter_groups(model: FaceClassifier) -> list[dict[str, Any]]:
    """The parameters in two groups: matrices, with weight decay, and scales and biases, without."""
    matrices = [weights for weights in model.parameters() if weights.ndim > 1]
    others = [weights for weights in model.parameters() if weights.ndim <= 1]
    return [{"params": matrices, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]


def resume(folder: Path | None, model: FaceClassifier, *, optimizer: torch.optim.Optimizer) -> tuple[int, int | None]:
    """Load the newest intact state in a folder.

    Returns the number of finished epochs, which is 0 without a state, and the number of threads that was used for them.
    """
    for path in reversed(checkpoint.list_checkpoints(folder) if folder else []):
        if checkpoint.find_fault(path) is None:
            state = checkpoint.load(path, next(model.parameters()).device)
            model.load_state_dict(state["networks"])
            optimizer.load_state_dict(state["optimizer"])
            return int(state["step"]), state.get("threads")
    return 0, None


def fit_epoch(
    model: FaceClassifier, optimizer: torch.optim.Optimizer, *, data: FitImages, epoch: int, epochs: int, seed: int
) -> float:
    """Fit to every image once; returns the mean loss of the last batches."""
    device, size = data.images.device, reduced_size(data.images.shape[2], epoch, epochs=epochs)
    order = torch.randperm(len(data.images), generator=seeded_generator("cpu", seed, CLASSIFIER_ORDER, epoch))
    batches = order.split(BATCH) if len(order) < BATCH else order[: len(order) // BATCH * BATCH].split(BATCH)
    losses = []
    for number, rows in enumerate(batches):
        step = epoch * len(batches) + number
        for group in optimizer.param_groups:
            group["lr"] = LR * one_cycle(step / (epochs * len(batches)))
        rng = seeded_generator("cpu", seed, CLASSIFIER_AUGMENTATION, step)
        losses.append(fit_batch(model, optimizer, data=data, rows=rows.to(device), size=size, rng=rng))
    return torch.stack(losses[-20:]).mean().item()


def fit_batch(
    model: FaceClassifier,
    optimizer: torch.optim.Optimizer,
    *,
    data: FitImages,
    rows: Tensor,
    size: int,
    rng: torch.Generator,
) -> Tensor:
    """Fit to the images `rows`, int64 [B], augmented to a side of `size` pixels; returns the loss, float32 []."""
    device = rows.device
    pixels = augment(data.images[rows], size, standardise=model.standardise, rng=rng)
    with torch.autocast(device.type, torch.bfloat16, enabled=uses_bf16(device)):
        logits = model(pixels)
    loss = torch.stack(
        [masked_loss(logits[name] + data.priors[name], classes[rows]) for name, classes in data.classes.items()]
    ).sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


def choose_fit_threads(model: FaceClassifier, optimizer: torch.optim.Optimizer, *, data: FitImages, epochs: int) -> int:
    """Choose the number of threads with which a fit is fastest on a CPU, by fitting to one batch and undoing that."""
    rows, rng, size = torch.arange(min(BATCH, len(data.images))), torch.Generator(), data.images.shape[2]

    def time_batch(count: int) -> float:
        torch.set_num_threads(count)
        start = time.perf_counter()
        fit_batch(model, optimizer, data=data, rows=rows, size=size, rng=rng)
        return time.perf_counter() - start

    with restored_state(model, optimizer):
        return choose_threads(time_batch, steps=epochs * len(data.images) // BATCH, step_images=len(rows)).count


def one_cycle(position: float) -> float:
    """The share of the highest learning rate at a position of the fit, 0-1: a linear rise, then half a cosine."""
    if position < WARM_UP:
        return 0.05 + 0.95 * position / WARM_UP
    return (1 + math.cos(math.pi * (position - WARM_UP) / (1 - WARM_UP))) / 2


def reduced_size(size: int, epoch: int, *, epochs: int) -> int:
    """The side of the images in an epoch, a multiple of 8: the first epochs see smaller images, which costs less."""
    share = REDUCED_SIZES[epoch * len(REDUCED_SIZES) // epochs]
    return max(round(size * share / 8) * 8, min(size, 16))


def log_priors(classes: Tensor, count: int) -> Tensor:
    """ADJUSTMENT times the logarithms of the classes' shares, float32 [count].

    Added to the logits in the loss, it shifts the fit towards equal recalls: Menon et al. 2021
    (arXiv:2007.07314), equation 10.
    """
    # at least 1: among many images, the fit half may have none of a class with MIN_CLASS_IMAGES
    counts = torch.bincount(classes[classes >= 0], minlength=count).clamp(min=1).float()
    return ADJUSTMENT * (counts / counts.sum()).log()


def masked_loss(logits: Tensor, classes: Tensor) -> Tensor:
    """Cross-entropy of logits [B, K] with smoothed labels of classes [B]; a class of -1 counts as a loss of 0."""
    loss = F.cross_entropy(logits, classes, ignore_index=-1, label_smoothing=SMOOTHING, reduction="sum")
    return loss / len(classes)


def augment(images: Tensor, size: int, *, standardise: Callable[[Tensor], Tensor], rng: torch.Generator) -> Tensor:
    """Randomly degrade, flip, shift and zoom uint8 images [B, 3, S, S], and change their contrast, brightness and tint.

    Returns float32 [B, 3, size, size], standardised. Pixels from outside the image are filled by reflection.
    """
    count, device = len(images), images.device

    def random(*shape: int) -> Tensor:
        return (2 * torch.rand(*shape, generator=rng) - 1).to(device)

    pixels = images.float()
    degrade(pixels, rng)
    if size < pixels.shape[2]:
        pixels = F.interpolate(pixels, (size, size), mode="bilinear", antialias=True)
    zoom = 1 + MAX_ZOOM * random(count)
    affine = torch.zeros(count, 2, 3, device=device)
    affine[:, 0, 0], affine[:, 1, 1] = zoom * random(count).sign(), zoom
    affine[:, :, 2] = 2 * MAX_SHIFT * random(count, 2)  # a side is 2 long in these coordinates
    grid = F.affine_grid(affine, [count, 3, size, size], align_corners=False)
    pixels = standardise(F.grid_sample(pixels, grid, padding_mode="reflection", align_corners=False))
    brightness = BRIGHTNESS * random(count, 1, 1, 1) + TINT * random(count, 3, 1, 1)
    return pixels * (1 + CONTRAST * random(count, 1, 1, 1)) + brightness


def degrade(pixels: Tensor, rng: torch.Generator) -> None:
    """Blur half of the images, and add noise to half of them, in place; a quarter remains as it is.

    `pixels` are float32 [B, 3, S, S] in 0-255, of images in random order.
    """
    count, device = len(pixels), pixels.device
    blurred, noisy = pixels[: count // 2], pixels[count // 4 : count // 4 + count // 2]
    reach = math.ceil(2 * BLUR)
    squares = torch.arange(-reach, reach + 1) ** 2
    kernel = torch.softmax(-squares / (2 * BLUR**2), 0).to(device).expand(3, 1, 1, -1)
    padded = F.pad(blurred, (reach,) * 4, mode="reflect")
    smooth = F.conv2d(F.conv2d(padded, kernel, groups=3), kernel.transpose(2, 3), groups=3)
    blurred.lerp_(smooth, torch.rand(len(blurred), 1, 1, 1, generator=rng).to(device))
    deviation = NOISE * torch.rand(len(noisy), 1, 1, 1, generator=rng)
    noisy.add_((deviation * torch.randn(noisy.shape, generator=rng)).to(device))
