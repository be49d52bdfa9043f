"""The embedded labeller: a small open_clip model fitted on drawn faces and their captions, then cached."""

import functools
import itertools
import math
import multiprocessing
import os
import time
from pathlib import Path

import click
import open_clip
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torchvision.transforms.v2.functional import pil_to_tensor
from tqdm import tqdm

from models import clip
from shards.atomic_io import atomic_write, fingerprint, read_json, write_json
from shards.errors import FairfaceError
from shards.synthetic import dataset
from shards.synthetic.face import VERSION as RENDER_VERSION
from shards.synthetic.face import render

REVISION = 1  # bumped when the fit below changes, so that older caches are left alone
SIZE = 64  # pixels of the input
STEPS, FACES, HELD_OUT = 450, 6000, 1000
BATCH, LR, DECAY = 64, 1.5e-3, 0.05
GENDER_WEIGHT = 2.5  # in the loss: the last attribute to be learnt, 0.97 without and 0.99 with it
MODEL = {  # 4.0 million parameters, of which 3.2 embed the vocabulary and 0.8 see
    "embed_dim": 64,
    "init_logit_scale": math.log(10),
    "vision_cfg": {"image_size": SIZE, "layers": [1, 1, 1, 1], "width": 12, "head_width": 24},  # a ResNet
    "text_cfg": {"context_length": 16, "width": 64, "heads": 2, "layers": 2},
}
PREPROCESS = {"size": SIZE, "mean": (0.5,) * 3, "std": (0.25,) * 3}
ATTRIBUTES = tuple(clip.CLASSES)
KINDS = tuple(kind for n in (1, 2, 3) for kind in itertools.combinations(range(len(ATTRIBUTES)), n))


def load_embedded(
    device: str | torch.device = "cpu", cache: Path | None = None, progress: bool = True
) -> clip.Labeller:
    """The labeller made for drawn faces, fitted on first use; `cache` is a folder (the user's by default).

    Raises FairfaceError for a cache that cannot be written or a cached file that is damaged.
    """
    path = fit(cache, progress=progress)
    model = build_model()
    try:
        model.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError) as error:
        raise FairfaceError(f"{path} is damaged: remove it, and it is fitted again") from error
    return make_labeller(model, device)


def fit(
    cache: Path | None = None, steps: int = STEPS, faces: int = FACES, seed: int = 0, progress: bool = True
) -> Path:
    """Fits the labeller unless the cache holds it; returns its fp16 weights, drawn-faces-<hash>.safetensors.

    The hash is of everything that decides the weights. A JSON file beside them says what `measure` found on
    faces never fitted on, and the seconds it took. Raises FairfaceError for a cache that cannot be written.
    """
    path = cache_path(cache, steps, faces, seed)
    if path.is_file() and path.with_suffix(".json").is_file():
        return path
    start = time.monotonic()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        model = fit_model(*render_faces(faces, 2 * seed + 1_000_000, progress), steps, seed, progress)
        model.half().float()  # what is measured is what is saved
        found = measure(model, *render_faces(HELD_OUT, 2 * seed + 1_000_001, progress))
        found |= {"steps": steps, "faces": faces, "seed": seed, "seconds": round(time.monotonic() - start, 1)}
        with atomic_write(path) as file:
            file.write(save({key: value.half().contiguous() for key, value in model.state_dict().items()}))
        write_json(path.with_suffix(".json"), found)
    except OSError as error:
        raise FairfaceError(
            f"cannot keep the labeller in {path.parent} ({error.strerror or error}): "
            "set XDG_CACHE_HOME to a folder with room that can be written"
        ) from error
    click.echo(describe(path))
    return path


def describe(path: Path) -> str:
    """One line for a person: the held-out accuracies of the labeller in `path`."""
    found = read_json(path.with_suffix(".json"))
    accuracy = ", ".join(f"{name.replace('_', ' ')} {value:.2f}" for name, value in found["accuracy"].items())
    return (
        f"embedded labeller: {accuracy} on {found['held_out']:,} drawn faces it was not fitted on "
        f"(chance 0.50, 0.20, 0.10; fitted in {found['seconds']:.0f} s)"
    )


def cache_path(cache: Path | None, steps: int, faces: int, seed: int) -> Path:
    """Where these weights are kept, by a hash of everything that decides them."""
    folder = cache or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fairface"
    decides = [
        REVISION,
        MODEL,
        PREPROCESS,
        BATCH,
        LR,
        DECAY,
        GENDER_WEIGHT,
        steps,
        faces,
        seed,
        RENDER_VERSION,
        clip.read_prompts("drawn"),
    ]
    return Path(folder) / f"drawn-faces-{fingerprint(decides)}.safetensors"


def build_model() -> open_clip.CLIP:
    """The model with weights from torch's current seed, channels last: 1.25 times faster on a CPU."""
    model = open_clip.CLIP(**MODEL).to(memory_format=torch.channels_last)
    open_clip.set_model_preprocess_cfg(model, PREPROCESS)
    return model


def make_labeller(model: open_clip.CLIP, device: str | torch.device = "cpu") -> clip.Labeller:
    return clip.Labeller(model, tokenizer(), clip.read_prompts("drawn"), "drawn-faces", device)


@functools.cache
def tokenizer() -> open_clip.SimpleTokenizer:
    return open_clip.SimpleTokenizer(context_length=MODEL["text_cfg"]["context_length"])


# --- faces and captions --------------------------------------------------------------------------------


