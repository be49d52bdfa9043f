"""Builds the network that the options name, and separates its trained weights from the frozen ones of its backbone."""

from collections.abc import Sequence

import torch
from torch import Tensor

from models import clip
from models.detectors import BuildConfig, Detector, FrozenFeatureDetector, Weights, build_detector_network
from models.detectors.pointwise import use_matrix_products
from pipeline.detection.options import DetectorOptions
from shards.documents import DetectorConfig
from shards.errors import FairfaceError


def build_detector(options: DetectorOptions, group_counts: Sequence[int], *, resuming: bool = False) -> Detector:
    """Build the detector that the options name, on the CPU; `group_counts` are the training images of each group.

    With `resuming`, only weights that no checkpoint contains are pretrained, because a checkpoint will be loaded.
    Raises WeightsUnavailable if pretrained weights are not available.
    """
    from_scratch = options.from_scratch or (resuming and not options.spec.frozen_backbone)
    weights = Weights(None if from_scratch else options.pretrained, from_scratch)
    config = BuildConfig(weights, options.image_size, tuple(group_counts), options.backbone, is_resumed=resuming)
    return build_detector_network(options.model, config, seed=options.seed)


def move_to_device(net: Detector, device: torch.device) -> Detector:
    """Move a detector to a device, in the form that is fastest there; its weights stay the same."""
    if device.type == "cpu":
        use_matrix_products(net)
    return net.to(device)


def frozen_names(net: torch.nn.Module) -> set[str]:
    """The names of the weights that are not trained."""
    return {name for name, weight in net.named_parameters() if not weight.requires_grad}


def frozen_hash(net: torch.nn.Module) -> str | None:
    """A hash of the frozen weights, with the statistics of a frozen backbone's BatchNorms; None if there are none."""
    frozen = frozen_names(net)
    weights: dict[str, Tensor] = {
        name.replace(".", "/"): value for name, value in net.named_parameters() if name in frozen
    }
    if isinstance(net, FrozenFeatureDetector):
        saved = net.features.state_dict()
        buffers = {name: value for name, value in net.features.named_buffers() if name in saved}
        weights |= {name.replace(".", "/"): value for name, value in buffers.items() if value.is_floating_point()}
    return clip.weights_hash(torch.nn.ParameterDict(weights)) if frozen else None


def trainable_state(net: torch.nn.Module) -> dict[str, Tensor]:
    """The state without the frozen weights, which belong to another model."""
    frozen = frozen_names(net)
    return {name: value for name, value in net.state_dict().items() if name not in frozen}


def load_trainable(net: torch.nn.Module, state: dict[str, Tensor]) -> None:
    """Load the result of `trainable_state`. Raises FairfaceError for the state of another network."""
    try:
        missing, unexpected = net.load_state_dict(state, strict=False)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise FairfaceError(f"the checkpoint belongs to another network ({reason})") from error
    if unexpected:
        raise FairfaceError(f"the checkpoint belongs to another network (it has {unexpected[0]})")
    if lacking := [name for name in missing if name not in frozen_names(net)]:
        raise FairfaceError(f"the checkpoint belongs to another network (it lacks {lacking[0]})")


def check_frozen_weights(net: Detector, config: DetectorConfig) -> None:
    """Raise FairfaceError if the frozen weights differ from those that the detector was trained with."""
    if config.frozen and config.frozen != frozen_hash(net):
        raise FairfaceError(
            f"{config.name} was trained with other weights of its backbone than --pretrained names now: use those, or "
            "replace it with --force"
        )
