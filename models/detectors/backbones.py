"""The networks that detectors are built on: from timm and open_clip, pretrained or from scratch."""

from dataclasses import dataclass
from pathlib import Path

import open_clip
import timm
from torch import Tensor, nn

from models import clip, hub
from shards.errors import FairfaceError, WeightsUnavailable

XCEPTION = "legacy_xception.tf_in1k"  # the conversion of the original weights that the benchmark uses, too
EFFICIENTNET = "efficientnet_b4.ra2_in1k"
VIT = "vit_base_patch16_224.augreg2_in21k_ft_in1k"
CLIP, CLIP_TAG = "ViT-L-14-quickgelu", "openai"


@dataclass(frozen=True)
class Weights:
    """Where a backbone's weights come from: `named` is a tag or a file, the detector's own tag when None."""

    named: str | None = None
    scratch: bool = False


def from_timm(tag: str, weights: Weights, classes: int, channels: int = 3, dropout: float = 0.0, **more) -> nn.Module:
    """A model of timm with a new head of `classes` and an input of `channels`, which share the pretrained filters.

    Raises FairfaceError with one line where its weights can't be had or are another model's.
    """
    name = tag.partition(".")[0]
    if weights.named and not Path(weights.named).is_file():
        tag = weights.named if "." in weights.named else f"{name}.{weights.named}"
    settings = {"num_classes": classes, "in_chans": channels, "drop_rate": dropout} | more
    if weights.scratch:
        return timm.create_model(name, **settings)
    path = timm_file(name, tag, weights.named)
    try:
        state = timm.models.load_state_dict(str(path))
        for key, value in state.items():
            if "pointwise" in key and value.ndim == 2:  # as the oldest files of Xception have it
                state[key] = value[:, :, None, None]
        # timm drops the old head by its name, and sums or repeats the filters of the first layer
        overlay = {"state_dict": state, "url": "", "hf_hub_id": None}
        net = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **settings)
        wanted = [key for key in net.state_dict() if not key.endswith("num_batches_tracked")]
        if (lacking := [key for key in wanted if key not in state]) and len(lacking) > len(wanted) / 10:
            raise ValueError(f"it lacks {lacking[0]} and {len(lacking) - 1:,} more")
        return net
    except Exception as error:  # unpickling fails in many ways; every one means the same here
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise WeightsUnavailable(f"{path} is not a checkpoint of timm's {name} ({reason})") from error


def timm_file(name: str, tag: str, named: str | None) -> Path:
    """The file of a tag's weights, or the one that is `named`."""
    if named and Path(named).is_file():
        return Path(named)
    known = timm.list_pretrained(f"{name}.*")
    if tag not in known:
        raise WeightsUnavailable(
            f"'{named}' is no file and no tag of timm's {name}, whose tags are: {', '.join(known)}"
        )
    config = timm.get_pretrained_cfg(tag)
    try:
        if config.hf_hub_id:
            return hub.download_file(config.hf_hub_id, "model.safetensors")
        return hub.download_url(config.url)
    except (OSError, RuntimeError) as error:
        where = f"run `hf download {config.hf_hub_id} model.safetensors`" if config.hf_hub_id else f"fetch {config.url}"
        raise WeightsUnavailable(
            f"the weights of {tag} are not here and could not be fetched ({str(error).splitlines()[0]}). Where there "
            f"is a network {where}, copy the file here and pass --pretrained /path/to/it; or train --from-scratch"
        ) from error


def xception(weights: Weights, classes: int = 1, channels: int = 3, dropout: float = 0.0) -> nn.Module:
    """Xception (Chollet, CVPR 2017) with a head of `classes`."""
    return from_timm(XCEPTION, weights, classes, channels, dropout)


class ClipFeatures(nn.Module):
    """The image features of CLIP ViT-L/14, [B, 768], with weights that stay as they are."""

    def __init__(self, weights: Weights, size: int):
        super().__init__()
        named = weights.named or CLIP_TAG
        try:
            path = None if weights.scratch else str(clip.find_weights(CLIP, named))
        except FairfaceError as error:
            line = str(error).replace("--clip-pretrained", "--pretrained")
            raise WeightsUnavailable(f"{line}; or see what it does --from-scratch") from error
        try:
            model = open_clip.create_model(CLIP, path, force_image_size=size)
        except Exception as error:  # as above
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            raise WeightsUnavailable(f"{path} is not a checkpoint of {CLIP} ({reason})") from error
        self.visual, self.dim = model.visual.requires_grad_(False), model.visual.output_dim

    def train(self, mode: bool = True) -> "ClipFeatures":
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        return self.visual(images)
