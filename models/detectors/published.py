"""Checkpoints of AI-Face's benchmark and of the papers' authors, converted to the parameter names of our networks."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from models.detectors.backbones import State, Weights, read_checkpoint
from shards.errors import WeightsUnavailable

# detectors whose architecture differs from the benchmark's -> prefix of names in its checkpoints, and the difference
OTHER_ARCHITECTURES = {
    "efficientnet": ("backbone.efficientnet.", "its layers pad images differently"),
    "srm": ("backbone_rgb.", "its logits are not cosines"),
    "ucf": ("encoder_f.", "its encoders lack an activation"),
    "pg_fdd": ("encoder_f.", "its encoders lack an activation"),
}
HF_CLIP = (  # names in CLIP's vision model of transformers -> in open_clip's
    (r"^embeddings\.class_embedding", "class_embedding"),
    (r"^embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"^embeddings\.patch_embedding\.", "conv1."),
    (r"^pre_layrnorm\.", "ln_pre."),
    (r"^post_layernorm\.", "ln_post."),
    (r"^encoder\.layers\.", "transformer.resblocks."),
    (r"\.layer_norm([12])\.", r".ln_\1."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
    (r"\.self_attn\.", ".attn."),
)
HF_DINOV3 = (  # names in DINOv3 of transformers -> in timm's
    (r"^embeddings\.(cls_token)", r"\1"),
    (r"^embeddings\.register_tokens", "reg_token"),
    (r"^embeddings\.patch_embeddings\.", "patch_embed.proj."),
    (r"^(model\.)?layer\.", "blocks."),
    (r"\.attention\.o_proj\.", ".attn.proj."),
    (r"\.attention\.", ".attn."),
    (r"\.layer_scale([12])\.lambda1", r".gamma_\1"),
    (r"\.mlp\.up_proj\.", ".mlp.fc1."),
    (r"\.mlp\.down_proj\.", ".mlp.fc2."),
)
TORCHVISION_VIT = (  # names in torchvision's ViT -> in timm's
    (r"^class_token", "cls_token"),
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^encoder\.pos_embedding", "pos_embed"),
    (r"^encoder\.ln\.", "norm."),
    (r"^encoder\.layers\.encoder_layer_", "blocks."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.self_attention\.in_proj_", ".attn.qkv."),
    (r"\.self_attention\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.(0|linear_1)\.", ".mlp.fc1."),
    (r"\.mlp\.(3|linear_2)\.", ".mlp.fc2."),
)


@dataclass(frozen=True)
class PublishedDetector:
    """A trained detector, read from a file."""

    weights: Weights  # for building its network
    state: State  # its other weights, by our names
    is_complete: bool  # whether `state` has every weight


def read_published(model: str, path: Path) -> PublishedDetector | None:
    """Read a checkpoint of the detector `model`; None for any other file, such as a backbone's.

    Raises WeightsUnavailable for a checkpoint of the benchmark whose architecture differs from ours.
    """
    try:
        state = read_checkpoint(path)
    except Exception:  # the loaders of backbones read more formats, and report what is wrong
        return None
    if not all(isinstance(name, str) for name in state):
        return None
    prefix, difference = OTHER_ARCHITECTURES.get(model, ("", ""))
    if prefix and any(name.startswith(prefix) for name in state):
        raise WeightsUnavailable(
            f"{path} is the {model} of AI-Face's benchmark, whose architecture differs from the one here ({difference})"
        )
    translate = TRANSLATIONS.get(model)
    try:
        return translate(state) if translate else None
    except (AttributeError, KeyError, RuntimeError, TypeError) as error:  # a part is missing, or is something else
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error).splitlines()[0]
        raise WeightsUnavailable(f"{path} is an incomplete checkpoint of this detector ({reason})") from error


def load_published(net: nn.Module, published: PublishedDetector, *, source: str) -> None:
    """Load the weights that a network was not built with. Raises WeightsUnavailable if they do not fit."""
    try:
        missing, unexpected = net.load_state_dict(published.state, strict=False)
        missing = [name for name in missing if not name.endswith("num_batches_tracked") and published.is_complete]
        if unexpected or missing:
            raise ValueError(f"it {'has' if unexpected else 'lacks'} {[*unexpected, *missing][0]}")
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise WeightsUnavailable(f"{source} is not a checkpoint of this detector ({reason})") from error


def translate_xception(state: State) -> PublishedDetector | None:
    """The benchmark's detectors with a single Xception."""
    if "backbone.block1.rep.0.conv1.weight" not in state:
        return None
    translated = {
        re.sub(r"^fc\.1\.", "fc.", name.replace("last_linear", "fc")): value
        for name, value in without_prefix(state, "backbone.").items()
        if not name.startswith("adjust_channel.")  # of the benchmark's other detectors
    }
    translated = {f"net.{name}": value for name, value in one_logit(translated, "fc").items()}
    if masks := [value for name, value in sorted(state.items()) if re.fullmatch(r"FAD_head.*\.learnable", name)]:
        translated["input_transform.learnable_masks"] = torch.stack(masks)
    return PublishedDetector(Weights(from_scratch=True), translated, is_complete=True)


def translate_vit(state: State) -> PublishedDetector | None:
    """The benchmark's ViT, which is torchvision's."""
    if "heads.head.weight" not in state or len(state["heads.head.weight"]) > 2:
        return None
    head = one_logit({f"net.head.{name}": state.pop(f"heads.head.{name}") for name in ("weight", "bias")}, "net.head")
    return PublishedDetector(Weights(state=rename(state, TORCHVISION_VIT)), head, is_complete=False)


