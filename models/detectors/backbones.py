"""The detectors' backbones from timm and open_clip, pretrained or with random weights."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import timm
from open_clip.model import resize_pos_embed
from torch import Tensor, nn

from models import clip, hub
from shards.errors import FairfaceError, WeightsUnavailable

XCEPTION = "legacy_xception.tf_in1k"  # the conversion of the original weights that the benchmark also uses
EFFICIENTNET = "efficientnet_b4.ra2_in1k"
VIT = "vit_base_patch16_224.augreg2_in21k_ft_in1k"
CLIP, CLIP_TAG = "ViT-L-14-quickgelu", "openai"
MAX_MISSING_SHARE = 0.1  # share of a network's weights that its checkpoint may lack, such as the head


State = dict[str, Tensor]  # a state dict: tensors by their names in a network


@dataclass(frozen=True)
class Weights:
    """Where a backbone's weights come from."""

    tag_or_path: str | None = None  # None: the detector's own tag
    from_scratch: bool = False  # random weights
    state: State | None = None  # the weights themselves, read from the file `tag_or_path`


def timm_model(
    tag: str, weights: Weights, *, classes: int, channels: int = 3, dropout: float = 0.0, **options: Any
) -> Any:
    """Build a timm model with a new head of `classes`, and pretrained filters adapted to `channels` input channels.

    Raises WeightsUnavailable if its weights are not available or belong to another model.
    """
    name = tag.partition(".")[0]
    options = {"num_classes": classes, "in_chans": channels, "drop_rate": dropout} | options
    if weights.from_scratch:
        return timm.create_model(name, **options)
    if weights.state is not None:
        return load_timm_state(name, weights.state, source=str(weights.tag_or_path), options=options)
    if weights.tag_or_path and not Path(weights.tag_or_path).is_file():
        tag = weights.tag_or_path if "." in weights.tag_or_path else f"{name}.{weights.tag_or_path}"
    path = timm_checkpoint(name, tag, tag_or_path=weights.tag_or_path)
    try:
        state = read_checkpoint(path)
    except Exception as error:  # unpickling fails in many ways, which all mean the same here
        raise WeightsUnavailable(f"{path} is not a checkpoint of timm's {name} ({clip.first_line(error)})") from error
    return load_timm_state(name, state, source=str(path), options=options)


def read_checkpoint(path: Path) -> State:
    """Read a state dict. Raises an exception of any type for other files; code in a file is not run."""
    state: State = timm.models.load_state_dict(str(path), weights_only=True)  # older versions of timm run it by default
    return state


def load_timm_state(name: str, state: State, *, source: str, options: dict[str, Any]) -> Any:
    """Build the timm model `name` with the weights in `state`, which were read from `source`.

    Raises WeightsUnavailable if they belong to another model: if too many are missing, or any does not fit.
    """
    # timm drops the old head by its name, and sums or repeats the filters of the first layer
    overlay = {"state_dict": state, "url": "", "hf_hub_id": None}
    try:
        for key, value in state.items():
            if "pointwise" in key and value.ndim == 2:  # as in the oldest files of Xception
                state[key] = value[:, :, None, None]
        net = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **options)
        convert = getattr(sys.modules[type(net).__module__], "checkpoint_filter_fn", None)
        found = convert(dict(state), net) if convert else state
        expected = [key for key in net.state_dict() if not key.endswith("num_batches_tracked")]
        missing = [key for key in expected if key not in found]
        if missing and len(missing) > len(expected) * MAX_MISSING_SHARE:
            raise ValueError(f"it lacks {missing[0]} and {len(missing) - 1:,} more")
    except Exception as error:  # as above
        raise WeightsUnavailable(f"{source} is not a checkpoint of timm's {name} ({clip.first_line(error)})") from error
    return net


def timm_checkpoint(name: str, tag: str, *, tag_or_path: str | None) -> Path:
    """The file `tag_or_path`, or that of the tag's weights, downloaded if necessary."""
    if tag_or_path and Path(tag_or_path).is_file():
        return Path(tag_or_path)
    known = timm.list_pretrained(f"{name}.*")
    if tag not in known:
        raise WeightsUnavailable(
            f"'{tag_or_path}' is neither a file nor a tag of timm's {name}, whose tags are: {', '.join(known)}"
        )
    config = timm.get_pretrained_cfg(tag)
    assert config is not None  # the tag is known
    repo, url = config.hf_hub_id, str(config.url)
    try:
        return hub.download_file(repo, "model.safetensors") if repo else hub.download_url(url)
    except (OSError, RuntimeError) as error:
        download = f"run `hf download {repo} model.safetensors`" if repo else f"download {url}"
        raise WeightsUnavailable(
            f"the weights of {tag} are not on this machine and could not be downloaded ({clip.first_line(error)}). "
            f"On a machine with network access, {download}, copy the file here and pass --pretrained /path/to/it; or "
            "train with --from-scratch"
        ) from error


def xception(weights: Weights, *, classes: int = 1, channels: int = 3, dropout: float = 0.0) -> Any:
    """Xception (Chollet, CVPR 2017) with a head of `classes`."""
    return timm_model(XCEPTION, weights, classes=classes, channels=channels, dropout=dropout)


@contextmanager
def without_warnings() -> Iterator[None]:
    """Suppress warnings, such as open_clip's that a model has random weights."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(disabled)


def open_clip_visual(name: str, weights: Weights, *, tag: str | None, image_size: int, projected: bool = True) -> Any:
    """The image tower of open_clip's model `name`, with or without its projection to the joint space with texts.

    Raises WeightsUnavailable if its weights are not available or belong to another model.
    """
    path, chosen = None, weights.tag_or_path or tag
    if not weights.from_scratch and weights.state is None:
        if chosen is None:
            raise WeightsUnavailable(f"open_clip has no weights of {name}: pass --pretrained FILE, or --from-scratch")
        try:
            path = str(clip.find_weights(name, chosen))
        except FairfaceError as error:
            message = str(error).replace("--clip-pretrained", "--pretrained")
            raise WeightsUnavailable(f"{message}; or train with --from-scratch to try it out") from error
    try:
        with without_warnings():
            model = open_clip.create_model(name, path, force_image_size=image_size)
        visual = model.visual if projected else without_projection(model.visual)
        if weights.state is not None:
            state = {f"visual.{key}": value for key, value in weights.state.items()}
            resize_pos_embed(state, model)
            visual.load_state_dict({key.removeprefix("visual."): value for key, value in state.items()})
    except Exception as error:  # as above
        source, reason = path or weights.tag_or_path, str(error).strip().splitlines()[-1:] or [type(error).__name__]
        raise WeightsUnavailable(f"{source} is not a checkpoint of {name} ({reason[0].strip()[:200]})") from error
    return visual


def without_projection(visual: Any) -> Any:
    """An image tower of open_clip without its projection to the joint space with texts."""
    if hasattr(visual, "trunk"):  # a model of timm
        visual.trunk.reset_classifier(0)
        return visual.trunk
    if getattr(visual, "proj", None) is not None:
        visual.proj = None
    return visual


class ClipFeatures(nn.Module):
    """The image features of CLIP ViT-L/14 in the space that it shares with texts: [B, 3, S, S] -> [B, dim]."""

    def __init__(self, weights: Weights, image_size: int):
        super().__init__()
        self.visual = open_clip_visual(CLIP, weights, tag=CLIP_TAG, image_size=image_size)
        self.dim: int = self.visual.output_dim

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.visual(images)
        return features
