"""The detectors' backbones from timm and open_clip, pretrained or with random weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import timm
from torch import Tensor, nn

from models import clip, hub
from shards.errors import FairfaceError, WeightsUnavailable

XCEPTION = "legacy_xception.tf_in1k"  # the conversion of the original weights that the benchmark also uses
EFFICIENTNET = "efficientnet_b4.ra2_in1k"
VIT = "vit_base_patch16_224.augreg2_in21k_ft_in1k"
CLIP, CLIP_TAG = "ViT-L-14-quickgelu", "openai"
MAX_MISSING_SHARE = 0.1  # share of a network's weights that its checkpoint may lack, such as the head


@dataclass(frozen=True)
class Weights:
    """Where a backbone's weights come from."""

    tag_or_path: str | None = None  # None: the detector's own tag
    from_scratch: bool = False  # random weights


def timm_model(
    tag: str, weights: Weights, *, classes: int, channels: int = 3, dropout: float = 0.0, **options: Any
) -> Any:
    """Build a timm model with a new head of `classes`, and pretrained filters adapted to `channels` input channels.

    Raises WeightsUnavailable if its weights are not available or belong to another model.
    """
    name = tag.partition(".")[0]
    if weights.tag_or_path and not Path(weights.tag_or_path).is_file():
        tag = weights.tag_or_path if "." in weights.tag_or_path else f"{name}.{weights.tag_or_path}"
    options = {"num_classes": classes, "in_chans": channels, "drop_rate": dropout} | options
    if weights.from_scratch:
        return timm.create_model(name, **options)
    path = timm_checkpoint(name, tag, tag_or_path=weights.tag_or_path)
    try:
        return load_timm_checkpoint(name, path, options=options)
    except Exception as error:  # unpickling fails in many ways, which all mean the same here
        raise WeightsUnavailable(f"{path} is not a checkpoint of timm's {name} ({clip.first_line(error)})") from error


def load_timm_checkpoint(name: str, path: Path, *, options: dict[str, Any]) -> Any:
    """Build the model with the weights in `path`. Raises ValueError if the file lacks too many of them."""
    state = timm.models.load_state_dict(str(path))
    for key, value in state.items():
        if "pointwise" in key and value.ndim == 2:  # as in the oldest files of Xception
            state[key] = value[:, :, None, None]
    # timm drops the old head by its name, and sums or repeats the filters of the first layer
    overlay = {"state_dict": state, "url": "", "hf_hub_id": None}
    net = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **options)
    expected = [key for key in net.state_dict() if not key.endswith("num_batches_tracked")]
    missing = [key for key in expected if key not in state]
    if missing and len(missing) > len(expected) * MAX_MISSING_SHARE:
        raise ValueError(f"it lacks {missing[0]} and {len(missing) - 1:,} more")
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


class ClipFeatures(nn.Module):
    """The image features of CLIP ViT-L/14, [B, 3, S, S] -> [B, 768], with frozen weights and always in evaluation mode.

    Raises WeightsUnavailable if its weights are not available or belong to another model.
    """

    def __init__(self, weights: Weights, image_size: int):
        super().__init__()
        tag = weights.tag_or_path or CLIP_TAG
        try:
            path = None if weights.from_scratch else str(clip.find_weights(CLIP, tag))
        except FairfaceError as error:
            message = str(error).replace("--clip-pretrained", "--pretrained")
            raise WeightsUnavailable(f"{message}; or train with --from-scratch to try it out") from error
        try:
            model = open_clip.create_model(CLIP, path, force_image_size=image_size)
        except Exception as error:  # as above
            raise WeightsUnavailable(f"{path} is not a checkpoint of {CLIP} ({clip.first_line(error)})") from error
        self.visual, self.dim = model.visual.requires_grad_(False), model.visual.output_dim

    def train(self, mode: bool = True) -> "ClipFeatures":
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.visual(images)
        return features
