"""Image encoders of timm and open_clip by name: the backbones that `--backbone` offers."""

import difflib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import open_clip
import timm
import torch
from torch import Tensor, nn

from models import clip
from models.detectors.backbones import Weights, open_clip_visual, timm_model, without_projection, without_warnings
from models.detectors.base import Normalisation
from shards.errors import FairfaceError, WeightsUnavailable

SHORT_NAMES = {
    "dinov3": "vit_large_patch16_dinov3.lvd1689m",
    "pe": "vit_pe_core_large_patch14_336.fb",
    "clip": "ViT-L-14-quickgelu/openai",  # the same download as UnivFD's
    "siglip2": "vit_large_patch16_siglip_256.v2_webli",
    "metaclip2": "ViT-H-14-worldwide-quickgelu/metaclip2_worldwide",
    "dinov3-small": "vit_small_patch16_dinov3.lvd1689m",
    "pe-tiny": "vit_pe_core_tiny_patch16_384.fb",
}


@dataclass(frozen=True)
class Backbone:
    """An image encoder, and the input that it was pretrained on."""

    library: str  # timm | open_clip
    architecture: str  # its name there
    tag: str | None  # of its pretrained weights; None: there are none
    image_size: int  # pixels
    size_multiple: int  # pixels; the image size must be a multiple of it
    normalisation: Normalisation


@lru_cache
def find_backbone(name: str) -> Backbone:
    """Find an encoder by a short name, by timm's name and tag (`NAME.TAG`), or by open_clip's (`NAME/TAG`).

    Without a tag, the model's first one is used. Raises FairfaceError if there is no such encoder.
    """
    full = SHORT_NAMES.get(name, name)
    if timm.is_model(full):
        return timm_backbone(full)
    architecture, _, tag = full.partition("/")
    if architecture in open_clip.list_models():
        return open_clip_backbone(architecture, tag)
    known = [*SHORT_NAMES, *timm.list_models(), *timm.list_pretrained(), *open_clip.list_models()]
    close = difflib.get_close_matches(name, known, 3)
    raise FairfaceError(
        f"--backbone {name}: neither timm nor open_clip has such an image encoder; "
        + (f"did you mean {' or '.join(close)}?" if close else f"choose one of {', '.join(SHORT_NAMES)}")
    )


def timm_backbone(name: str) -> Backbone:
    """The encoder `NAME` or `NAME.TAG` of timm. Raises FairfaceError for an unknown tag."""
    architecture, _, tag = name.partition(".")
    known = timm.list_pretrained(f"{architecture}.*")
    if tag and name not in known:
        raise FairfaceError(f"--backbone {name}: timm's {architecture} has these weights: {', '.join(known) or 'none'}")
    config = timm.get_pretrained_cfg(name)
    assert config is not None  # the model is known
    patch = getattr(getattr(create_on_meta("timm", architecture, None), "patch_embed", None), "patch_size", (1,))
    return Backbone(
        library="timm",
        architecture=architecture,
        tag=f"{architecture}.{config.tag}" if known else None,
        image_size=config.input_size[-1],
        size_multiple=patch if isinstance(patch, int) else max(patch),  # XCiT's is a number
        normalisation=(tuple(config.mean), tuple(config.std)),
    )


def open_clip_backbone(architecture: str, tag: str) -> Backbone:
    """The image tower of open_clip's model `architecture`. Raises FairfaceError for an unknown tag."""
    known = open_clip.list_pretrained_tags_by_model(architecture)
    if tag and tag not in known:
        raise FairfaceError(
            f"--backbone {architecture}/{tag}: open_clip's {architecture} has these weights: "
            f"{', '.join(known) or 'none'}"
        )
    chosen = tag or (known[0] if known else None)
    vision = (open_clip.get_model_config(architecture) or {})["vision_cfg"]
    config = open_clip.get_pretrained_cfg(architecture, chosen) if chosen else {}
    if "timm_model_name" in vision:
        patch = timm_backbone(vision["timm_model_name"]).size_multiple
    else:
        patch = vision["patch_size"] or 32  # of CLIP's ResNets
    return Backbone(
        library="open_clip",
        architecture=architecture,
        tag=chosen,
        image_size=vision["image_size"],
        size_multiple=patch,
        normalisation=(
            tuple(config.get("mean", open_clip.OPENAI_DATASET_MEAN)),
            tuple(config.get("std", open_clip.OPENAI_DATASET_STD)),
        ),
    )


def build_encoder(name: str, weights: Weights, *, image_size: int) -> tuple[nn.Module, int]:
    """Build an encoder, [B, 3, S, S] -> [B, width], and return its width.

    Its features are those before any projection to the joint space with texts: the class token if there is one,
    otherwise the output of the encoder's own pooling. Raises FairfaceError if it does not take images of this size, and
    WeightsUnavailable if its weights are not available or belong to another model.
    """
    backbone = find_backbone(name)
    width = feature_width(name, image_size)
    if backbone.library == "open_clip":
        tag = backbone.tag
        net = open_clip_visual(backbone.architecture, weights, tag=tag, image_size=image_size, projected=False)
        return net, width
    if backbone.tag is None and not (weights.tag_or_path or weights.from_scratch):
        raise WeightsUnavailable(
            f"timm has no weights of {backbone.architecture}: pass --pretrained FILE, or --from-scratch"
        )
    net = timm_model(backbone.tag or backbone.architecture, weights, classes=0)
    return resize_input(net, image_size), width


@lru_cache
def feature_width(name: str, image_size: int) -> int:
    """The width of an encoder's features. Raises FairfaceError if it does not take images of this size."""
    backbone = find_backbone(name)
    try:
        net = create_on_meta(backbone.library, backbone.architecture, image_size).eval()
        with torch.no_grad():
            features = net(torch.empty(1, 3, image_size, image_size, device="meta"))
        if not isinstance(features, Tensor) or features.ndim != 2:
            raise ValueError("its output is not one vector for each image")
    except Exception as error:  # every model refuses a size in its own way
        reason = clip.first_line(error)
        raise FairfaceError(f"--backbone {name} can't encode images of {image_size} pixels ({reason})") from error
    return features.shape[1]


def create_on_meta(library: str, architecture: str, image_size: int | None) -> Any:
    """Create an encoder on the meta device, without allocating weights or changing torch's random state."""
    with without_warnings(), torch.random.fork_rng(devices=[]), torch.device("meta"):
        if library == "timm":
            net = timm.create_model(architecture, num_classes=0)
            return resize_input(net, image_size) if image_size else net
        model = open_clip.create_model(architecture, device="meta", force_image_size=image_size)
        return without_projection(model.visual)


def resize_input(net: Any, image_size: int) -> Any:
    """Make a timm model take images of this size, and return its class token, if it has one, as the features."""
    if hasattr(net, "set_input_size"):
        net.set_input_size(img_size=(image_size, image_size))
    if getattr(net, "cls_token", None) is not None and isinstance(getattr(net, "fc_norm", None), nn.Identity):
        net.global_pool = "token" if net.global_pool == "avg" else net.global_pool  # as DINOv3's own code
    return net