def translate_univfd(state: State) -> PublishedDetector | None:
    """UnivFD's linear layer alone, as its authors publish it, or with all of CLIP, as the benchmark does."""
    if state.keys() == {"weight", "bias"}:
        return PublishedDetector(Weights(), {f"head.{name}": value for name, value in state.items()}, is_complete=False)
    if "fc.weight" not in state:
        return None
    visual = {name: value.float() for name, value in without_prefix(state, "model.visual.").items()}
    head = {f"head.{name}": value for name, value in without_prefix(state, "fc.").items()}
    return PublishedDetector(Weights(state=visual), head, is_complete=False)


def translate_gend(state: State) -> PublishedDetector | None:
    """GenD on CLIP or DINOv3 of transformers, or on Perception Encoder of timm."""
    if "model.linear.weight" not in state:
        return None
    head = one_logit({f"head.{name}": value for name, value in without_prefix(state, "model.linear.").items()}, "head")
    encoder = without_prefix(state, "feature_extractor.backbone.")
    if visual := without_prefix(state, "feature_extractor.vision_model."):
        encoder = clip_encoder(visual)
    elif "embeddings.cls_token" in encoder:
        encoder = dinov3_encoder(encoder)
    return PublishedDetector(Weights(state=encoder), head, is_complete=False)


def translate_effort(state: State) -> PublishedDetector | None:
    """Effort on CLIP of transformers: the frozen parts of the weights, and the trained components."""
    if "backbone.encoder.layers.0.self_attn.q_proj.weight_main" not in state:
        return None
    others = one_logit({f"head.{name}": value for name, value in without_prefix(state, "head.").items()}, "head")
    backbone = without_prefix(state, "backbone.")
    for number in range(sum(name.endswith("q_proj.weight_main") for name in backbone)):
        theirs = f"encoder.layers.{number}.self_attn."
        ours = f"encoder.transformer.resblocks.{number}.attn."
        matrices = {
            f"{ours}parametrizations.in_proj_weight.0.": [f"{theirs}{letter}_proj." for letter in "qkv"],
            f"{ours}out_proj.parametrizations.weight.0.": [f"{theirs}out_proj."],
        }
        for components, layers in matrices.items():
            for part in "USV":
                values = [backbone[f"{layer}{part}_residual"] for layer in layers]
                others[components + part.lower()] = torch.stack(values)
            others[f"{components}s0"] = torch.zeros_like(others[f"{components}s"])  # the frozen part already lacks it
    frozen = {
        name.replace(".weight_main", ".weight"): value
        for name, value in backbone.items()
        if not re.search(r"\.[USV]_(residual|r)$", name)
    }
    return PublishedDetector(Weights(state=clip_encoder(frozen)), others, is_complete=False)


def translate_npr(state: State) -> PublishedDetector | None:
    """NPR's network."""
    if "fc1.weight" not in state:
        return None
    translated = {"net." + re.sub(r"^fc1\.", "fc.", name): value for name, value in state.items()}
    return PublishedDetector(Weights(from_scratch=True), translated, is_complete=True)


def clip_encoder(state: State) -> State:
    """A vision model of transformers by open_clip's names, with queries, keys and values in one weight."""
    return join_projections(
        rename({name: value for name, value in state.items() if "position_ids" not in name}, HF_CLIP), "in_proj_"
    )


def dinov3_encoder(state: State) -> State:
    """DINOv3 of transformers by timm's names.

    Its biases of queries and values are all 0 (facebookresearch/dinov3, issue 195), and timm's DINOv3 has none.
    """
    unused = re.compile(r"embeddings\.mask_token|.*\.inv_freq")
    bias = re.compile(r".*\.[qv]_proj\.bias")
    kept = {
        name: value
        for name, value in state.items()
        if not unused.fullmatch(name) and (value.any() or not bias.fullmatch(name))
    }
    return join_projections(rename(kept, HF_DINOV3), "qkv.")


def join_projections(state: State, joined: str) -> State:
    """A state with each attention's queries, keys and values in one layer, named `joined`."""
    for name in [name for name in state if ".attn.q_proj." in name]:
        layer, kind = name.split("q_proj.")
        parts = [state.pop(f"{layer}{letter}_proj.{kind}") for letter in "qkv"]
        state[f"{layer}{joined}{kind}"] = torch.cat(parts)
    return state


def rename(state: State, rules: tuple[tuple[str, str], ...]) -> State:
    """A state with renamed tensors: each pattern is replaced, one after the other."""
    renamed = {}
    for name, value in state.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    return renamed


def without_prefix(state: State, prefix: str) -> State:
    """The part of a state whose names have a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def one_logit(state: State, layer: str) -> State:
    """A state whose last layer has one logit; from two classes, it is fake minus real."""
    for name in (f"{layer}.weight", f"{layer}.bias"):
        if name in state and len(state[name]) == 2:
            state[name] = state[name][1:] - state[name][:1]
    return state


TRANSLATIONS: dict[str, Callable[[State], PublishedDetector | None]] = {
    **dict.fromkeys(("xception", "core", "f3net", "spsl", "daw_fdd", "dag_fdd"), translate_xception),
    "vit": translate_vit,
    "univfd": translate_univfd,
    "gend": translate_gend,
    "effort": translate_effort,
    "npr": translate_npr,
}