def render_faces(count: int, seed: int, progress: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 images [count, 3, 64, 64] and int64 classes [count, 3] by CLASSES, all equally likely.

    Drawn at 128 pixels and reduced with an antialiased triangle, as the feed reduces the training images. (Drawn
    at 64 they take a third of the time, but gender falls by 0.02, and by 0.03 on blurred faces.)
    """
    even = dataset.Shares(**{name: dict.fromkeys(table, 1 / len(table)) for name, table in dataset.CLASSES.items()})
    faces = dataset.sample_faces(count, seed, even)
    bar = functools.partial(tqdm, total=count, desc="drawing faces", disable=not progress, leave=False)
    if count <= 200:
        images = [resized_tensor(render(face)) for face in bar(faces)]
    else:
        with multiprocessing.get_context("spawn").Pool(len(os.sched_getaffinity(0))) as pool:
            images = [resized_tensor(image) for image in bar(pool.imap(render, faces, chunksize=32))]
    classes = torch.tensor(
        [[clip.CLASSES[name].index(str(getattr(face, name))) for name in ATTRIBUTES] for face in faces]
    )
    return torch.stack(images), classes


def resized_tensor(image: Image.Image) -> torch.Tensor:
    """uint8 [3, 64, 64]; Pillow's bilinear resize is the antialiased triangle."""
    return pil_to_tensor(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR))


def captions() -> list[torch.Tensor]:
    """Per kind of caption (which attributes it names) the tokens of all, int64 [K, 16], last name fastest."""
    prompts, encode = clip.read_prompts("drawn"), tokenizer()
    names = [[prompts[attribute][name] for name in clip.CLASSES[attribute]] for attribute in ATTRIBUTES]
    return [
        encode(
            [
                prompts["templates"][0].format(", ".join(words))
                for words in itertools.product(*(names[index] for index in kind))
            ]
        )
        for kind in KINDS
    ]


def caption_index(kind: tuple[int, ...], classes: torch.Tensor) -> torch.Tensor:
    """Which caption of that kind is true of each face: int64 [B]."""
    index = torch.zeros(len(classes), dtype=torch.int64)
    for attribute in kind:
        index = index * len(clip.CLASSES[ATTRIBUTES[attribute]]) + classes[:, attribute]
    return index


def augment(images: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """float32 [B, 3, 64, 64] within 0-255: at random blurred as by a generator, mirrored, shifted, noisy.

    The first half of the batch is shrunk to 24-55 pixels and enlarged again.
    """
    pixels, half = images.float(), len(images) // 2
    edge = int(torch.randint(24, 56, (), generator=rng))
    small = F.interpolate(pixels[:half], (edge, edge), mode="bilinear", antialias=True)
    pixels = torch.cat([F.interpolate(small, pixels.shape[2:], mode="bicubic"), pixels[half:]])
    pixels += 10 * torch.rand(len(pixels), 1, 1, 1, generator=rng) * torch.randn(pixels.shape, generator=rng)
    if torch.rand((), generator=rng) < 0.5:
        pixels = pixels.flip(3)
    return pixels.roll(torch.randint(-3, 4, (2,), generator=rng).tolist(), (2, 3)).clamp(0, 255)


# --- the fit -------------------------------------------------------------------------------------------


def fit_model(
    images: torch.Tensor, classes: torch.Tensor, steps: int, seed: int, progress: bool = True
) -> open_clip.CLIP:
    """A model after `steps` batches of `images` uint8 [N, 3, 64, 64] and `classes` int64 [N, 3].

    The result depends on these alone (and on the machine's arithmetic): torch's own random state is kept.
    """
    rng = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model().train()
    mean, std = (torch.tensor(PREPROCESS[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    tokens = captions()
    optimiser = torch.optim.AdamW(model.parameters(), LR, weight_decay=DECAY, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LR, total_steps=steps, pct_start=0.15)
    bar = tqdm(range(steps), "fitting labeller", unit="step", disable=not progress, leave=False)
    for _, rows in zip(bar, batches(len(images), rng), strict=False):
        pixels = ((augment(images[rows], rng) / 255 - mean) / std).contiguous(memory_format=torch.channels_last)
        loss = contrastive_loss(model, pixels, classes[rows], tokens, rng)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.2f}", refresh=False)
    return model.eval()


def batches(count: int, rng: torch.Generator):
    """Endless shuffled int64 [BATCH] indices below `count`; every face once before any comes again."""
    while True:
        yield from torch.randperm(count, generator=rng).split(BATCH)


def contrastive_loss(
    model: open_clip.CLIP, pixels: torch.Tensor, classes: torch.Tensor, tokens: list[torch.Tensor], rng: torch.Generator
) -> torch.Tensor:
    """CLIP's image-to-text loss, summed over captions of one attribute each and one random kind of several.

    Captions repeat within a batch, so an image is contrasted with the distinct captions of a kind rather than
    with the other images' (where a repeated caption would be right and wrong at once).
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


def measure(model: open_clip.CLIP, images: torch.Tensor, classes: torch.Tensor) -> dict:
    """Accuracy and balanced accuracy (mean recall of the classes present) by attribute and skin group."""
    read = make_labeller(model)
    probabilities = [read.label(batch)[0] for batch in images.split(256)]
    guess = {name: torch.cat([part[name] for part in probabilities]).argmax(1) for name in ATTRIBUTES}
    truth = dict(zip(ATTRIBUTES, classes.T.contiguous(), strict=True))
    for table in (guess, truth):  # light is tones 1-3, medium 4-6, dark 7-10
        table["skin_group"] = torch.bucketize(table["skin_tone"], torch.tensor([2, 5]))
    right = {name: guess[name] == truth[name] for name in truth}
    return {
        "held_out": len(images),
        "accuracy": {name: round(hit.float().mean().item(), 4) for name, hit in right.items()},
        "balanced_accuracy": {
            name: round(
                sum(hit[truth[name] == c].float().mean().item() for c in truth[name].unique())
                / len(truth[name].unique()),
                4,
            )
            for name, hit in right.items()
        },
    }
