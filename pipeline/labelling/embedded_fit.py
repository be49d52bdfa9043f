"""Fits the embedded labeller to synthetic faces and their captions, by CLIP's own loss."""

import itertools
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from models import clip
from pipeline.labelling.embedded_model import (
    ATTRIBUTES,
    PREPROCESS,
    PROMPT_SET,
    SIZE,
    build_model,
    make_labeller,
    tokenizer,
)
from pipeline.threads import choose_threads, restored_state, restored_threads
from shards.concurrency import available_cpus, map_in_order
from shards.processes import worker_pool
from shards.synthetic import dataset
from shards.synthetic.face import Face
from shards.synthetic.render import render_reduced, save_reduced

BATCH, LR, DECAY = 64, 1.5e-3, 0.05
GENDER_WEIGHT = 2.5  # in the loss: gender is learnt last; its accuracy is 0.97 without and 0.99 with the weight
AUGMENTED_EDGES = (24, 55)  # pixels to which the first half of a batch is reduced
ONE_PROCESS_FACES = 2000  # about 2 ms each: up to this number, starting more processes takes longer than it saves
RENDER_BATCH = 32  # faces that a process renders at a time
# Kinds of captions, by the attributes that they name: each attribute, each pair and all three.
KINDS = tuple(kind for n in (1, 2, 3) for kind in itertools.combinations(range(len(ATTRIBUTES)), n))


def render_faces(count: int, seed: int, *, progress: bool = True) -> tuple[Tensor, Tensor]:
    """Render synthetic faces whose classes are all equally likely.

    Returns images, uint8 [count, 3, 64, 64], and their classes as indices into ATTRIBUTES, int64 [count, 3]. The images
    are rendered at 128 pixels and reduced by an antialiased triangle filter, as the feed reduces the training images.
    (Rendering at 64 takes a third of the time, but costs 0.02 of gender's accuracy, and 0.03 on blurred faces.)
    """
    even = dataset.Shares(**{name: dict.fromkeys(table, 1 / len(table)) for name, table in dataset.CLASSES.items()})
    faces = dataset.sample_faces(count, seed, even)
    batches = [faces[start : start + RENDER_BATCH] for start in range(0, count, RENDER_BATCH)]
    workers = available_cpus() if count > ONE_PROCESS_FACES else 1
    with tqdm(total=count, desc="rendering faces", disable=not progress, leave=False) as bar:
        images = []
        for batch in render_batches(batches, SIZE, workers=workers):
            images.append(torch.from_numpy(batch).permute(0, 3, 1, 2))
            bar.update(len(batch))
    classes = torch.tensor(
        [[names.index(str(getattr(face, name))) for name, names in ATTRIBUTES.items()] for face in faces]
    )
    return torch.cat(images), classes


def render_batches(batches: list[list[Face]], size: int, *, workers: int) -> Iterator[np.ndarray]:
    """`render_reduced` of each batch, in several processes, whose results are too large for a pool's pipe."""
    if workers == 1:
        yield from (render_reduced(batch, size) for batch in batches)
        return
    with (
        tempfile.TemporaryDirectory() as folder,
        worker_pool(workers, preload=save_reduced.__module__) as pool,
    ):
        jobs = ((Path(folder, f"{number}.npy"), batch, size) for number, batch in enumerate(batches))
        for (path, *_), _ in map_in_order(pool, save_reduced, jobs, ahead=4 * workers):
            yield np.load(path)
            path.unlink()


def captions() -> list[Tensor]:
    """The tokens of all captions of each kind, int64 [K, 16]; the class of the last attribute varies fastest."""
    prompts, encode = clip.read_prompts(PROMPT_SET), tokenizer()
    captions_of = [[prompts[attribute][name] for name in names] for attribute, names in ATTRIBUTES.items()]
    return [
        encode(
            [
                prompts["templates"][0].format(", ".join(words))
                for words in itertools.product(*(captions_of[index] for index in kind))
            ]
        )
        for kind in KINDS
    ]


def caption_index(kind: tuple[int, ...], classes: Tensor) -> Tensor:
    """The index of the caption of that kind that is true of each face, int64 [B]."""
    index, sizes = torch.zeros(len(classes), dtype=torch.int64), [len(names) for names in ATTRIBUTES.values()]
    for attribute in kind:
        index = index * sizes[attribute] + classes[:, attribute]
    return index


