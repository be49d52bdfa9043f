"""The architecture of the embedded labeller: a small open_clip model."""

import functools
import math
from typing import Any

import open_clip
import torch

from models import clip
from shards.synthetic.dataset import CLASSES

SIZE = 64  # pixels of the input
MODEL: dict[str, Any] = {  # 4.0 million parameters: 3.2 for the embeddings of the vocabulary, 0.8 for images
    "embed_dim": 64,
    "init_logit_scale": math.log(10),
    "vision_cfg": {"image_size": SIZE, "layers": [1, 1, 1, 1], "width": 12, "head_width": 24},  # a ResNet
    "text_cfg": {"context_length": 16, "width": 64, "heads": 2, "layers": 2},
}
PREPROCESS: dict[str, Any] = {"size": SIZE, "mean": (0.5,) * 3, "std": (0.25,) * 3}
PROMPT_SET = "synthetic"  # of models/prompts.toml
NAME = "synthetic-faces"
ATTRIBUTES = {name: tuple(map(str, classes)) for name, classes in CLASSES.items()}  # with their classes


def build_model() -> open_clip.CLIP:
    """The model with weights from torch's current seed, in channels_last: 1.25 times faster on a CPU."""
    model = open_clip.CLIP(**MODEL).to(memory_format=torch.channels_last)
    open_clip.set_model_preprocess_cfg(model, PREPROCESS)
    return model


def make_labeller(model: open_clip.CLIP, device: str | torch.device = "cpu") -> clip.Labeller:
    """The labeller of a fitted model."""
    return clip.Labeller(model, tokenizer(), prompts=clip.read_prompts(PROMPT_SET), name=NAME, device=device)


@functools.cache
def tokenizer() -> open_clip.SimpleTokenizer:
    return open_clip.SimpleTokenizer(context_length=MODEL["text_cfg"]["context_length"])
