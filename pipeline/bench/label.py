"""Benchmark of labelling next to the original's way: one image at a time, with the text encoded for each."""

from collections.abc import Callable, Iterator

import open_clip
import torch
from PIL import Image
from torchvision.transforms import v2

from models import clip
from pipeline.bench.context import SIZE, BenchContext
from pipeline.bench.measure import Row, compare
from pipeline.labelling import embedded, embedded_model
from pipeline.labelling.side import LabelKinds, label_images
from shards.atomic_io import read_parquet

CLIP_MODEL = "ViT-B-32-quickgelu"
BATCH_SIZE = 256


def bench_label(context: BenchContext) -> Iterator[Row]:
    """Measure the embedded labeller and a CLIP with the original's prompts."""
    yield bench_labeller(
        context,
        "embedded labeller, vs one image at a time",
        labeller=embedded.load_embedded(context.device, progress=True),
        encode=(embedded_model.tokenizer(), clip.read_prompts(embedded_model.PROMPT_SET)),
        images=2000,
        plain_images=100,
    )
    prompts, tokenizer = clip.read_prompts("original"), open_clip.get_tokenizer(CLIP_MODEL)
    with torch.random.fork_rng(devices=[]):  # random weights are as fast as OpenAI's
        model = open_clip.create_model(CLIP_MODEL)
    yield bench_labeller(
        context,
        f"{CLIP_MODEL} with the original's prompts, vs one image at a time",
        labeller=clip.Labeller(model, tokenizer, prompts=prompts, name=CLIP_MODEL, device=context.device),
        encode=(tokenizer, prompts),
        images=256,
        plain_images=8,
    )


def bench_labeller(
    context: BenchContext,
    title: str,
    *,
    labeller: clip.Labeller,
    encode: tuple[Callable[[list[str]], torch.Tensor], clip.Prompts],  # tokenizer and prompts
    images: int,
    plain_images: int,
) -> Row:
    """Measure a labeller on `images` images, and the original's way on `plain_images`."""
    shards, paths = context.shards(), sorted(context.faces.rglob("*.jpg"))[:plain_images]
    keys = read_parquet(context.workspace.shards.images)["key"][:images]
    subset, _ = shards.covering(range(len(keys)))
    labels = LabelKinds(labeller, has_skin_tones=False)

    def ours() -> int:
        return len(label_images(subset, keys, labels=labels, size=SIZE, device=context.device, batch_size=BATCH_SIZE))

    def baseline() -> int:
        for path in paths:
            image = v2.functional.pil_to_tensor(Image.open(path).convert("RGB").resize((SIZE, SIZE)))[None]
            labeller.text = labeller.encode_text(*encode)
            labeller.label(image.to(context.device))
        return len(paths)

    note = f"DALI and batches of {BATCH_SIZE}; pixel labels included"
    return compare("label", title, ours=ours, baseline=baseline, device=context.device, note=note)