def augment(images: Tensor, rng: torch.Generator) -> Tensor:
    """Augment images [B, 3, 64, 64] with a generator's kind of blur, noise, mirroring and shifts: float32 in 0-255.

    The first half of the batch is reduced to 24-55 pixels and enlarged again.
    """
    pixels, half = images.float(), len(images) // 2
    low, high = AUGMENTED_EDGES
    edge = int(torch.randint(low, high + 1, (), generator=rng))
    small = F.interpolate(pixels[:half], (edge, edge), mode="bilinear", antialias=True)
    pixels = torch.cat([F.interpolate(small, pixels.shape[2:], mode="bicubic"), pixels[half:]])
    pixels += 10 * torch.rand(len(pixels), 1, 1, 1, generator=rng) * torch.randn(pixels.shape, generator=rng)
    if torch.rand((), generator=rng) < 0.5:
        pixels = pixels.flip(3)
    return pixels.roll(torch.randint(-3, 4, (2,), generator=rng).tolist(), (2, 3)).clamp(0, 255)


def fit_model(images: Tensor, classes: Tensor, *, steps: int, seed: int, progress: bool = True) -> open_clip.CLIP:
    """Fit a model for `steps` batches to images, uint8 [N, 3, 64, 64], and their classes, int64 [N, 3].

    The result depends only on these arguments and the machine's arithmetic; torch's global random state is restored.
    """
    rng = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model().train()
    mean, std = (torch.tensor(PREPROCESS[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    tokens = captions()
    optimizer = torch.optim.AdamW(model.parameters(), LR, weight_decay=DECAY, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps, pct_start=0.15)

    def fit_batch(rows: Tensor, rng: torch.Generator) -> float:
        pixels = ((augment(images[rows], rng) / 255 - mean) / std).contiguous(memory_format=torch.channels_last)
        loss = contrastive_loss(model, pixels, classes=classes[rows], tokens=tokens, rng=rng)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    def time_batch(count: int) -> float:
        torch.set_num_threads(count)
        start = time.perf_counter()
        fit_batch(
            torch.arange(BATCH) % len(images), torch.Generator().manual_seed(seed)
        )  # the same augmentation every time
        return time.perf_counter() - start

    with restored_threads():
        with restored_state(model, optimizer):
            threads = choose_threads(time_batch, steps=steps, step_images=BATCH)
        torch.set_num_threads(threads.count)
        bar = tqdm(range(steps), "fitting labeller", unit="step", disable=not progress, leave=False)
        for _, rows in zip(bar, batches(len(images), rng), strict=False):
            loss = fit_batch(rows, rng)
            schedule.step()
            bar.set_postfix(loss=f"{loss:.2f}", refresh=False)
    return model.eval()


def batches(count: int, rng: torch.Generator) -> Iterator[Tensor]:
    """Endless shuffled int64 [BATCH] indices below `count`; each occurs once before any occurs again."""
    while True:
        yield from torch.randperm(count, generator=rng).split(BATCH)


def contrastive_loss(
    model: open_clip.CLIP, pixels: Tensor, *, classes: Tensor, tokens: list[Tensor], rng: torch.Generator
) -> Tensor:
    """CLIP's image-to-text loss, summed over the captions of single attributes and of one random kind of several.

    Captions repeat within a batch. Therefore an image is contrasted with the distinct captions of a kind instead of
    the captions of the other images, where a repeated caption would be both right and wrong.
    """
    kinds = [0, 1, 2, int(torch.randint(3, len(KINDS), (), generator=rng))]
    text = model.encode_text(torch.cat([tokens[kind] for kind in kinds]), normalize=True)
    images = model.encode_image(pixels, normalize=True) * model.logit_scale.exp().clamp(max=100)
    parts = text.split([len(tokens[kind]) for kind in kinds])
    losses = [
        F.cross_entropy(images @ part.T, caption_index(KINDS[kind], classes))
        for kind, part in zip(kinds, parts, strict=True)
    ]
    return GENDER_WEIGHT * losses[0] + sum(losses[1:])


def measure(model: open_clip.CLIP, images: Tensor, classes: Tensor) -> dict[str, Any]:
    """Accuracy and balanced accuracy (mean recall of the classes that occur) by attribute.

    Takes images, uint8 [N, 3, 64, 64], and their classes, int64 [N, 3].
    """
    labeller = make_labeller(model)
    probabilities = [labeller.label(batch)[0] for batch in images.split(256)]
    predicted = {name: torch.cat([batch[name] for batch in probabilities]).argmax(1) for name in ATTRIBUTES}
    truth = dict(zip(ATTRIBUTES, classes.T.contiguous(), strict=True))
    hits = {name: (predicted[name] == truth[name]).float() for name in truth}
    return {
        "held_out": len(images),
        "accuracy": {name: round(hit.mean().item(), 4) for name, hit in hits.items()},
        "balanced_accuracy": {name: round(_mean_recall(hit, truth[name]), 4) for name, hit in hits.items()},
    }


def _mean_recall(hits: Tensor, truth: Tensor) -> float:
    """Balanced accuracy from float hits [N] and classes [N]."""
    recalls = [hits[truth == one].mean().item() for one in truth.unique()]
    return sum(recalls) / len(recalls)
